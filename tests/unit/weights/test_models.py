"""Which model a name means, and which one is taken where nothing was said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fpsgen.errors import ModelError, option
from fpsgen.settings import DEFAULTS
from fpsgen.solvers import FEW_STEPS
from fpsgen.weights import hub, models
from fpsgen.weights.known import MODELS, PIECES
from tests.tools import hub_cache

SIZE_480P, SIZE_720P = (832, 480), (1280, 720)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, wan_folder: Path) -> set[str]:
    """Names of the known models that are on disk; tests fill it."""
    names: set[str] = set()
    monkeypatch.setattr(hub, "on_disk", lambda key: wan_folder if key in names else None)
    return names


@pytest.mark.parametrize(
    ("present", "size", "name"),
    [
        ({"1.3b", "14b"}, None, "1.3b"),
        ({"1.3b", "14b"}, SIZE_480P, "1.3b"),
        ({"1.3b", "14b"}, SIZE_720P, "14b"),
        ({"1.3b"}, SIZE_720P, "1.3b"),
        ({"14b"}, SIZE_480P, "14b"),
    ],
)
def test_choice_with_cuda(disk: set[str], present: set[str], size: tuple[int, int] | None, name: str) -> None:
    disk |= present
    model, note = models.choose(size, cuda=True)
    assert model.name == name
    assert (note is not None) == (len(present) == 1)  # the second-best is said aloud


def test_cuda_without_weights_names_the_download(disk: set[str]) -> None:
    with pytest.raises(ModelError) as caught:
        models.choose(SIZE_720P, cuda=True)
    assert "69 GB" in caught.value.hint
    assert "fpsgen models pull 14b" in caught.value.hint
    assert caught.value.exit_code == 2


def test_another_model_of_text_alone_is_taken_before_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wan_folder: Path, both_formats: dict[str, Path]
) -> None:
    """Image-to-video models need an image; a single file is taken with parts that are in the cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    hub_cache.keep(tmp_path / "hub", MODELS["2.2-i2v"].sources["diffusers"].repository, wan_folder)
    with pytest.raises(ModelError):
        models.choose(SIZE_720P, cuda=True)
    file = tmp_path / "one" / MODELS["14b-fast"].files[0]
    file.parent.mkdir()
    shutil.copy(both_formats["original"] / "diffusion_pytorch_model.safetensors", file)
    hub_cache.keep(tmp_path / "hub", "lightx2v/Wan2.1-Distill-Models", file.parent)
    model, note = models.choose(SIZE_720P, cuda=True)
    assert model.name == "14b-fast"
    assert "Wan2.1 14b is not on this machine; using 14b-fast" in (note or "")


def test_without_cuda_it_is_the_pocket(disk: set[str], pocket_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.add("14b")
    monkeypatch.setattr("fpsgen.assets.folder", lambda name: pocket_folder)
    model, note = models.choose(SIZE_720P, cuda=False)
    assert model.name == "pocket"
    assert option("model") in note


def test_defaults_come_from_pocket_json_or_by_size(wan_folder: Path, pocket_folder: Path) -> None:
    assert models.open_folder(wan_folder, "x").defaults == DEFAULTS["1.3b"]  # small models are treated as the small one
    pocket = models.open_folder(pocket_folder, "pocket")
    assert (pocket.defaults.width, pocket.defaults.frames, pocket.defaults.guidance) == (96, 9, 3.0)
    assert pocket.tile((7, 6, 10)) == (2, 2, 2)
    assert models.open_folder(wan_folder, "x").tile((21, 45, 80)) == (3, 5, 8)


def test_broken_folders_are_explained(wan_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(wan_folder, tmp_path / "m"))
    config = folder / "transformer" / "config.json"
    config.write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        models.open_folder(folder, "m")
    config.write_text(json.dumps({"_class_name": "WanTransformer3DModel"}))
    with pytest.raises(ModelError, match="num_attention_heads"):
        models.open_folder(folder, "m")
    config.unlink()
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        models.open_folder(folder, "m")


@pytest.mark.parametrize(
    ("lost", "says"),
    [
        ("vae/diffusion_pytorch_model.safetensors", "vae holds no"),
        ("text_encoder/model.safetensors", "text_encoder holds no"),
        ("tokenizer/tokenizer.json", "tokenizer holds no"),
        ("vae/config.json", "vae holds no config"),
    ],
)
def test_lost_files_are_noticed_before_anything_loads(wan_folder: Path, tmp_path: Path, lost: str, says: str) -> None:
    folder = Path(shutil.copytree(wan_folder, tmp_path / "m"))
    (folder / lost).unlink()
    with pytest.raises(ModelError, match=says):
        models.open_folder(folder, "m")


def test_a_pocket_json_that_is_none_is_explained(wan_folder: Path, pocket_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(wan_folder, tmp_path / "m"))
    (folder / "pocket.json").write_text('{"size": [96, 64]}')
    with pytest.raises(ModelError, match="frames"):
        models.open_folder(folder, "m")
    described = json.loads((pocket_folder / "pocket.json").read_text())
    for key, value in (
        ("size", [0, 0]), ("size", [-32, 32]), ("frames", 2), ("frames", 1e400), ("fps", 0), ("tile", [0, 1, 1]),
        ("steps", 0), ("guidance", float("nan")), ("shift", 0), ("version", -1), ("knows", None), ("negative", 5),
        ("negative", "ugly \ud800"), ("subjects", 5), ("subjects", [5]), ("tries", [None]),
        ("tries", "a cat"),
    ):  # fmt: skip
        (folder / "pocket.json").write_text(json.dumps(described | {key: value}))
        with pytest.raises(ModelError, match=r"pocket\.json has"):
            models.open_folder(folder, "m")


def test_half_downloaded_snapshots_do_not_count(
    wan_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a listing, as older releases of huggingface-hub leave it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = hub_cache.keep(tmp_path, MODELS["14b"].sources["diffusers"].repository, wan_folder, listing=False)
    assert hub.on_disk("14b") == folder
    (folder / "text_encoder" / "model.safetensors").unlink()
    assert hub.on_disk("14b") is None
    assert hub.look(MODELS["14b"].sources["diffusers"].repository).folder == folder
    with pytest.raises(ModelError, match="text_encoder holds no") as caught:
        models.find("14b")
    assert "fpsgen models pull Wan-AI/Wan2.1-T2V-14B-Diffusers " in caught.value.hint


@pytest.mark.parametrize("key", MODELS)
def test_every_known_model_has_its_shapes_its_defaults_and_its_command(key: str) -> None:
    known, model = MODELS[key], models.absent(key)
    model.defaults.check()
    assert model.checkpoint.kind == known.kind
    assert f"{model.defaults.steps} steps" in known.about or "steps" not in known.about
    assert ("steps" in known.about) == (model.defaults.solver in FEW_STEPS)
    for source in known.sources.values():
        named = hub.short_name(source.repository, source.files)
        assert hub.source(named) in (source, known.sources.get("original"), hub.Source(source.repository, None))
    assert len(known.files) in ((0, 2) if model.checkpoint.transformer_2 else (0, 1))
    if len(known.files) == 2:
        assert ["high" in name for name in known.files] == [True, False]


def test_a_part_that_models_share_is_the_smallest_model_s_that_has_it() -> None:
    for name, piece in PIECES.items():
        assert hub.source(name) == piece
        assert hub.short_name(piece.repository, piece.files) == name
        assert piece.repository in hub.DOWNLOAD_GB
