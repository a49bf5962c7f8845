"""fpsgen: Wan2.1 videos, fast and true. Importing this package imports no torch."""

__version__ = "0.1.0"
