"""Measured quality of a model, pruned virtually or on disk."""
