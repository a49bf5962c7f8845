"""The folder of training data: what was written is read, a stopped run goes on, damage is told."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fpsgen.errors import UsageError
from fpsgen.train import data
from fpsgen.train.data import Data, DataWriter, Origin, Sample, index_of
from fpsgen.weights import load
from fpsgen.weights.models import open_folder
from tests.tools.disk import fill_disk
from tests.tools.training_data import INDEX, made, sample, tree


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three samples in each."""
    monkeypatch.setattr(data, "_MOST", 3)


def alike(one: Sample, other: Sample) -> bool:
    pairs = [(one.latents, other.latents), *zip(one.texts, other.texts, strict=True), (one.weight, other.weight)]
    pairs += [*zip(one.taught, other.taught, strict=True)] if one.taught and other.taught else []
    assert (one.taught is None) == (other.taught is None)
    return all(a is b or (a.dtype == b.dtype and torch.equal(a, b)) for a, b in pairs)


def refused(folder: Path) -> str:
    """What is said of a folder that cannot be read, in one sentence."""
    with pytest.raises(UsageError) as told:
        Data.open(folder).sample(0)
    assert told.value.hint
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize("kinds", [{}, {"captions": 3}, {"weighed": True}, {"levels": 2}], ids=str)
def test_what_is_written_is_read(tmp_path: Path, small_shards: None, kinds: dict[str, Any]) -> None:
    samples = made(tmp_path / "data", 7, **kinds)
    found = Data.open(tmp_path / "data")
    assert len(found) == 7
    assert [len(shard.samples) for shard in found.index.shards] == [3, 3, 1]
    assert found.index.origins == [Origin(f"prompt {number}", number) for number in range(7)]
    assert all(alike(found.sample(number), one) for number, one in enumerate(samples))
    assert torch.equal(found.negative, sample(999).texts[0])


def test_a_shard_has_as_many_samples_as_fit() -> None:
    large = replace(INDEX, latent_shape=(21, 90, 160))  # 81 frames of 1280x720, 19 MB
    assert INDEX.samples_per_shard == 16
    assert large.samples_per_shard == 3
    assert replace(large, made={"teacher": 20}).samples_per_shard == 1


