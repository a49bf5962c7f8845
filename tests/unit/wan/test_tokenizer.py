"""The tokenizer is what tokenizer.json says, the cleaning the original's; what cannot be one is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers

from fpsgen.errors import ModelError
from fpsgen.wan.tokenizer import clean
from fpsgen.weights.layout import Checkpoint, recognise
from fpsgen.weights.load import load_tokenizer
from tests.tools.tokenizer import write_umt5_like

# Written down: cleaning, then the ids. Each umT5-like word has a token; other letters have one, or their bytes.
GOLDEN = {
    "a cat surfing": [261, 262, 264, 1],
    "  a   cat\n\tsurfing ": [261, 262, 264, 1],
    "a cat\u00a0surfing": [261, 262, 264, 1],
    "a cat &amp;amp; dog": [261, 262, 260, 299, 263, 1],
    "caf&eacute;": [260, 273, 271, 276, 303, 1],
    "a cafe\u0301": [261, 260, 273, 271, 276, 303, 1],
    "sch\u00c3\u00b6n": [260, 289, 273, 278, 199, 186, 284, 1],
    "\uff41 \uff43\uff41\uff54": [261, 262, 1],
    "a cat \U0001f3c4": [261, 262, 260, 244, 163, 147, 136, 1],
    "猫": [260, 302, 1],
    "海で": [260, 234, 185, 187, 231, 133, 171, 1],
    "\x1b[31ma cat": [261, 262, 1],
    "": [1],
}
PROMPTS = [
    "一只猫在海上冲浪",
    "猫が海でサーフィンをしている",
    "a cat \U0001f3c4 on the sea \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "a\u0301\u0323\u0308 cat",
    "a <extra_id_0> cat </s>",
    "&lt;red&gt; &amp;#128568; sea",
    "a cat surfing " * 400,
    "\U0001f3c4" * 1000,
]


@pytest.fixture(scope="module")
def checkpoint(both_formats: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_umt5_like(folder)
    return replace(recognise(both_formats["original"]), tokenizer=folder, text_config={"vocab_size": 400})


@pytest.mark.parametrize("prompt", GOLDEN)
def test_cleaning_and_tokens_are_those_written_down(checkpoint: Checkpoint, prompt: str) -> None:
    assert load_tokenizer(checkpoint).encode(clean(prompt)).ids == GOLDEN[prompt]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_are_the_librarys_and_a_cut_keeps_the_end(checkpoint: Checkpoint, prompt: str) -> None:
    ours = load_tokenizer(checkpoint).encode(prompt)
    oracle = tokenizers.Tokenizer.from_file(str(checkpoint.tokenizer / "tokenizer.json"))
    whole = len(oracle.encode(prompt).ids)
    oracle.enable_truncation(512)
    assert ours.ids == oracle.encode(prompt).ids
    assert ours.ids[-1] == 1
    assert ours.cut == (whole > 512)
    assert not ours.unknown  # whatever has no token has bytes


def test_padding_and_truncation_in_the_file_change_nothing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Files that were saved after use have both."""
    used = tokenizers.Tokenizer.from_file(str(checkpoint.tokenizer / "tokenizer.json"))
    used.enable_padding(length=20)
    used.enable_truncation(3)
    used.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(replace(checkpoint, tokenizer=tmp_path)).encode("a cat on the sea").ids == [
        261, 262, 266, 267, 268, 1,
    ]  # fmt: skip


def damaged(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """tokenizer.json after a change of what it says."""

    def write(folder: Path) -> None:
        told = json.loads((folder / "tokenizer.json").read_text())
        change(told)
        (folder / "tokenizer.json").write_text(json.dumps(told))

    return write


def configured(**told: object) -> Callable[[Path], object]:
    return lambda folder: (folder / "tokenizer_config.json").write_text(json.dumps(told))


def word_level(unk: str) -> Callable[[Path], None]:
    def change(told: dict) -> None:
        told["model"] = {"type": "WordLevel", "vocab": {"<pad>": 0, "</s>": 1, "<unk>": 3, "a": 2}, "unk_token": unk}

    return damaged(change)


def without_bytes(told: dict) -> None:
    told["model"].update(byte_fallback=False, unk_id=None)


def silent(told: dict) -> None:
    """A BPE without an unknown token drops what it does not know."""
    told["model"] = {"type": "BPE", "vocab": {"<pad>": 0, "</s>": 1, "<unk>": 3, "a": 2}, "merges": []}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damaged(lambda told: told.update(post_processor=None)), "does not end a prompt with the end token </s>"),
        (word_level(""), "tokenizer.json cannot be used"),
        (damaged(without_bytes), "tokenizer.json cannot be used"),
        (damaged(lambda told: told["model"].update(unk_id=10**6)), "tokenizer.json cannot be used"),
        (damaged(lambda told: told["model"].update(type="None")), "tokenizer.json cannot be used"),
        (damaged(lambda told: told.pop("model")), "tokenizer.json cannot be used"),
        (damaged(lambda told: told["model"]["vocab"].extend([["x", 0.0]] * 200)), "counts tokens up to"),
        (damaged(lambda told: told["post_processor"]["special_tokens"].clear()), "tokenizer.json cannot be used"),
        (damaged(silent), "has no unk token"),
        (lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff\x00{"), "tokenizer.json cannot be used"),
        (lambda folder: (folder / "tokenizer.json").write_text("<!DOCTYPE html>"), "tokenizer.json cannot be used"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("{"), "tokenizer_config.json is not valid JSON"),
        (configured(eos_token="\x1b[31mend"), r"with the end token \x1b[31mend"),
        (configured(eos_token=5), "with the end token 5"),
        (configured(eos_token="\ud800"), "tokenizer_config.json has eos_token"),
        (configured(eos_token={"content": "<s>"}), "end a prompt with the end token <s>"),
        (configured(model_max_length=1), "model_max_length = 1"),
        (configured(model_max_length="many"), "model_max_length = many"),
    ],
)
def test_what_is_no_tokenizer_of_umt5s_is_told(
    checkpoint: Checkpoint, tmp_path: Path, damage: Callable[[Path], object], says: str
) -> None:
    write_umt5_like(tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match=re.escape(says)) as told:
        load_tokenizer(replace(checkpoint, tokenizer=tmp_path))
    assert told.value.hint


def test_its_configuration_may_be_absent_and_its_own_limit_holds(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write_umt5_like(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    here = replace(checkpoint, tokenizer=tmp_path)
    assert load_tokenizer(here).length == 512
    configured(model_max_length=5)(tmp_path)
    assert load_tokenizer(here).encode("a cat on the sea").ids == [261, 262, 266, 267, 1]


def test_a_folder_with_a_sentencepiece_model_alone_is_told_what_it_lacks(tmp_path: Path, wan_folder: Path) -> None:
    for part in wan_folder.iterdir():
        if part.name != "tokenizer":
            (tmp_path / part.name).symlink_to(part)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "spiece.model").write_bytes(b"")
    with pytest.raises(ModelError, match=r"holds no tokenizer\.json, but a spiece\.model") as told:
        recognise(tmp_path)
    assert "google/umt5-xxl of Wan-AI" in str(told.value.hint)
