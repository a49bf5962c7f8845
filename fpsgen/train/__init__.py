"""Training a model through a preset: the quantised, sparse operator in the forward pass."""
