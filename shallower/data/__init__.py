"""Text data: files and data sets -> documents -> token batches, seeded, hashed, with a stated BOS rule."""
