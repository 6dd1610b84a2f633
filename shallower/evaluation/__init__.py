"""Evaluation: perplexity, tasks, speed and memory of a model, pruned virtually or on disk."""
