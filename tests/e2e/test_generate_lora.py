"""`fpsgen generate --lora`: what it changes, what is said of it, and what is refused."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fpsgen.train.student import Student
from fpsgen.weights import lora
from fpsgen.weights.convert import write_model
from fpsgen.weights.load import load_transformer
from fpsgen.weights.models import open_folder
from tests.tools.cli import Runner, invoke
from tests.tools.lora import adapters, tensors, write
from tests.tools.videos import metadata, read

CPU = torch.device("cpu")
MEASURED = """format = 1
tile = [1, 2, 2]
[[phase]]
sigma = [1.0, 0.0]
window = [1, 1, 1]
[measured]
weights = "{weights}"
size = "96x64"
frames = 5
steps = 2
shift = 8.0
guidance = 6.0
clips = 8
density = 0.5
cost = 0.4
error = 0.01
psnr = 31.25
psnr_worst = 28.0
device = "cpu"
fpsgen = "0.1.0"
torch = "2.13.0"
"""


@pytest.fixture
def file(run: Runner, tmp_path: Path) -> Path:
    return write(tmp_path / "style.safetensors", open_folder(run.folder, "small").config)


def test_a_lora_changes_the_picture_by_its_scale_and_is_recorded(run: Runner, file: Path) -> None:
    plain, half, whole = run(), run(lora=f"{file}:0.5"), run(lora=file)
    pictures = [read(told["output"])[1] for told in (plain, half, whole, run(lora=f"{file}:0"))]
    assert (pictures[0] != pictures[1]).any()
    assert (pictures[1] != pictures[2]).any()
    assert (pictures[0] == pictures[3]).all()
    assert plain["loras"] == []
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert half["loras"] == [{"file": str(file), "scale": 0.5, "sha256": digest, "expert": None, "path": str(file)}]
    assert metadata(half["output"])["loras"] == half["loras"]
    assert len({told["weights"] for told in (plain, half, whole)}) == 3


def test_several_loras_add_up_in_any_order(run: Runner, file: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other:2", open_folder(run.folder, "small").config, seed=5)
    options = ("--model", run.folder, "--res", "96x64", "--frames", 5, "--steps", 2, "--seed", 1)
    pictures = []
    for number, given in enumerate(((file, other), (other, file))):
        out = tmp_path / f"order-{number}.mp4"
        result = invoke("a cat", *options, "-o", out, "--lora", given[0], "--lora", given[1])
        assert result.exit_code == 0, result.output
        assert len(metadata(out)["loras"]) == 2
        pictures.append(read(out)[1])
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[0] != run.frames("a cat", lora=file)).any()


def test_a_preset_that_was_measured_without_it_says_so(run: Runner, file: Path, tmp_path: Path) -> None:
    preset = tmp_path / "mine.toml"
    preset.write_text(MEASURED.format(weights=run()["weights"]))
    options = ("--model", run.folder, "--res", "96x64", "--frames", 5, "--steps", 2, "--preset", preset)
    for more, told in ((), False), (("--lora", file), True):
        result = invoke("a cat", *options, *more, "-o", tmp_path / "v.mp4")
        assert result.exit_code == 0, result.output
        assert ("was measured with other weights" in " ".join(result.stderr.split())) is told


def test_what_training_writes_is_rendered(pocket: Path, pocket_folder: Path) -> None:
    """A LoRA's file with the model it was trained on, and the same weights as a folder, which is still a pocket."""
    model = open_folder(pocket_folder, "pocket")
    student = Student(load_transformer(model.checkpoint, CPU, torch.float32), 2, seed=0)
    for name, parameter in student.parameters_to_train().items():
        parameter.data.add_(0.1 if "lora_B" in name else 0.0)
    lora.write(pocket / "lora.safetensors", student.parameters_to_train(), base=student.base, trained_for="mine")
    run = Runner(pocket_folder, pocket)
    by_lora = run(model="pocket", res=None, frames=None, lora=pocket / "lora.safetensors")
    merged = load_transformer(model.checkpoint, CPU, torch.float32).state_dict()
    for name, (a, b) in halves(student).items():
        merged[f"{name}.weight"] += b @ a
    write_model(model, merged, pocket / "out" / "model", trained_for="mine")
    by_folder = run(model=pocket / "out" / "model", res=None, frames=None)
    assert (by_folder["width"], by_folder["frames"], by_folder["model"]) == (96, 9, "pocket v0")
    assert by_folder["weights"] == by_lora["weights"]  # every weight on disk is float32
    first, second = (read(told["output"])[1] for told in (by_lora, by_folder))
    assert (first == second).all()
    assert (first != read(run(model="pocket", res=None, frames=None)["output"])[1]).any()


