"""What `fpsgen bench quality` renders where the user brings no prompts.

No preset that ships was calibrated on them, and the pocket model was never trained on what its own name: each is of a
combination that its recipe holds out.
"""

from __future__ import annotations

POCKET = (
    "a cat surfing at night",
    "a dog jumping in the city",
    "a frog moving right at night",
    "a panda rising on the sea",
    "a penguin moving left in the forest",
    "a robot jumping in the forest",
    "a car rising in the forest",
    "a balloon moving right in the city",
)

WAN = (
    "A lighthouse keeper climbs a spiral staircase with a lantern, shadows turn on the whitewashed walls",
    "Waves roll over black sand at sunrise, seen from above, foam draws lace that fades",
    "A potter's cat stretches on a window sill, rain runs down the glass behind it, soft light",
    "A cable car glides over a snowy forest, the camera inside looks down past frost on the window",
)


def of(family: str) -> tuple[str, ...]:
    """For a family of models."""
    return POCKET if family == "pocket" else WAN