def test_texts_are_kept_without_padding(tmp_path: Path) -> None:
    padded = torch.zeros(1, 10, 24)
    padded[0, :4] = 1.0
    data.write(tmp_path / "data", INDEX, padded, [(Origin("a cat"), Sample(torch.zeros(16, 3, 8, 12), [padded]))])
    kept = load_file(tmp_path / "data" / "shard-00000.safetensors")
    assert kept["0.text.0"].shape == kept["negative"].shape == (4, 24)
    assert torch.equal(Data.open(tmp_path / "data").sample(0).texts[0], padded[0].bfloat16())


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it was stopped, the files are those of a run that was not."""
    made(tmp_path / "whole", 8)
    writes: list[Path] = []
    real = Path.replace
    for stop in range(1, 7):  # of an index and three shards, each with the index
        folder = tmp_path / f"stopped{stop}"
        writes.clear()

        def replaced(self: Path, target: Path, stop: int = stop) -> Path:
            writes.append(target)
            if len(writes) == stop:
                raise KeyboardInterrupt
            return real(self, target)

        monkeypatch.setattr(Path, "replace", replaced)
        with pytest.raises(KeyboardInterrupt):
            made(folder, 8)
        monkeypatch.setattr(Path, "replace", real)
        made(folder, 8)
        assert tree(folder) == tree(tmp_path / "whole")


def test_a_full_disk_loses_nothing(tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "data", 3)
    before = tree(tmp_path / "data")
    fill_disk(monkeypatch, ".safetensors")
    with pytest.raises(UsageError, match="No space left on device"):
        made(tmp_path / "data", 6)
    assert tree(tmp_path / "data") == before
    monkeypatch.undo()
    assert len(Data.open(tmp_path / "data")) == 3


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years")
    file = tmp_path / "file"
    file.write_text("")
    for place in (other, file, file / "below"):
        with pytest.raises(UsageError):
            DataWriter(place, INDEX)
    assert tree(other) == {"thesis.txt": b"years"}


@pytest.mark.parametrize(
    "change", [{"frames": 5}, {"made": {"by": "foot"}}, {"negative": "blur"}, {"vae": "w"}], ids=str
)
def test_another_run_s_folder_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    made(tmp_path / "data", 2)
    before = tree(tmp_path / "data")
    with pytest.raises(UsageError):
        DataWriter(tmp_path / "data", replace(INDEX, **change))
    assert tree(tmp_path / "data") == before


def test_damage_is_told(tmp_path: Path, small_shards: None) -> None:
    made(tmp_path / "good", 5)
    shard = "shard-00001.safetensors"

    def damaged(name: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(tmp_path / "good", folder)
        return folder

    assert "there is no folder" in refused(tmp_path / "nowhere")
    (damaged("index") / "index.json").unlink()
    (damaged("json") / "index.json").write_text("{")
    (damaged("missing") / shard).unlink()
    cut = damaged("cut") / shard
    cut.write_bytes(cut.read_bytes()[:-1])
    (damaged("pickled") / shard).write_bytes(b"PK\3\4" + bytes(100))
    for name in ("index", "json", "missing", "cut", "pickled"):
        assert refused(tmp_path / name)
    flipped = damaged("flipped") / "shard-00000.safetensors"
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.write_bytes(content)
    assert "content" in refused(tmp_path / "flipped")


@pytest.mark.parametrize(
    "change",
    [{"0.latents": torch.zeros(16, 3, 8, 11)}, {"0.latents": torch.zeros(16, 3, 8, 12).half()}, {"0.text.0": None},
     {"1.text.0": torch.zeros(2, 23).bfloat16()}, {"1.text.0": torch.zeros(11, 24).bfloat16()}, {"negative": None},
     {"0.weight": torch.zeros(3, 8, 12)}, {"0.velocity": torch.zeros(1, 16, 3, 8, 12).bfloat16()},
     {"0.level": torch.zeros(1)}, {"0.level": torch.tensor(1.0)}, {"strange": torch.zeros(1)}],
    ids=lambda change: " ".join(change),
)  # fmt: skip
def test_tensors_of_other_shapes_are_refused(tmp_path: Path, change: dict[str, torch.Tensor | None]) -> None:
    made(tmp_path, 2)
    tensors = load_file(tmp_path / "shard-00000.safetensors") | change
    save_file({name: own for name, own in tensors.items() if own is not None}, tmp_path / "shard-00000.safetensors")
    with pytest.raises(UsageError, match=r"shard-00000\.safetensors"):
        Data.open(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"version": 2}, {"shards": 3}, {"shards": [{"file": "../x", "sha256": "", "samples": []}]}, {"size": [96]},
     {"frames": "9"}, {"latent_shape": [3, 8, 11]}, {"text_length": "x"}, {"made": []}, {"more": 1}, {"shards": []}],
    ids=str,
)  # fmt: skip
def test_an_index_that_says_something_else_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    made(tmp_path, 2)
    told = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(told | change))
    assert refused(tmp_path)


def test_other_models_data_are_refused(tmp_path: Path, pocket_folder: Path, both_formats: dict[str, Path]) -> None:
    model = open_folder(pocket_folder, "small")
    index = replace(index_of(model, model.defaults, by="hand"))
    assert (index.size, index.frames, index.latent_shape, index.family) == ((96, 64), 9, (3, 8, 12), "pocket")
    length = index.text_length
    text = torch.ones(length, index.text_dim)
    data.write(tmp_path / "data", index, text, [(Origin("a cat"), Sample(torch.zeros(16, 3, 8, 12), [text]))])
    found = Data.open(tmp_path / "data")
    found.check(model)
    with pytest.raises(UsageError, match="another family"):
        found.check(open_folder(both_formats["diffusers"], "other"))
    taught = {"teacher": 1, "weights": load.identity(model.checkpoint, "transformer")}
    Data(found.folder, replace(found.index, made=taught)).check(model)
    for field, value, name in (
        ("text_encoder", "0", "text encoder"), ("vae", "0", "VAE"), ("made", taught | {"weights": "0"}, "transformer"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"another {name}"):
            Data(found.folder, replace(found.index, **{field: value})).check(model)


def test_parts_are_known_in_either_format(both_formats: dict[str, Path], wan_folder: Path) -> None:
    one, same, other = (open_folder(f, "").checkpoint for f in (*both_formats.values(), wan_folder))
    for part in ("transformer", "text_encoder", "vae"):
        assert load.identity(one, part) == load.identity(same, part) != load.identity(other, part)