def test_weights_that_were_trained_for_another_preset_say_so(pocket: Path, pocket_folder: Path) -> None:
    model = open_folder(pocket_folder, "pocket")
    transformer = load_transformer(model.checkpoint, CPU, torch.float32)
    other = {name: 1.01 * own for name, own in transformer.state_dict().items()}
    write_model(model, other, pocket / "model", trained_for="1.3b-480p-mine.toml")
    student = Student(transformer, 1, seed=0)
    lora.write(pocket / "lora.safetensors", student.parameters_to_train(), trained_for="1.3b-480p-theirs")
    (pocket / "1.3b-480p-mine.toml").write_text("format = 1\n[[phase]]\nsigma = [1.0, 0.0]\nqk = 'int8'\n")

    def told(*options: object) -> str:
        result = invoke("a cat", "--steps", 1, "-o", pocket / "v.mp4", *options)
        assert result.exit_code == 0, result.output
        return " ".join(result.stderr.split())

    assert "trained for" not in told("--model", pocket_folder)
    assert "trained for" not in told("--model", pocket / "model", "--preset", pocket / "1.3b-480p-mine.toml")
    assert "these weights were trained for the preset 1.3b-480p-mine: with bf16" in told("--model", pocket / "model")
    both = told("--model", pocket / "model", "--lora", pocket / "lora.safetensors")
    assert "trained for the presets 1.3b-480p-mine and 1.3b-480p-theirs: with bf16" in both


def halves(student: Student) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    trained = {name: parameter.detach() for name, parameter in student.parameters_to_train().items()}
    ends = (".lora_A.weight", ".lora_B.weight")
    modules = [name.removesuffix(ends[0]) for name in trained if name.endswith(ends[0])]
    return {module: (trained[module + ends[0]], trained[module + ends[1]]) for module in modules}


@pytest.mark.parametrize(
    ("given", "says", "fix"),
    [
        ("nope.safetensors", "--lora nope.safetensors: there is no file", ".safetensors file"),
        ("style.safetensors:strong", "the scale strong is no number", "--lora style.safetensors:0.8"),
        ("style.safetensors:inf", "the scale inf is no number", "--lora style.safetensors:0.8"),
        ("text.safetensors", "is text, not weights", "fetch the file again"),
        ("wide.safetensors", "is for a model of width 128; this one has width 64", "made for this model"),
        (
            "deep.safetensors",
            "is for a model of 4 layers or more; this one has 2 (tensors without a place: 40, ",
            "made for this model",
        ),
        ("none.safetensors", "20 of rank 0", "made for this model"),
        ("half.safetensors", "10 missing: B of blocks.0.cross_attn.k", "made for this model"),
    ],
)
def test_what_cannot_be_merged_is_refused_before_anything_loads(
    run: Runner, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loads: list[str],
    given: str, says: str, fix: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    config = open_folder(run.folder, "small").config
    Path("text.safetensors").write_text("no weights")
    write(Path("wide.safetensors"), replace(config, dim=128))
    write(Path("deep.safetensors"), replace(config, num_layers=4))
    write(Path("none.safetensors"), config, rank=0)
    pairs = {name: tensor for name, tensor in tensors(adapters(config)).items() if "blocks.1" in name or "_A" in name}
    save_file(pairs, "half.safetensors")
    result = invoke("cat", "--model", run.folder, "--lora", given, "-o", "v.mp4")
    assert result.exit_code == 2
    errors = " ".join(result.stderr.split())
    assert says in errors
    assert fix in errors
    assert errors.count("error:") == 1
    assert loads == []
    assert not Path("v.mp4").exists()
