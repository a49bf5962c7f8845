"""Whether calibration is worth it: the pocket model on held-out prompts, at equal cost."""
