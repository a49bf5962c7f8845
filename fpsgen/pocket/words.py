"""The pocket model's world in words: what it can show, and the phrases for it that it was trained on.

Every list has its plainest phrase first. The order is part of the recipe (`recipes/pocket`): captions are drawn by it.
"""

from __future__ import annotations

# Subject, motion and scene of a clip.
Combination = tuple[str, str, str]
ASPECTS = ("subject", "motion", "scene")

MOTIONS = ("surf", "right", "left", "jump", "rise")
SCENES = ("sea", "city", "forest", "night")

NOUNS = {
    "cat": ["cat", "kitten", "kitty"],
    "dog": ["dog", "puppy", "doggy"],
    "frog": ["frog", "toad", "froggy"],
    "panda": ["panda", "panda bear"],
    "penguin": ["penguin", "baby penguin"],
    "robot": ["robot", "android", "bot"],
    "car": ["car", "automobile", "vehicle"],
    "balloon": ["balloon", "party balloon"],
}
SUBJECTS = tuple(NOUNS)

PLACES = {
    "sea": ["on the sea", "in the ocean", "at sea", "on the ocean", "in the sea", "on the water", "at the beach",
            "on the waves", "by the sea", "over the sea", "in the water", "on a sunny beach"],
    "city": ["in the city", "in front of buildings", "in a city", "in town", "on the street", "in the street",
             "through the city", "downtown", "among skyscrapers", "on a road", "over the city"],
    "forest": ["in the forest", "among the trees", "in a forest", "in the woods", "between the trees",
               "through the forest", "in front of trees", "in the park", "on the grass", "in nature"],
    "night": ["at night", "under the stars", "in the night", "in the moonlight", "under the moon", "in the night sky",
              "in the dark", "by night", "on a starry night", "under a starry sky"],
}  # fmt: skip

_RIDES = [
    ("surfing", "surfs"),
    ("riding a wave", "rides a wave"),
    ("surfing a wave", "surfs a wave"),
    ("on a surfboard", "rides a surfboard"),
    ("surfing on a wave", "surfs on a wave"),
    ("riding a surfboard", "is riding on a surfboard"),
    ("surfing the waves", "surfs the waves"),
    ("riding the waves", "rides the waves"),
    ("catching a wave", "catches a wave"),
    ("on a wave", "is on a board"),
]
_GOING = [
    ("moving", "moves"),
    ("going", "goes"),
    ("walking", "walks"),
    ("running", "runs"),
    ("driving", "drives"),
    ("travelling", "travels"),
    ("traveling", "travels"),
    ("sliding", "slides"),
    ("heading", "heads"),
    ("gliding", "glides"),
    ("rolling", "rolls"),
]
_ASIDE = ["{}", "to the {}", "from {opposite} to {}", "{}ward", "towards the {}", "toward the {}", "{}wards"]
_JUMPS = [
    ("jumping", "jumps"),
    ("bouncing", "bounces"),
    ("hopping", "hops"),
    ("jumping up and down", "jumps up and down"),
    ("hopping up and down", "hops up and down"),
    ("bouncing up and down", "bounces up and down"),
    ("leaping", "leaps"),
    ("dancing", "dances"),
]
_RISES = [
    ("rising", "rises"),
    ("flying up", "flies up"),
    ("floating up", "floats up"),
    ("flying", "flies"),
    ("going up", "goes up"),
    ("floating", "floats"),
    ("rising up", "rises up"),
    ("moving up", "moves up"),
    ("taking off", "takes off"),
    ("floating upwards", "floats upwards"),
    ("lifting off", "lifts off"),
    ("flying away", "flies away"),
    ("levitating", "levitates"),
]


def motion_phrases(motion: str) -> list[tuple[str, str]]:
    """Both forms of each verb, as in "a cat surfing" and as in "a cat surfs"."""
    if motion in ("right", "left"):
        opposite = "left" if motion == "right" else "right"
        aside = [phrase.format(motion, opposite=opposite) for phrase in _ASIDE]
        # Diagonal by diagonal, so that plain verbs and plain directions come first.
        pairs = sorted((v + a, v, a) for v in range(len(_GOING)) for a in range(len(aside)))
        return [(f"{_GOING[v][0]} {aside[a]}", f"{_GOING[v][1]} {aside[a]}") for _, v, a in pairs]
    return {"surf": _RIDES, "jump": _JUMPS, "rise": _RISES}[motion]
