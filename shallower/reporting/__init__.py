"""Report and model card, made only from artifacts."""
