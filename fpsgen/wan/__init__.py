"""Wan2.1: the transformer, what stands around it, and where its weights come from."""
