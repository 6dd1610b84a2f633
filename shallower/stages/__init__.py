"""The verbs as plain functions, a file each: the only place that strings the parts together. ``shallower`` offers them all."""
