"""`fpsgen calibrate`: measure a model along its own trajectory, and find the cheapest schedule within a budget."""
