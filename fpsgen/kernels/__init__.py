"""CUDA sources to kernels that run: compiled on first use, kept on disk, nothing to build at install."""
