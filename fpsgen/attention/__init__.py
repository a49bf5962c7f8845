"""Self-attention over tiles: geometry and plans, which need no torch; the backends; `door`, by which all enter."""
