"""The pocket model's words: simple forms of known ones are known, and what is told of a prompt is of use."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fpsgen import assets
from fpsgen.pocket import reading
from fpsgen.wan.tokenizer import Tokenizer
from fpsgen.weights import models
from fpsgen.weights.load import load_tokenizer
from recipes.pocket import prompts, start


@pytest.fixture(scope="module")
def model() -> models.Model:
    return models.find("pocket")


@pytest.fixture(scope="module")
def tokenizer(model: models.Model) -> Tokenizer:
    return load_tokenizer(model.checkpoint)


READ = {
    "penguins surfing": "penguin surfing",
    "Two CATS jumping at night": "cat jumping at night",
    "the puppies are moving left": "the puppy is moving left",
    "penguins surf, robots jump": "penguin surfs, robot jumps",
    "balloons rise at nights": "balloon rises at night",
    "a car move left": "a car moves left",
    "a dog hopped in the cities": "a dog hopping in the city",
    "a frog travelled to the right": "a frog travelling to the right",
    "kitties fly among skyscraper and building": "kitty flies among skyscrapers and buildings",
    "pandas go up": "panda goes up",
    "a cat's wave": "a cat wave",
    "a tree by the beaches": "a trees by the beach",
    "a caring bus as us": "a",  # forms of "car", "a" and "is" by their letters alone
}


@pytest.mark.parametrize("prompt", READ)
def test_simple_forms_of_known_words_are_known(tokenizer: Tokenizer, prompt: str) -> None:
    assert re.sub(r" ?,", ",", reading.read(prompt, tokenizer).text) == READ[prompt]


@pytest.mark.parametrize(
    "prompt", ["a c\u200bat\u200b", "\u202ea cat\u202c", "a cat\ufe0f", "\ufeffa\u00ad cat", "a c&#8203;at"]
)
def test_what_is_not_seen_hides_no_word(tokenizer: Tokenizer, prompt: str) -> None:
    """As copied from a web page or a chat."""
    assert reading.read(prompt, tokenizer) == reading.Reading("a cat", ())


def test_punctuation_of_any_language_is_no_word_that_is_left_out(tokenizer: Tokenizer) -> None:
    assert reading.read("a cat \u2013 \u00bfsurfing\u2026 at night\u3002", tokenizer).unknown == ()
    assert reading.read("a cat \u2014 \u00abpurple\u00bb \U0001f431", tokenizer).unknown == ("purple", "\U0001f431")


def test_every_subject_has_a_plural_and_every_verb_a_stem(tokenizer: Tokenizer) -> None:
    for noun in prompts.subject_words():
        plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
        assert reading.read(plural, tokenizer).text == noun
    for stem in ("surf", "ride", "catch", "move", "go", "walk", "run", "drive", "travel", "slide", "head", "glide",
                 "roll", "jump", "bounce", "hop", "leap", "dance", "rise", "fly", "float", "take", "lift"):  # fmt: skip
        assert not reading.read(f"penguins {stem}", tokenizer).unknown, stem


def test_captions_of_the_training_are_read_as_they_are(tokenizer: Tokenizer) -> None:
    """What the model was measured with stays bit for bit what it was."""
    for subject, motion, scene in prompts.combinations():
        sentence = prompts.plain(subject, motion, scene)
        assert reading.read(sentence, tokenizer) == reading.Reading(sentence, ())


def test_a_prompt_without_a_subject_is_offered_three_that_work(model: models.Model, tokenizer: Tokenizer) -> None:
    assert model.pocket is not None
    for prompt, left_out in (
        ("a lighthouse in a storm", "lighthouse, storm"),
        ("海の上の灯台", "海の上の灯台"),
        ("at night", None),
    ):
        told = reading.remark(reading.read(prompt, tokenizer), "prompt", model.pocket)
        assert told is not None
        assert told.startswith("the prompt names nothing that the pocket model can draw")
        assert (f"(words left out: {left_out})" in told) == (left_out is not None)
        tries = re.findall(r'"(.+?)"', told)
        assert len(tries) == 3
        for each in tries:
            assert reading.remark(reading.read(each, tokenizer), "prompt", model.pocket) is None


def test_a_negative_prompt_needs_no_subject_and_an_odd_word_is_told(model: models.Model, tokenizer: Tokenizer) -> None:
    assert model.pocket is not None
    read = reading.read("a purple cat in \u202eneon", tokenizer)
    assert read.text == "a cat in"
    told = reading.remark(read, "prompt", model.pocket)
    assert told is not None
    assert told.startswith("words of the prompt left out: purple,")
    assert told.isprintable()
    assert reading.remark(reading.read("at night", tokenizer), "negative prompt", model.pocket) is None


def test_a_card_without_subjects_tells_only_of_a_prompt_without_any_known_word(tokenizer: Tokenizer) -> None:
    pocket: dict[str, Any] = {"knows": "a cat"}
    assert reading.remark(reading.read("at night", tokenizer), "prompt", pocket) is None
    told = reading.remark(reading.read("lighthouse", tokenizer), "prompt", pocket)
    assert told is not None
    assert told.endswith("It knows a cat")


def test_the_card_holds_what_the_recipe_says(model: models.Model) -> None:
    assert model.pocket == start.describe(assets.folder("pocket"), model.pocket["version"]) | {"tile": [2, 2, 2]}
