"""Models side by side, made only from artifacts."""
