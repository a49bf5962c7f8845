"""`fpsgen models`: check and convert, on small checkpoints in both formats."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fpsgen.cli import app
from fpsgen.settings import DEFAULTS
from fpsgen.weights.layout import NEEDED, PARTS
from tests.tools.cli import models, told
from tests.tools.image_pipeline import make_image_pipeline, save_image_original
from tests.tools.wan_pipeline import make_plain_pipeline, save_original

T5 = "models_t5_umt5-xxl-enc-bf16.pth"


def test_check_says_what_it_is(both_formats: dict[str, Path]) -> None:
    for form, folder in both_formats.items():
        report = told(models("check", folder, "--json"), "models check")
        assert report["format"] == form
        assert report["dim"] == 128
        assert report["dtypes"] == {"transformer": ["F32"], "vae": ["F32"], "text_encoder": ["F32"]}
    assert "a whole Wan2.1 text-to-video checkpoint" in models("check", both_formats["original"]).stdout


def test_check_says_what_two_experts_in_files_of_their_own_are(both_formats: dict[str, Path], tmp_path: Path) -> None:
    place = tmp_path / "models" / "diffusion_models"
    place.mkdir(parents=True)
    state = load_file(both_formats["original"] / "diffusion_pytorch_model.safetensors")
    names = [f"wan2.2_t2v_{noise}_noise_14B_fp16.safetensors" for noise in ("high", "low")]
    for name in names:
        save_file({key: value.half() for key, value in state.items()}, place / name)
    whole = both_formats["diffusers"]
    parts = ("--text-encoder", whole / "text_encoder", "--vae", whole / "vae")
    report = told(models("check", place / names[1], *parts, "--json"), "models check")
    assert report["kind"] == "2.2-14b"
    assert report["files"]["transformer"] == [str(place / names[0])]
    assert report["files"]["vae"] == [str(whole / "vae" / "diffusion_pytorch_model.safetensors")]
    said = models("check", tmp_path / "models", *parts).stdout
    assert "a whole Wan2.2 text-to-video checkpoint of two experts in original format" in said
    assert "parameters in each expert (F16)" in said


def test_a_transformer_and_its_parts_become_one_diffusers_folder(both_formats: dict[str, Path], tmp_path: Path) -> None:
    file = shutil.copy(both_formats["original"] / "diffusion_pytorch_model.safetensors", tmp_path / "x.safetensors")
    original = both_formats["original"]
    parts = ("--text-encoder", original / T5, "--vae", original / "Wan2.1_VAE.pth")
    assert models("convert", file, tmp_path / "whole", *parts).exit_code == 0
    theirs = WanPipeline.from_pretrained(tmp_path / "whole")
    wanted = WanPipeline.from_pretrained(both_formats["diffusers"])
    for part in NEEDED:
        first, second = (getattr(pipeline, part).state_dict() for pipeline in (theirs, wanted))
        assert all(torch.equal(first[name], second[name]) for name in second)


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change(file: Path, **entries: torch.Tensor | None) -> None:
    """Replace, add or, with None, remove tensors of a safetensors file."""
    state = {name.replace("__", "."): value for name, value in entries.items()}
    save_file({name: value for name, value in (load_file(file) | state).items() if value is not None}, file)


DAMAGE: list[tuple[str, str, Callable[[Path], object], str]] = [
    ("original", "diffusion_pytorch_model.safetensors", shorten, "is damaged"),
    ("original", T5, shorten, "is damaged"),
    ("original", "Wan2.1_VAE.pth", shorten, "is damaged"),
    ("original", "Wan2.1_VAE.pth", Path.unlink, "lacks Wan2.1_VAE.pth"),
    ("original", "Wan2.1_VAE.pth", lambda file: torch.save({"conv1.weight": os.system}, file), "more than tensors"),
    ("original", "google/umt5-xxl/tokenizer.json", shorten, "tokenizer"),
    ("original", "google/umt5-xxl/tokenizer_config.json", shorten, "tokenizer"),
    ("original", "config.json", shorten, "not valid JSON"),
    ("diffusers", "transformer/diffusion_pytorch_model.safetensors", shorten, "is damaged"),
    (
        "diffusers",
        "transformer/diffusion_pytorch_model.safetensors",
        lambda file: change(file, condition_embedder__time_proj__bias=None),
        "1 missing: time_projection.1.bias",
    ),
    (
        "diffusers",
        "vae/diffusion_pytorch_model.safetensors",
        lambda file: change(file, surprise=torch.zeros(2)),
        "1 unexpected: surprise",
    ),
    (
        "diffusers",
        "text_encoder/model.safetensors",
        lambda file: change(file, shared__weight=torch.zeros(13, 24, dtype=torch.int8)),
        "lacks the scales of 8-bit weights, 1 in all: shared.weight",
    ),
    (
        "diffusers",
        "text_encoder/model.safetensors",
        lambda file: change(file, encoder__final_layer_norm__weight=torch.zeros(5)),
        "1 of another shape: encoder.final_layer_norm.weight [5], not [24]",
    ),
]


@pytest.mark.parametrize(("form", "name", "damage", "says"), DAMAGE)
def test_every_damage_is_one_sentence_and_exit_code_2(
    both_formats: dict[str, Path], tmp_path: Path, form: str, name: str, damage: Callable[[Path], object], says: str
) -> None:
    folder = Path(shutil.copytree(both_formats[form], tmp_path / "m"))
    damage(folder / name)
    for result in (
        models("check", folder),
        CliRunner().invoke(app, ["generate", "cat", "--model", str(folder), "-o", str(tmp_path / "a.mp4")]),
    ):
        assert result.exit_code == 2, result.output
        assert says in " ".join(result.stderr.split())
        assert result.stderr.count("error:") == 1
        assert "Traceback" not in result.output


def test_convert_round_trip_is_exact(both_formats: dict[str, Path], tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    told(models("convert", both_formats["diffusers"], there, "--json"), "models convert")
    assert models("convert", there, back, "--to", "diffusers").exit_code == 0
    for name in NEEDED:
        part = PARTS[name]
        file = f"{name}/{part.stem}.safetensors"
        first, last = (load_file(folder / file) for folder in (both_formats["diffusers"], back))
        assert first.keys() == last.keys()
        assert all(torch.equal(first[key], last[key]) and first[key].dtype == last[key].dtype for key in first)
    hand_made = load_file(both_formats["original"] / "diffusion_pytorch_model.safetensors")
    written = load_file(there / "diffusion_pytorch_model.safetensors")
    assert hand_made.keys() == written.keys()
    for file in (T5, "Wan2.1_VAE.pth"):
        ours, theirs = (torch.load(folder / file, weights_only=True) for folder in (there, both_formats["original"]))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    WanPipeline.from_pretrained(back)  # what we write, diffusers reads


@pytest.mark.parametrize(
    "kind",
    ["i2v-14b", "2.2-i2v", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("flf2v-14b", "2.2-14b", "5b"))],
)
def test_every_kind_of_model_is_converted_there_and_back(kind: str, tmp_path: Path) -> None:
    """What is written is a pipeline of diffusers', with the same parameters as the one that the files are of."""
    there, back, original = (tmp_path / name for name in ("there", "back", "original"))
    if "i2v" in kind or "flf2v" in kind:
        own, save = make_image_pipeline(kind), save_image_original
    else:
        channels, boundary = 48 if kind == "5b" else 16, 0.875 if kind == "2.2-14b" else None
        own, save = make_plain_pipeline(5, boundary, channels), save_original
    original.mkdir()
    save(own, original)
    assert models("convert", original, there).exit_code == 0
    read = type(own).from_pretrained(there)
    for name in ("boundary_ratio", "expand_timesteps"):
        assert read.config[name] == own.config[name]
    parts = [name for name, part in own.components.items() if isinstance(part, torch.nn.Module)]
    assert {*parts} == {name for name, part in read.components.items() if isinstance(part, torch.nn.Module)}
    for name in parts:
        first, second = (getattr(pipeline, name).state_dict() for pipeline in (own, read))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name
    assert models("convert", there, back).exit_code == 0
    first, second = (told(models("check", folder, "--json")) for folder in (original, back))
    assert (first["kind"], first["parameters"]) == (second["kind"], second["parameters"]) != ("", 0)
    files = [path.relative_to(back).as_posix() for path in back.rglob("*.safetensors")]
    assert ("clip_vision_h.safetensors" in files) == ("image_encoder" in parts)


