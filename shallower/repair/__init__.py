"""Repair without training: the dense and the pruned model side by side, layer by layer."""
