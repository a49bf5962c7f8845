"""Speed of attention on a CUDA card, at Wan2.1's true shapes: who runs, whether it is right, how fast it is."""
