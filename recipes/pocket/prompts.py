"""Sentences of the sprite world: many ways to say a subject, a motion and a scene.

Every list has its plainest phrase first, and captions draw earlier phrases more often: the text encoder
is tiny and sees tens of thousands of captions, not billions, yet has to know what people are likely to
type. What a prompt leaves out has a default (`default_scene`, `default_motion`), and captions leave
scenes and motions out exactly where the clip shows that default: "a cat surfing" is at sea.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import TypeVar

from fpsgen.pocket.words import MOTIONS, NOUNS, PLACES, SCENES, SUBJECTS, Combination, motion_phrases

T = TypeVar("T")

ADJECTIVES = ["cute", "little", "small", "happy", "funny", "big"]  # accepted, and make no difference
COLOURS = {"car": "red", "balloon": "red", "frog": "green"}  # the ones that are true anyway

_INTO_THE_SKY = ["into the sky", "into the air", "in the air"]


_HOME = {"cat": "forest", "dog": "forest", "frog": "forest", "panda": "forest",
         "penguin": "sea", "robot": "city", "car": "city", "balloon": "night"}  # fmt: skip

# Never trained on: two combinations of each subject, four in each scene, three or four of each motion, and
# no default scene among them. What the model makes of these is composition, not memory.
HELD_OUT: frozenset[Combination] = frozenset(
    {
        ("cat", "right", "sea"),
        ("cat", "surf", "night"),
        ("dog", "jump", "city"),
        ("dog", "left", "city"),
        ("frog", "right", "night"),
        ("frog", "surf", "city"),
        ("panda", "rise", "night"),
        ("panda", "rise", "sea"),
        ("penguin", "jump", "night"),
        ("penguin", "left", "forest"),
        ("robot", "jump", "forest"),
        ("robot", "surf", "forest"),
        ("car", "jump", "sea"),
        ("car", "rise", "forest"),
        ("balloon", "left", "sea"),
        ("balloon", "right", "city"),
    }
)


def default_scene(subject: str, motion: str) -> str:
    """Where a prompt without a scene takes place."""
    return "sea" if motion == "surf" else _HOME[subject]


def default_motion(subject: str) -> str:
    """What a prompt without a motion shows."""
    return {"car": "right", "balloon": "rise"}.get(subject, "jump")


def combinations(held_out: bool = False) -> list[Combination]:
    """The combinations to train on, or the ones held out, in a fixed order."""
    every = [(s, m, c) for s in SUBJECTS for m in MOTIONS for c in SCENES]
    return [combination for combination in every if (combination in HELD_OUT) == held_out]


def plain(subject: str, motion: str, scene: str) -> str:
    """The plainest sentence, e.g. "a cat surfing on the sea"."""
    return f"a {NOUNS[subject][0]} {motion_phrases(motion)[0][0]} {PLACES[scene][0]}"


def caption(subject: str, motion: str, scene: str, rng: random.Random) -> str:
    """A random sentence that describes the clip, defaults left out now and then."""
    name = _subject(subject, rng)
    doing, does = _early(motion_phrases(motion), rng)
    place = _early(PLACES[scene], rng)
    if scene == default_scene(subject, motion) and rng.random() < 0.5:
        place = ""
    if motion == default_motion(subject) and rng.random() < 0.25:
        return _tidy(f"{name} {place}", rng)
    if motion == "rise" and rng.random() < 0.3:
        doing, does = (f"{verb} {rng.choice(_INTO_THE_SKY)}" for verb in (doing, does))
    orders = [
        f"{name} {doing} {place}",
        f"{name} is {doing} {place}",
        f"{name} {does} {place}",
        f"{name} {doing}, {place}",
        f"{place}, {name} {doing}",
        f"{place}, {name} is {doing}",
        f"{name} {place} {doing}",
        f"{name} {place}, {doing}",
    ]
    return _tidy(_early(orders, rng), rng)


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    phrases = [*ADJECTIVES, *COLOURS.values(), *_INTO_THE_SKY, *_OPENINGS, *_ARTICLES, "an", "is"]
    for subject in SUBJECTS:
        phrases += NOUNS[subject]
    for motion in MOTIONS:
        phrases += [words for pair in motion_phrases(motion) for words in pair]
    for scene in SCENES:
        phrases += PLACES[scene]
    return sorted({word for phrase in phrases for word in re.findall(r"[a-z]+", phrase)})


def knows() -> str:
    """What the pocket model can draw; ends the sentence "It knows …"."""
    return (
        f"a {_listed(list(SUBJECTS), 'or')}; surfing, moving right or left, jumping or rising; "
        "on the sea, in the city, in the forest or at night"
    )


def subject_words() -> list[str]:
    """The words that name a subject, each for itself."""
    return [noun for subject in SUBJECTS for noun in NOUNS[subject] if " " not in noun]


# --- the grammar -------------------------------------------------------------------------------------

_ARTICLES = ["a", "the", "one", ""]
_OPENINGS = ["a video of", "video of", "an animation of", "a clip of"]


def _early(options: Sequence[T], rng: random.Random) -> T:
    """One of the options, the n-th with a weight of 1 / (n + 1)."""
    return rng.choices(options, [1 / (n + 1) for n in range(len(options))])[0]


def _subject(subject: str, rng: random.Random) -> str:
    adjective = ""
    if rng.random() < 0.12:
        adjective = rng.choice(ADJECTIVES + [COLOURS[subject]] * 3 if subject in COLOURS else ADJECTIVES)
    name = f"{adjective} {_early(NOUNS[subject], rng)}".strip()
    article = _early(_ARTICLES, rng)
    return f"{'an' if article == 'a' and name[0] in 'aeiou' else article} {name}"


def _tidy(sentence: str, rng: random.Random) -> str:
    """No stray blanks and commas; an opening such as "a video of" in front now and then."""
    sentence = " ".join(sentence.split()).replace(" ,", ",").strip(", ")
    if rng.random() < 0.06:
        sentence = f"{rng.choice(_OPENINGS)} {sentence}"
    return sentence


def _listed(words: list[str], last: str) -> str:
    return f"{', '.join(words[:-1])} {last} {words[-1]}"
