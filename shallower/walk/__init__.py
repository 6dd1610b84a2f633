"""Who supplies the evidence: the only loops over batches and layers."""
