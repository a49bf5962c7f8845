"""Where the records of published figures lie."""

from pathlib import Path

RESULTS = Path(__file__).parent / "results"
