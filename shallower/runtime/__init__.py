"""Runtime of any long command, knowing no model: progress, memory, processes, signals, provenance,
numbers as text.
"""
