"""Checkpoints of the published models' true names, shapes and dtypes, from an oracle that is not ours."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers
from typer.testing import CliRunner

from fpsgen.cli import app
from fpsgen.target import Target
from fpsgen.weights import hub, models, needs
from fpsgen.weights.headers import headers
from fpsgen.weights.known import MODELS
from fpsgen.weights.layout import NEEDED, recognise
from tests.tools import golden
from tests.tools.fake_checkpoint import SIZES, make
from tests.tools.videos import read
from tests.tools.watch import watch

BILLIONS = {"1.3b": 1.419, "14b": 14.288, "2.2-14b": 14.288, "5b": 5.000}
LARGEST_PART = 2 * sum(math.prod(shape) for shape in golden.text_encoder().values())  # bytes in bf16: UMT5-XXL


def check(*args: object) -> Any:
    return CliRunner().invoke(app, ["models", "check", *map(str, args)])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """Folders by size and format, headers only. Tests must not change them."""
    root = tmp_path_factory.mktemp("fake")
    found = {size: {form: root / size / form for form in ("original", "diffusers")} for size in SIZES}
    for size, folders in found.items():
        for form, folder in folders.items():
            make(size, form, folder, meta=True)
    return found


@pytest.mark.parametrize("size", sorted(SIZES))
@pytest.mark.parametrize("form", ["original", "diffusers"])
def test_published_checkpoints_are_whole(checkpoints: dict, size: str, form: str) -> None:
    result = check(checkpoints[size][form], "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["format"] == form
    assert told["parameters"] / 1e9 == pytest.approx(BILLIONS[size], abs=5e-4)
    wanted = {key: value for key, value in SIZES[size].items() if key != "in_dim"}
    assert {key: told[key] for key in wanted} == wanted
    assert told["dtypes"]["text_encoder"] == ["BF16" if form == "original" or size == "5b" else "F32"]
    # What the hint before a download says; the published folder of Wan2.2 has its text encoder in bfloat16.
    less = LARGEST_PART / 1e9 if (size, form) == ("2.2-14b", "diffusers") else 0
    assert told["bytes"] / 1e9 - less == pytest.approx(hub.DOWNLOAD_GB[MODELS[size].sources[form].repository], abs=1)


@pytest.mark.parametrize("form", ["original", "diffusers"])
@pytest.mark.parametrize(("size", "billions"), [("2.2-i2v", 14.289), ("i2v-14b", 16.395), ("flf2v-14b", 16.396)])
def test_checkpoints_that_begin_with_an_image_are_whole(tmp_path: Path, size: str, billions: float, form: str) -> None:
    """With two experts, or with an image encoder beside the others."""
    make(size, form, tmp_path / "m", meta=True)
    result = check(tmp_path / "m", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["parameters"] / 1e9 == pytest.approx(billions, abs=5e-4)
    assert len(told["dtypes"]) == 4
    assert recognise(tmp_path / "m").kind == size
    # What the hint before a download says; the published folder of Wan2.2 has its text encoder in bfloat16. The image
    # encoder's text half, of about 1 GB, is left out here.
    known = next(known for known in MODELS.values() if known.kind == size and known.sources["original"].gb)
    less = LARGEST_PART / 1e9 if (size, form) == ("2.2-i2v", "diffusers") else 0
    assert told["bytes"] / 1e9 - less == pytest.approx(known.sources[form].gb, abs=2)


@pytest.mark.parametrize("experts", [False, True])
def test_fp8_checkpoints_of_true_size_are_whole(tmp_path: Path, experts: bool) -> None:
    make("14b", "original", tmp_path / "m", meta=True, fp8=True, experts=experts)
    told = json.loads(check(tmp_path / "m", "--json").stdout)
    assert told["parameters"] / 1e9 == pytest.approx(BILLIONS["14b"], abs=5e-4)
    assert told["dtypes"]["transformer"] == ["BF16", "F8_E4M3"]
    others = LARGEST_PART + 4 * sum(math.prod(shape) for shape in golden.vae().values())
    assert (told["bytes"] - others) / (2 if experts else 1) == pytest.approx(14.8e9, rel=0.03)
    target = Target(torch.device("cpu"), torch.bfloat16, torch.bfloat16)
    needed = needs.weights(models.find(str(tmp_path / "m")).checkpoint, target)
    transformers = [size for part, size in needed.items() if part not in ("VAE", "text encoder")]
    assert transformers == [pytest.approx(14.8e9, rel=0.03)] * (2 if experts else 1)


@pytest.mark.parametrize("size", sorted(SIZES))
def test_both_formats_hold_the_same_parameters(checkpoints: dict, size: str) -> None:
    ours, theirs = (recognise(folder) for folder in checkpoints[size].values())
    assert ours.config == theirs.config
    for name, part in ((name, ours.part(name)) for name in NEEDED):
        shapes = [
            {part.rename(key): header.shape for key, header in headers(getattr(one, name)).items()}
            for one in (ours, theirs)
        ]
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize("size", sorted(SIZES))
def test_golden_shapes_become_diffusers_own(checkpoints: dict, size: str) -> None:
    """What was written down from the original's source is, through diffusers' converters, what its classes hold. The
    converter of Wan2.2's VAE is in no package (tests/unit/weights/test_keys.py)."""
    dims = [SIZES[size][key] for key in ("dim", "ffn_dim", "num_layers")]
    folder = recognise(checkpoints[size]["diffusers"])
    own = golden.transformer(*dims, folder.config.in_channels)
    converters = [(own, convert_wan_transformer_to_diffusers, folder.transformer)]
    converters += [(golden.vae(), convert_wan_vae_to_diffusers, folder.vae)] if size != "5b" else []
    for shapes, converter, files in converters:
        converted = converter({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
        theirs = {name: header.shape for name, header in headers(files).items()}
        assert {name: tuple(value.shape) for name, value in converted.items()} == theirs


def test_damage_to_a_large_checkpoint_is_told(checkpoints: dict, tmp_path: Path) -> None:
    whole, small = checkpoints["14b"]["original"], checkpoints["1.3b"]["original"]
    for file in whole.iterdir():
        (tmp_path / file.name).symlink_to(file)
    shard = tmp_path / "diffusion_pytorch_model-00003-of-00006.safetensors"

    def told() -> str:
        result = check(tmp_path)
        assert result.exit_code == 2, result.output
        return " ".join(result.stderr.split())

    shard.unlink()
    assert f"lacks 1 of 6 weight files: {shard.name}" in told()
    shard.symlink_to(small / "diffusion_pytorch_model.safetensors")
    assert "repeats" in told()
    shard.unlink()
    shard.symlink_to(whole / "diffusion_pytorch_model-00004-of-00006.safetensors")
    assert "repeats" in told()
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").unlink()
    for file in tmp_path.glob("diffusion*"):
        file.unlink()
    shard.symlink_to(small / "diffusion_pytorch_model.safetensors")
    assert "its config.json says dim = 5120; its weights have 1536" in told()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RssAnon is Linux's")
def test_the_whole_product_on_a_checkpoint_of_true_size(tmp_path: Path) -> None:
    """18 GB of disk, 15 GB of memory. Nobody can look at the picture: the weights are random."""
    folder, output = tmp_path / "m", tmp_path / "cat.mp4"
    command = [
        *(sys.executable, "-m", "fpsgen", "generate", "a cat", "--model", str(folder)),
        *("--res", "128x128", "--frames", "5", "--steps", "2", "-o", str(output), "--json"),
    ]
    try:
        make("1.3b", "original", folder, meta=False)
        found = watch(command)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # pytest keeps its folders for three runs
    # One component at a time, each in memory once, and 1.5 GB for Python, the libraries and activations.
    assert found["peak_rss_anon_bytes"] <= 1.15 * LARGEST_PART + 1.5e9
    timings = found["result"]["timings"]
    assert all(timings[phase] > 0 for phase in ("load", "text", "denoise", "decode", "encode", "total"))
    assert len(timings["steps"]) == 2
    assert len(read(output)[1]) == 5
