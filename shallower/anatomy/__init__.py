"""Anatomy of Hugging Face models, the only part that knows them: loading, the decoder stack, virtual removal, per-layer
config fields.
"""
