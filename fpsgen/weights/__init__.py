"""Weights: names, the hub, what lies in a folder and in a file, reading and checking it, loading it into modules."""
