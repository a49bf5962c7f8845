"""The pocket model's judge: which words of a prompt are asked about, and what it sees."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from fpsgen import assets
from fpsgen.pocket import judge
from fpsgen.pocket.words import ASPECTS, NOUNS, PLACES, motion_phrases
from recipes.pocket import world
from recipes.pocket.prompts import HELD_OUT, caption, combinations, default_motion, default_scene, plain

needs_font = pytest.mark.skipif(not world.FONT.exists(), reason="needs Debian's fonts-noto-color-emoji")

EVERY = combinations() + combinations(held_out=True)


def test_what_captions_name_is_found() -> None:
    """Of every combination and fifty captions: right or absent, and absent where the caption has no word for it."""
    rng = random.Random(0)
    absent = dict.fromkeys(ASPECTS, 0)
    for label in EVERY:
        subject, motion, scene = label
        phrases = {
            "subject": NOUNS[subject],
            "motion": [words for pair in motion_phrases(motion) for words in pair],
            "scene": PLACES[scene],
        }
        for _ in range(50):
            sentence = caption(*label, rng)
            found = judge.named(sentence)
            for aspect, wanted in zip(ASPECTS, label, strict=True):
                assert found.get(aspect, wanted) == wanted, sentence
                if aspect not in found:
                    absent[aspect] += 1
                    assert not [p for p in phrases[aspect] if re.search(rf"\b{p}\b", sentence)], sentence
            assert "motion" in found or motion == default_motion(subject), sentence
            assert "scene" in found or scene == default_scene(subject, motion), sentence
    # The recipe leaves out a motion in a quarter of the captions that show the default one, a scene in half.
    shares = {aspect: count / (50 * len(EVERY)) for aspect, count in absent.items()}
    assert shares["subject"] == 0
    assert shares["motion"] == pytest.approx(0.25 * 8 * 4 / 160, abs=0.01)
    assert shares["scene"] == pytest.approx(0.5 * 8 * 5 / 160, abs=0.02)


@pytest.mark.parametrize("label", EVERY, ids="-".join)
def test_the_plainest_sentence_names_all(label: tuple[str, str, str]) -> None:
    assert judge.named(plain(*label)) == dict(zip(ASPECTS, label, strict=True))


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("", {}),
        ("a painting of nothing", {}),
        ("A CAT, Surfing!", {"subject": "cat", "motion": "surf"}),
        ("a cat and a dog in the park", {"scene": "forest"}),
        ("a kitten, a kitty and a cat", {"subject": "cat"}),
        ("a carpet in the nighttime", {}),
        ("a robot moving from left to right", {"subject": "robot", "motion": "right"}),
        ("a robot moving from right to left", {"subject": "robot", "motion": "left"}),
        ("a panda going up, then going left", {"subject": "panda"}),
        ("a frog jumping up and down at sea at night", {"subject": "frog", "motion": "jump"}),
        ("a dog surfing the waves", {"subject": "dog", "motion": "surf"}),
        ("a dog surfing on the waves", {"subject": "dog", "motion": "surf", "scene": "sea"}),
    ],
)
def test_what_is_open_or_told_twice_is_not_asked_about(prompt: str, named: dict[str, str]) -> None:
    assert judge.named(prompt) == named


def test_the_benchs_own_prompts_are_held_out() -> None:
    """From the model's training and from its presets' calibration; each names all three."""
    ours = assets.prompts("quality", "pocket")
    for prompt in ours:
        assert tuple(judge.named(prompt)[aspect] for aspect in ASPECTS) in HELD_OUT, prompt
    assert len({judge.named(prompt)["subject"] for prompt in ours}) == len(ours) == 8
    for family in ("pocket", "1.3b", "14b"):
        own, theirs = (assets.prompts(use, family) for use in ("quality", "calibrate"))
        assert not set(own) & set(theirs)
        assert len(set(own)) == len(own)
    assert assets.prompts("quality", "1.3b") == assets.prompts("quality", "14b") != ours


def test_the_score_counts_what_is_named() -> None:
    seen = [("cat", "surf", "sea"), ("cat", "left", "sea"), ("dog", "jump", "city")]
    asked = ["a cat surfing", "a cat moving right at night", "something in the city"]
    assert judge.score(seen, asked) == {"subject": (2, 2), "motion": (1, 2), "scene": (1, 2)}
    with pytest.raises(ValueError, match="shorter"):
        judge.score(seen, asked[:2])


@needs_font
def test_it_sees_what_the_world_draws() -> None:
    rng = random.Random(3)
    labels = rng.sample(EVERY, 10)
    clips = [world.render(*label, seed).video for seed, label in enumerate(labels, 42)]
    assert clips[0].shape == (*judge.SHAPE, 3)
    told = judge.adherence(clips, [plain(*label) for label in labels])
    # On rendered clips it is right in all of 480 cases (recipes/pocket/evaluation.md).
    assert told == dict.fromkeys(ASPECTS, (10, 10))
    others = judge.adherence(clips, [plain(*label) for label in labels[1:] + labels[:1]])
    assert sum(hits for hits, _ in others.values()) < 15


def test_weights_of_something_else_are_refused(tmp_path: object) -> None:
    from safetensors.numpy import save_file

    path = f"{tmp_path}/other.safetensors"
    save_file({"trunk.0.0.weight": np.zeros((16, 3, 5, 5), np.float32)}, path)
    with pytest.raises(ValueError, match="is not this network's"):
        judge.load_network(path)  # type: ignore[arg-type]
