"""`fpsgen train`: what it refuses before it begins, in one sentence, and without losing anything."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

from fpsgen.train.settings import TrainSettings
from fpsgen.weights import load, models
from tests.tools.train_cli import Trainer

# Options, and a piece of what is said.
WRONG: list[tuple[dict[str, object], str]] = [
    ({"data": None}, "--data is missing"),
    ({"output": None}, "-o is missing"),
    ({"data": "nowhere"}, "there is no training data in nowhere"),
    ({"data": "mine.toml"}, "there is no training data in mine.toml"),
    ({"model": "nowhere"}, "there is no model nowhere"),
    ({"preset": "nowhere"}, "there is no preset 'nowhere'"),
    ({"preset": "14b-480p-fast"}, "it is for 14b"),
    ({"preset": "bf16"}, "nothing to learn for the preset bf16"),
    ({"lora": 0}, "--lora 0: must be 1 to"),
    ({"lora": 4096}, "--lora 4096: the matrices of"),
    ({"batch": 3, "micro": 2}, "--batch 3 cannot be divided into parts of --micro 2"),
    ({"distil": 0}, "nothing would be learned"),
    ({"lr": "nan"}, "--lr nan: must be"),
    ({"lr": -1}, "--lr -1: must be"),
    ({"levels": "mine"}, "--levels mine: there is no such choice"),
    ({"seed": -1}, "--seed -1: must be 0 to"),
    ({"device": "abacus"}, "--device abacus: fpsgen runs on cpu and cuda"),
    ({"checks": 100}, "--checks 100 needs as many prompts that are not in the training data"),
    ({"prompts": "few.txt"}, "--checks 2 needs as many prompts that are not in the training data; there are 1"),
    ({"prompts": "nowhere"}, "cannot read the prompts in nowhere"),
    ({"settings": "nowhere"}, "cannot read the settings nowhere: No such file or directory"),
    ({"output": "mine.toml"}, "-o mine.toml is not a folder"),
    ({"output": "theirs"}, "-o theirs exists, and holds other things than a run"),
    ({"output": "run"}, "-o run holds a run already"),
    ({"output": "data/out"}, "-o data/out lies in the training data"),
    ({"preset": "settings.toml"}, "has the name of the file that keeps the settings"),
    ({"output": "x" * 300}, "cannot be written: File name too long"),
    ({"model": "copy", "output": "copy/out"}, "-o copy/out lies in the model's own folder"),
]
# Lines of a settings file, and a piece of what is said of them.
FILES = [
    ("warmup = 3", "line 2: there is no setting 'warmup'; did you mean warm_up?"),
    ("nothing = 3", "line 2: there is no setting 'nothing'"),
    ("lr = 'fast'", "line 2: lr must be a number"),
    ("steps = 1.5", "line 2: steps must be a whole number"),
    ("recompute = 1", "line 2: recompute must be true or false"),
    ("levels = 'presets'", 'line 2: levels must be "preset" or "logit-normal"; did you mean preset?'),
    ("[table]", "line 2: there is no setting 'table'"),
    ("a.b", "are not TOML"),
    ("lora = 0", "--lora 0: must be"),
    ("from_scratch = true", "--from-scratch has no model to learn from"),
    ("guided = true\ndistil = 0\nflow = 1", "--distil 0 distils nothing"),
]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def places(trainer: Trainer) -> Trainer:
    """Things that are in the way."""
    for path, text in {
        "theirs/mine.txt": "mine",
        "run/settings.toml": "steps = 4\n",
        "few.txt": "a cat\nprompt 3\n",
        "settings.toml": "format = 1\n[[phase]]\nsigma = [1.0, 0.0]\ntop = 0.5\n",
    }.items():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(text)
    shutil.copytree(trainer.model, "copy")
    return trainer


@pytest.mark.parametrize(("options", "told"), WRONG, ids=[told[:40] for _, told in WRONG])
def test_refused_before_anything_loads(
    places: Trainer, tmp_path: Path, options: dict[str, object], told: str, loads: list[str]
) -> None:
    before = everything(tmp_path)
    assert told in places.refused(**options)
    assert everything(tmp_path) == before
    assert not loads


@pytest.mark.parametrize(("line", "told"), FILES)
def test_settings_files_are_refused_with_the_line(trainer: Trainer, line: str, told: str, loads: list[str]) -> None:
    Path("run.toml").write_text(f"# mine\n{line}\n")
    assert told in trainer.refused(settings="run.toml")
    assert not Path("out").exists()
    assert not loads


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--from-scratch",), "--from-scratch has no model to learn from"),
        (("--resume",), "there is no run to continue in out"),
        (("--resume", "--settings", "run.toml"), "--settings and --resume contradict each other"),
        (("--frames", "9"), "fpsgen train has no option --frames"),
        (("--num-inference-steps", "9"), "fpsgen train has no option --num-inference-steps"),
        (("more",), "fpsgen train cannot tell what these words are for: more"),
    ],
)
def test_flags_that_contradict(trainer: Trainer, flags: tuple[str, ...], told: str) -> None:
    assert told in trainer.refused(*flags)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("family", "14b", "holds data of another model than"),
        ("vae", "other", "another VAE"),
        ("text_encoder", "other", "another text encoder"),
        ("text_dim", 48, "does not fit its index"),
        ("size", [64, 96], "is not an index of training data"),
        ("version", 2, "has not version 1"),
        ("shards", [], "holds no complete sample yet"),
        ("made", None, "is not an index of training data"),
        ("text_length", 10**12, "the model reads texts of another length"),
        ("made", {"steps": "ten"}, "is not an index of training data"),
        ("made", {"shift": -1}, "--shift -1"),
    ],
)
def test_data_of_something_else(trainer: Trainer, field: str, value: object, told: str, loads: list[str]) -> None:
    index = trainer.data / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {field: value}))
    assert told in trainer.refused()
    assert not Path("out").exists()
    assert not loads


def test_guided_distillation_has_no_use_for_velocities_of_one_branch(trainer: Trainer, loads: list[str]) -> None:
    index = trainer.data / "index.json"
    about = json.loads(index.read_text())
    weights = load.identity(models.find(str(trainer.model)).checkpoint, "transformer")
    about["made"] |= {"teacher": 2, "weights": weights}
    index.write_text(json.dumps(about))
    assert "velocities of each branch alone" in trainer.refused("--guided")
    assert not loads


@pytest.mark.parametrize("damage", ["cut", "no caption"])
def test_a_shard_that_is_not_whole(trainer: Trainer, damage: str, loads: list[str]) -> None:
    shard = next(trainer.data.glob("*.safetensors"))
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-100])
    else:
        save_file({name: tensor for name, tensor in load_file(shard).items() if name != "0.text.0"}, shard)
    assert ("is damaged" if damage == "cut" else "does not fit its index: 0.text.0") in trainer.refused()
    assert not Path("out").exists()
    assert not loads


def test_a_refused_continuation_changes_nothing(trainer: Trainer, tmp_path: Path) -> None:
    assert trainer(steps=1, checks=0).exit_code == 0
    Path("other.toml").write_text("format = 1\n[[phase]]\nsigma = [1.0, 0.0]\nwindow = [1, 3, 3]\n")
    before = everything(tmp_path)
    assert "--batch 2, and would go on with --batch 4" in trainer.refused("--resume", steps=2, checks=0, batch=4)
    assert "this run began with another preset" in trainer.refused("--resume", steps=1, checks=0, preset="other.toml")
    assert everything(tmp_path) == before


def test_a_run_does_not_end_before_it_is(trainer: Trainer, tmp_path: Path) -> None:
    assert trainer(steps=2, checks=0).exit_code == 0
    before = everything(tmp_path)
    told = trainer.refused("--resume", steps=1, checks=0)
    assert "this run has come to step 2, and --steps 1 ends before hint: use --steps 2 or more" in told
    assert everything(tmp_path) == before


STATES: list[dict[str, object]] = [
    {"step": 10**30}, {"step": 1}, {"step": True}, {"updates": None}, {"updates": 10**400}, {"settings": {}},
    {"settings": None}, {"on": None}, {"guard": None}, {"guard": {"skipped": 1}}, {"best": [1]}, {"best": ["a", "b"]},
    {"guard": {"skipped": "x", "in_row": 0, "stage": 0, "recent": []}},
]  # fmt: skip


def test_a_checkpoint_whose_state_is_not_what_was_written(trainer: Trainer, tmp_path: Path) -> None:
    assert trainer(steps=2, checks=0).exit_code == 0
    state = Path("out/checkpoints/step-2/state.json")
    written = json.loads(state.read_text())
    for text in ["[]", "[" * 10**5, *(json.dumps(written | other) for other in STATES)]:
        state.write_text(text)
        before = everything(tmp_path)
        assert "the checkpoint out/checkpoints/step-2 cannot be used: " in trainer.refused(
            "--resume", steps=2, checks=0
        )
        assert everything(tmp_path) == before


def test_what_a_killed_run_left_is_no_other_thing(trainer: Trainer) -> None:
    Path("out").mkdir()
    Path("out/.fpsgen-0123456789ab.toml").write_text("ste")
    assert trainer(steps=1, checks=0).exit_code == 0


def test_a_full_disk_is_told_beforehand(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, loads: list[str]) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    assert "out has room for 1 MB, and the checkpoints would take" in trainer.refused(keep=50)
    assert not Path("out").exists()
    assert not loads


def test_a_flag_wins_over_the_file(trainer: Trainer) -> None:
    """By what the values are refused for."""
    Path("run.toml").write_text("batch = 6\nmicro = 4\n")
    assert "--batch 2 cannot be divided into parts of --micro 4" in trainer.refused(settings="run.toml")
    assert "--batch 6 cannot be divided into parts of --micro 4" in trainer.refused(settings="run.toml", batch=None)


def test_every_setting_is_an_option(trainer: Trainer) -> None:
    rows = re.findall(r"^[^\w-]*(?:-\w,? +)?--([a-z-]+)", trainer("--help", model="pocket").output, re.MULTILINE)
    assert {name.replace("_", "-") for name in TrainSettings.__dataclass_fields__} <= set(rows)
