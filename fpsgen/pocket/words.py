"""The pocket model's world in words: what it can show, and the phrases for it that it was trained on."""

from __future__ import annotations

import tomllib
from pathlib import Path

Combination = tuple[str, str, str]  # subject, motion and scene of a clip
ASPECTS = ("subject", "motion", "scene")

_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
NOUNS: dict[str, list[str]] = _TABLES["nouns"]
PLACES: dict[str, list[str]] = _TABLES["places"]
SUBJECTS, MOTIONS, SCENES = tuple(NOUNS), ("surf", "right", "left", "jump", "rise"), tuple(PLACES)


def motion_phrases(motion: str) -> list[tuple[str, str]]:
    """Both forms of each verb, as in "a cat surfing" and as in "a cat surfs"."""
    verbs, directions = _TABLES["verbs"], _TABLES["directions"].get(motion)
    if directions is None:
        return [(doing, does) for doing, does in verbs[motion]]
    # Diagonal by diagonal, so that plain verbs and plain directions come first.
    pairs = sorted((v + d, v, d) for v in range(len(verbs["go"])) for d in range(len(directions)))
    return [(f"{verbs['go'][v][0]} {directions[d]}", f"{verbs['go'][v][1]} {directions[d]}") for _, v, d in pairs]
