"""The only part that knows Hugging Face models: loading, the decoder stack, virtual removal, per-layer config fields."""
