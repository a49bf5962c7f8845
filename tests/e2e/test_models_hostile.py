"""What a checkpoint writes of its own accord ends in sentences, not on the terminal; and nothing of it is an internal
error or is waited for."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fpsgen.errors import ModelError
from fpsgen.weights import load
from fpsgen.weights import models as by_name
from tests.tools.cli import models

FORGED = "a\nerror: forged\nhint: run \x1b[31m\u202erm -rf"
LONG = "x" * 1_000_000
T5, VAE, DIT = "models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth", "diffusion_pytorch_model.safetensors"


@pytest.fixture
def original(both_formats: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(both_formats["original"], tmp_path / "m"))


@pytest.fixture
def pocket(pocket_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pocket_folder, tmp_path / "p"))


def refused(*args: object) -> str:
    """What a command says, after a look at how."""
    result = models(*args)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("error:") - result.stderr.count("\\nerror:") == 1
    assert "\nhint:" in result.stderr
    assert len(result.stderr) < 1500
    assert all(letter.isprintable() or letter == "\n" for letter in result.stderr)
    return " ".join(result.stderr.split())


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("words", [FORGED, LONG, "\ud800"])
@pytest.mark.parametrize(
    ("file", "field"),
    [
        ("transformer/config.json", "_class_name"),
        ("transformer/config.json", "patch_size"),
        ("transformer/config.json", "num_layers"),
        ("transformer/config.json", "eps"),
        ("model_index.json", "_class_name"),
        ("vae/config.json", "_class_name"),
        ("vae/config.json", "z_dim"),
        ("vae/config.json", "dim_mult"),
        ("text_encoder/config.json", "model_type"),
        ("text_encoder/config.json", "d_model"),
        ("text_encoder/config.json", "d_kv"),
        ("pocket.json", "version"),
        ("pocket.json", "tile"),
        ("pocket.json", "fps"),
    ],
)
def test_a_configurations_words_are_made_printable(pocket: Path, file: str, field: str, words: str) -> None:
    if (pocket / file).is_symlink() or (pocket / file).parent.is_symlink():
        pytest.fail("the copy must not lead to the original")
    change(pocket / file, **{field: words})
    refused("check", pocket)


@pytest.mark.parametrize("words", [FORGED, LONG])
def test_an_original_configurations_words_are_made_printable(original: Path, words: str) -> None:
    for field in ("model_type", "dim", "num_heads", "eps"):
        before = (original / "config.json").read_text()
        change(original / "config.json", **{field: words})
        refused("check", original)
        (original / "config.json").write_text(before)


@pytest.mark.parametrize("words", [FORGED, LONG])
def test_names_of_tensors_are_made_printable(original: Path, words: str) -> None:
    state = load_file(original / DIT)
    save_file(state | {words: torch.zeros(1)}, original / DIT)
    assert "1 unexpected" in refused("check", original)
    save_file(state | {f"model.diffusion_model.{n}": torch.zeros(1) for n in (words,)}, original / DIT)
    refused("check", original)
    save_file({words: torch.zeros(1)}, original / "alone.safetensors")
    assert "its tensors are called" in refused("check", original / "alone.safetensors")
    save_file(state, original / DIT)
    (original / "alone.safetensors").unlink()
    vae = torch.load(original / VAE, weights_only=True)
    torch.save(vae | {words: torch.zeros(1)}, original / VAE)
    refused("check", original)


@pytest.mark.parametrize("words", [FORGED, LONG, "\ud800", "a\0b", f"../{FORGED}"])
def test_names_in_an_index_are_made_printable(original: Path, words: str) -> None:
    index = {"weight_map": {"head.modulation": words}}
    (original / f"{DIT}.index.json").write_text(json.dumps(index))
    refused("check", original)


def test_a_pockets_words_are_made_printable_before_anybody_prints_them(pocket: Path) -> None:
    change(pocket / "pocket.json", knows=FORGED)
    described = by_name.open_folder(pocket, "p").pocket
    assert described is not None
    assert described["knows"].isprintable()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tile", [10**21] * 3),
        ("tile", [2, 2]),
        ("negative", "\ud800"),
        ("version", 10**21),
        ("size", [[]]),
        ("fps", 1e999),
    ],
)
def test_a_pocket_json_that_cannot_be_is_refused_with_its_field(pocket: Path, field: str, value: Any) -> None:
    change(pocket / "pocket.json", **{field: value})
    assert f"pocket.json has {field} =" in refused("check", pocket)


def test_sizes_beyond_all_models_are_refused(pocket: Path) -> None:
    change(pocket / "transformer" / "config.json", num_attention_heads=2**19, attention_head_dim=2**19)
    assert "dim = 274877906944" in refused("check", pocket)


@pytest.mark.parametrize("name", ["~nobody-of-that-name/m", "a\0b", "x" * 100_000, FORGED, "\udcff"])
def test_a_name_that_can_be_no_model_is_no_internal_error(name: str) -> None:
    assert "there is no model" in refused("check", name)


def test_a_zip_of_several_disks_is_damaged(original: Path) -> None:
    content = (original / VAE).read_bytes()
    end = content.rindex(b"PK\5\6")
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, 1, 1)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 3)
    (original / VAE).write_bytes(content[:end] + record + locator + content[end:])
    assert f"{VAE} is damaged" in refused("check", original)


def test_a_pickle_that_promises_more_than_its_file_holds_is_damaged(original: Path) -> None:
    """A view with strides of 0 of a single value, which unpickling would take, and one beyond its storage."""
    wide = torch.zeros(1).expand(2**20, 2**20)
    torch.save(torch.load(original / T5, weights_only=True) | {"norm.weight": wide}, original / T5)
    refused("check", original)
    content = bytearray((original / VAE).read_bytes())
    place = content.index(b"decoder.conv1.bias")
    count = content.index(b"cpu", place) if b"cpu" in content[place : place + 300] else content.index(b"K", place + 20)
    content[count + 1] ^= 0x7F  # some number of the first tensor's
    (original / VAE).write_bytes(content)
    refused("check", original)


def test_json_without_end_is_told(pocket: Path) -> None:
    for text in ("[" * 1_000_000, '{"a":' * 100_000, "9" * 10_000):
        (pocket / "vae" / "config.json").write_text(text)
        assert "is not valid JSON: a number or brackets without end" in refused("check", pocket)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize("name", ["config.json", VAE, DIT, "google/umt5-xxl/tokenizer.json", f"{DIT}.index.json"])
def test_no_pipe_among_a_models_files_is_waited_for(original: Path, name: str) -> None:
    (original / name).unlink(missing_ok=True)
    os.mkfifo(original / name)
    refused("check", original)
    (original / name).unlink()
    (original / name).symlink_to("/dev/zero")
    refused("check", original)


def test_a_folder_that_became_a_file_is_told(original: Path) -> None:
    """Between looking and loading."""
    checkpoint = by_name.find(str(original)).checkpoint
    shutil.rmtree(original)
    original.write_text("a file now")
    for look in (lambda: load.check(checkpoint), lambda: checkpoint.bytes):
        with pytest.raises(ModelError, match="cannot be read"):
            look()
    refused("check", original / DIT)


def test_a_file_that_cannot_be_mapped_is_told_as_memory(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **more: object) -> None:
        raise RuntimeError("unable to mmap 11361920418 bytes from file <t5.pth>: Cannot allocate memory (12)")

    monkeypatch.setattr("torch.load", full)
    with pytest.raises(MemoryError):
        load.load_text_encoder(by_name.find(str(original)).checkpoint, torch.device("cpu"), torch.float32).encode(
            "a cat"
        )
