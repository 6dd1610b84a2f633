"""Repair without a gradient through the model: the dense and the pruned model side by side, layer by layer."""
