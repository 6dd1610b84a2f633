"""Layer-by-layer passes that collect statistics: the only loops over batches and layers."""
