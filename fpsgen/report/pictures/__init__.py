"""The pictures of each kind of page; `drawing` is what they share. The same record gives the same bytes."""

from fpsgen.report.pictures import attention, calibration, compare, drawing, quality, training

__all__ = ["attention", "calibration", "compare", "drawing", "quality", "training"]
