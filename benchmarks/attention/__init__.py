"""Speed of attention on a CUDA card, at Wan2.1's true shapes: `python -m benchmarks.attention`."""
