"""`fpsgen.generate`, from Python: the command line's own results and refusals."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

import fpsgen
from fpsgen import api
from fpsgen.cli import app
from fpsgen.cli.output import in_flags
from fpsgen.errors import UsageError
from fpsgen.events import Event, Notice, Stage, Written
from tests.tools.cli import Runner, invoke, told
from tests.tools.presets import SMALL
from tests.tools.videos import metadata, read

SHORT: dict[str, Any] = {"res": "96x64", "frames": 5, "steps": 2, "seed": 1}
PRESET = SMALL.replace('model = "pocket"\n', "").replace("[3, 3, 3]", "[1, 3, 3]")  # of no family


def test_a_video_is_the_command_line_s(run: Runner, wan_folder: Path, tmp_path: Path) -> None:
    """Frame for frame, and by what it says of itself; without a file the frames alone, which are those before the
    encoder."""
    preset = tmp_path / "own.toml"
    preset.write_text(PRESET)
    theirs = run(preset=preset)
    events: list[Event] = []
    video = fpsgen.generate(
        "a cat surfing", model=wan_folder, preset=preset, output=tmp_path / "a.mp4", watch=events.append, **SHORT
    )
    assert isinstance(video, fpsgen.Video)
    assert np.array_equal(read(tmp_path / "a.mp4")[1], read(Path(theirs["output"]))[1])
    differ = {"timings", "asked", "output"}
    assert {key: value for key, value in json.loads(json.dumps(video.about)).items() if key not in differ} == {
        key: value for key, value in metadata(Path(theirs["output"])).items() if key not in differ
    }
    assert (video.path, video.frames, video.fps, video.seed) == (tmp_path / "a.mp4", None, 16, 1)
    assert len(video.timings.steps) == 2
    assert video.timings.total > 0
    assert isinstance(events[-1], Written)
    again = fpsgen.generate("a cat surfing", model=str(wan_folder), preset=str(preset), **SHORT)
    assert again.path is None
    assert again.frames.shape == (5, 64, 96, 3)
    assert again.frames.dtype == np.uint8
    lossless = fpsgen.generate(
        "a cat surfing", model=wan_folder, preset=preset, output=tmp_path / "a.mkv", keep_frames=True, **SHORT
    )
    assert np.array_equal(lossless.frames, again.frames)
    assert max(len(repr(one)) for one in [lossless, *events]) < 300  # a page of numbers helps nobody who prints it
    assert np.array_equal(read(tmp_path / "a.mkv")[1], again.frames)


def test_several_prompts_load_once(wan_folder: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    prompts, options = ["a cat surfing", "a dog jumping"], SHORT | {"seed": [1, 2], "model": wan_folder}
    videos = fpsgen.generate(prompts, watch=events.append, **options)
    assert [video.seed for video in videos] == [1, 2]
    assert [video.about["prompt"] for video in videos] == prompts
    assert [event.what for event in events if isinstance(event, Stage) and event.name == "load"] == [
        "text encoder", "transformer", "VAE",
    ]  # fmt: skip
    events.clear()
    alone = fpsgen.generate(prompts[1], watch=events.append, **options | {"seed": 2, "offload": "blocks"})
    assert any(isinstance(event, Notice) and "come from files one by one" in event.text for event in events)
    assert np.array_equal(videos[1].frames, alone.frames)
    paths = [tmp_path / "a.mp4", str(tmp_path / "b.gif")]
    made = fpsgen.generate(prompts, output=paths, **options)
    assert [video.path for video in made] == [Path(path) for path in paths]
    assert all(video.path.stat().st_size > 0 and video.frames is None for video in made)
    assert fpsgen.generate([]) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": " "}, {"res": "96x65"}, {"res": "huge"}, {"frames": 6}, {"steps": 0}, {"seed": -1},
        {"guidance": 200.0}, {"solver": "fastwan", "steps": 9}, {"device": "gpu"}, {"device": "cuda"},
        {"model": "nowhere"}, {"preset": "swift"},
        {"preset": "14b-720p-fast"}, {"guidance_low": 3.0}, {"output": "a.avi"}, {"crf": 77},
        {"output": "none/a.mp4"}, {"image": "none.png"}, {"lora": "none.safetensors"}, {"vae": "none.pth"},
        {"fps": 0}, {"output": "own.toml", "preset": "own.toml"}, {"graphs": True}, {"negative": "x" * 6000},
    ],
    ids=lambda wrong: " ".join(wrong),
)  # fmt: skip
def test_refusals_are_the_command_line_s(
    wrong: dict[str, Any], wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same sentences, with Python's names of what is wrong; nothing is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.toml").write_text(PRESET)
    options = {"prompt": "a cat surfing", "model": str(wan_folder), "output": "a.mp4", **SHORT} | wrong
    prompt = options.pop("prompt")
    flags = [
        part
        for key, value in options.items()
        for part in ([f"--{key.replace('_', '-')}"] + ([] if value is True else [str(value)]))
    ]
    theirs = told(invoke(prompt, *flags, "--json"), code=2)
    with pytest.raises(UsageError) as fault:
        fpsgen.generate(prompt, **options)
    assert in_flags(f"{fault.value}") == theirs["error"]
    assert in_flags(fault.value.marked_hint or "") == theirs["hint"]
    assert "--" not in str(fault.value)
    assert [path.name for path in tmp_path.iterdir()] == ["own.toml"]


def test_what_only_python_can_say_wrongly(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'stpes'"):
        fpsgen.generate("a cat", stpes=3)
    with pytest.raises(TypeError, match="a prompt is a str, not int"):
        fpsgen.generate([3])
    with pytest.raises(TypeError, match="a prompt is a str, not int"):
        fpsgen.generate(3)
    with pytest.raises(UsageError, match="seed has 1 value, and there are 2 prompts"):
        fpsgen.generate(["a cat", "a dog"], seed=[1])
    with pytest.raises(UsageError, match=r"output=.* is one place, and there are 2 videos"):
        fpsgen.generate(["a cat", "a dog"], output=tmp_path / "a.mp4")
    for wrong in ({"offload": "disk"}, {"dtype": "fp16"}):
        with pytest.raises(UsageError, match=r"(offload=disk|dtype=fp16): there is no such choice"):
            fpsgen.generate("a cat", **wrong)
    with pytest.raises(UsageError, match="two videos cannot have one place"):
        fpsgen.generate(["a cat", "a dog"], output=[tmp_path / "a.mp4"] * 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": 1.5}, {"seed": True}, {"seed": "1"}, {"seed": [np.float32(1)]}, {"frames": 5.0}, {"frames": "5"},
        {"steps": True}, {"crf": 1.5}, {"fps": 12.5}, {"guidance": "4"}, {"shift": np.zeros(2)}, {"res": (96, 64)},
        {"negative": ["ugly"]}, {"lora": [3]}, {"lora": 3}, {"image": np.zeros((4, 4, 3))}, {"vae": 5}, {"model": 14},
        {"device": 0},
    ],
    ids=str,
)  # fmt: skip
def test_a_value_of_another_type_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"^{next(iter(wrong))} is a"):
        fpsgen.generate("a cat", **wrong)


def test_prompts_are_texts() -> None:
    for wrong in (None, 5, ["a cat", None]):
        with pytest.raises(TypeError, match=r"a prompt is a str, not (int|NoneType)"):
            fpsgen.generate(wrong)


def test_numbers_may_be_numpy_s(wan_folder: Path) -> None:
    """A comment is JSON, which knows Python's own."""
    numbers: dict[str, Any] = {"seed": np.int64(7), "frames": np.int32(5), "steps": np.int16(1)}
    numbers["guidance"] = np.float32(4.5)
    video = fpsgen.generate("a cat", model=wan_folder, res="96x64", **numbers)
    said = json.loads(json.dumps(video.about))
    assert [said[name] for name in numbers] == [7, 5, 1, 4.5]


