"""Measurements behind the figures that documents quote, one command each; their results lie in `results/`."""
