"""fpsgen: Wan2.1 videos, fast and true. Importing this package imports no torch."""

import os

# torch's threads sleep while they wait for each other, instead of spinning: where another program needs the cores too,
# spinning made a video take 5 to 12 times as long. OpenMP reads this when torch loads; whoever sets it themselves wins.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.1.0"
