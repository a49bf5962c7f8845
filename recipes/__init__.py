"""How what ships was made."""

import fpsgen  # noqa: F401  # before torch, whose threads then wait as the product's do