def test_convert_refuses_what_would_lose_something(
    both_formats: dict[str, Path], wan_folder: Path, tmp_path: Path
) -> None:
    other_norm = Path(shutil.copytree(both_formats["diffusers"], tmp_path.parent / "other_norm"))
    config = other_norm / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"layer_norm_epsilon": 0.01}))
    (tmp_path / "b.partial").mkdir()
    cases = (
        (both_formats["original"], tmp_path / "a", ("--to", "original"), "in original format already"),
        (both_formats["original"], tmp_path, (), "exists already"),
        (both_formats["original"], "~nobody-of-that-name/a", (), "no such user"),
        (both_formats["original"], tmp_path / "no" / "a", (), "does not exist"),
        (wan_folder, tmp_path / "a", (), "no place for the settings of its VAE (dim_mult, num_res_blocks"),
        ("pocket", tmp_path / "a", (), "latents_mean"),
        (other_norm, tmp_path / "a", (), "of its text encoder (layer_norm_epsilon)"),
        (both_formats["original"], both_formats["original"] / "google" / "umt5-xxl" / "a", (), "inside the tokenizer"),
        (both_formats["original"], tmp_path / ("x" * 250), (), "cannot be made"),
        (both_formats["original"], tmp_path / "b", (), "b.partial exists: another run is making b"),
        (tmp_path / "nothing", tmp_path / "a", (), "there is no model"),
    )
    for source, out, more, says in cases:
        result = models("convert", source, out, *more)
        assert result.exit_code == 2, result.output
        assert says in " ".join(result.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == ["b.partial"]


def test_a_finished_conversion_is_never_thrown_away(
    both_formats: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something came to lie in its place while it was made."""
    out, save = tmp_path / "out", torch.save

    def in_the_way(*args: object) -> None:
        save(*args)
        out.write_text("mine")

    monkeypatch.setattr("torch.save", in_the_way)
    result = models("convert", both_formats["diffusers"], out)
    assert result.exit_code == 1
    assert out.read_text() == "mine"
    assert models("check", tmp_path / "out.partial").exit_code == 0
    assert f"is in {tmp_path / 'out.partial'}" in "".join(result.stderr.splitlines())


def test_converted_settings_are_the_models(both_formats: dict[str, Path], tmp_path: Path) -> None:
    assert models("convert", both_formats["original"], tmp_path / "a").exit_code == 0
    scheduler = json.loads((tmp_path / "a" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["flow_shift"] == DEFAULTS["1.3b"].shift
    for part in ("transformer", "vae", "text_encoder"):
        written, wanted = (
            json.loads((folder / part / "config.json").read_text())
            for folder in (tmp_path / "a", both_formats["diffusers"])
        )
        for key in wanted.keys() - {
            "_diffusers_version",
            "_name_or_path",
            "transformers_version",
            "dtype",
            "dropout_rate",
        }:
            assert written.get(key) == wanted[key], key


def test_code_beside_a_tokenizer_is_not_run(both_formats: dict[str, Path], tmp_path: Path) -> None:
    folder, witness = Path(shutil.copytree(both_formats["diffusers"], tmp_path / "m")), tmp_path / "witness"
    file = folder / "tokenizer" / "tokenizer_config.json"
    told_of = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
    file.write_text(json.dumps(json.loads(file.read_text()) | told_of))
    (folder / "tokenizer" / "evil.py").write_text(f"open({str(witness)!r}, 'w')\nclass Evil: pass\n")
    result = CliRunner().invoke(app, ["models", "check", str(folder)], input="y\n")
    assert result.exit_code in (0, 2), result.output
    assert not witness.exists()
    converted = models("convert", both_formats["diffusers"], tmp_path / "o")
    assert converted.exit_code == 0
    assert not list((tmp_path / "o").rglob("*.py"))


def test_an_interrupted_conversion_leaves_nothing(
    both_formats: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.save", interrupted)
    assert models("convert", both_formats["diffusers"], tmp_path / "a").exit_code == 130
    assert list(tmp_path.iterdir()) == []
