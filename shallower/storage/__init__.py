"""Storage of bytes, without a model: files, where tensors lie, weight files by byte ranges, hashes, the journal."""
