"""Measurements: how fast, how true, and why."""
