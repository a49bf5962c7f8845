"""Wan2.1: its networks, and what stands around them."""