def test_the_default_model_is_told_in_the_log(
    pocket: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The pocket on a CPU, by its own size; no settings file is read, and no file is left."""
    monkeypatch.setenv("FPSGEN_MODEL", "nowhere")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with caplog.at_level(logging.INFO, "fpsgen"):
        video = fpsgen.generate("a cat surfing", steps=1, frames=5)
    assert video.frames.shape == (5, 64, 96, 3)
    said = {record.levelname: record.message for record in caplog.records}
    assert "the pocket model is used" in caplog.text
    assert "(model picks another)" in caplog.text
    assert said.keys() == {"INFO", "WARNING"}
    assert not list(pocket.iterdir())


def test_every_argument_is_an_option_of_the_command_line_and_on_the_page() -> None:
    command: Any = typer.main.get_command(app)
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    only_here = {"keep_frames", "watch"}
    assert set(api.Options.__annotations__) - only_here <= {
        parameter.name for parameter in command.commands["generate"].params
    }
    assert all(f"`{name}" in page for name in api.Options.__annotations__)


def test_importing_fpsgen_imports_no_torch() -> None:
    assert all(hasattr(fpsgen, name) for name in fpsgen.__all__)
    code = "import fpsgen, sys; fpsgen.FpsgenError; assert 'torch' not in sys.modules; fpsgen.nothing"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "AttributeError: module 'fpsgen' has no attribute 'nothing'" in ended.stderr


def test_the_page_s_examples_run(pocket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the small pocket, with few steps."""
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    examples = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "attach" not in block]
    assert len(examples) >= 2
    own = fpsgen.generate
    monkeypatch.setitem(
        vars(fpsgen), "generate", lambda *args, **given: own(*args, **{"steps": 1, "frames": 5} | given)
    )
    for example in examples:
        exec(example, {})
