"""Results, what artifacts say together: collections, comparisons with intervals, summaries, labels; nothing drawn."""
