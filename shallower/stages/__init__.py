"""Stages, the verbs as plain functions, a file each: the Python API, the only place that strings the parts together."""
