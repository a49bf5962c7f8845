"""Measurements behind the figures that documents quote, one command each; their results lie in `results/`."""

import fpsgen  # noqa: F401  # before torch, whose threads then wait as the product's do
