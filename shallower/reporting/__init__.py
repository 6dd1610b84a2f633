"""The report and the model card, made only from artifacts."""
