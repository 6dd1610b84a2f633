"""Harness of the benchmarks: the store of results, the machine, memory limits, plain baselines, large models."""
