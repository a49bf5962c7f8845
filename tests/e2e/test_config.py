"""Standing choices: the command line over the environment over the settings file, each told where it comes from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fpsgen.cli import app
from tests.tools.cli import Runner, told


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of a settings file that is not there yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config" / "fpsgen").mkdir(parents=True)
    return tmp_path / "config" / "fpsgen" / "config.toml"


def fpsgen(*args: object) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "400"})


def in_force(*args: object) -> dict:
    return told(fpsgen("config", *args, "--json"), "config set" if args else "config")


def test_nothing_is_set_at_first_and_the_place_is_told(settings: Path) -> None:
    shown = in_force()
    assert (shown["path"], shown["exists"]) == (str(settings), False)
    assert {key: (one["value"], one["source"]) for key, one in shown["settings"].items()} == {
        "model": (None, "default"), "preset": (None, "default"), "output_dir": (None, "default"),
    }  # fmt: skip
    text = fpsgen("config").stdout
    assert str(settings) in text
    for key in ("model", "preset", "output_dir"):
        assert f"{key} = " in text


def test_the_environment_goes_before_the_file(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.write_text('# mine\n\nmodel = "14b"\npreset = "fast"\n')
    monkeypatch.setenv("FPSGEN_MODEL", "pocket")
    monkeypatch.setenv("FPSGEN_PRESET", "")  # which says nothing
    found = in_force()["settings"]
    assert found["model"]["value"] == "pocket"
    assert (found["model"]["source"], found["model"]["where"]) == ("environment", "FPSGEN_MODEL")
    assert found["preset"]["value"] == "fast"
    assert (found["preset"]["source"], found["preset"]["where"]) == ("file", f"{settings}, line 4")


def test_set_and_unset_change_one_line_and_keep_the_rest(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings.write_text('# mine\nmodel = "14b"  # large\n')
    assert in_force("set", "preset", "fast")["value"] == "fast"
    assert settings.read_text() == '# mine\nmodel = "14b"  # large\npreset = "fast"\n'
    assert in_force("set", "output-dir", "videos")["value"] == str(tmp_path / "videos")
    assert in_force("set", "model", "pocket")["value"] == "pocket"
    assert in_force("unset", "preset")["source"] == "default"
    assert settings.read_text() == f'# mine\nmodel = "pocket"\noutput_dir = "{tmp_path / "videos"}"\n'


def test_a_file_of_this_folder_is_set_with_its_whole_path(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half.toml").touch()
    (tmp_path / "fast").touch()  # the name of a grade, which goes before files
    assert in_force("set", "preset", "half.toml")["value"] == str(tmp_path / "half.toml")
    assert in_force("set", "preset", "fast")["value"] == "fast"


@pytest.mark.parametrize("command", ["config", "generate cat -o nowhere.mp4", "config set model 14b"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('model = "14b"\nmodle = "14b"\n', "line 2: there is no setting 'modle'; did you mean model?"),
        ("\nmodel = 14\n", "line 2: model must be text on one line"),
        ('model = ""\n', "line 1: model must be text on one line, and not empty"),
        ('model = "a\\u001b[2J"\n', "line 1: model must be text on one line"),
        ('[model]\nname = "14b"\n', "line 1: model must be text"),
        ('output_dir = "videos"\n', "line 1: output_dir = 'videos' depends on where fpsgen is started"),
        ('model = "14b\n', "is not TOML: "),
        ("# " + "x" * 2**16, "is larger than 64 KiB"),
    ],
)
def test_a_wrong_file_is_told_with_its_line(settings: Path, text: str, said: str, command: str) -> None:
    settings.write_text(text)
    result = fpsgen(*command.split())
    assert result.exit_code == 2
    assert said in result.stderr
    assert str(settings) in result.stderr
    assert "hint: " in result.stderr
    assert settings.read_text() == text


def test_only_a_regular_utf8_file_is_read(settings: Path) -> None:
    os.mkfifo(settings)  # which would keep its reader waiting
    assert "it is not a regular file" in fpsgen("config").stderr
    settings.unlink()
    settings.write_bytes(b'model = "\xff"')
    assert "is not UTF-8 text" in fpsgen("config").stderr
    settings.unlink()
    settings.mkdir()
    assert fpsgen("config").exit_code == 2


def test_a_value_over_several_lines_is_not_changed_by_a_command(settings: Path) -> None:
    before = 'model = """\\\n14b"""\n'
    settings.write_text(before)
    assert in_force()["settings"]["model"]["value"] == "14b"
    result = fpsgen("config", "set", "model", "pocket")
    assert result.exit_code == 2
    assert "edit it by hand" in result.stderr
    assert settings.read_text() == before


@pytest.mark.parametrize("key", ["modle", "outputdir", "device"])
def test_a_setting_that_is_none_is_refused(settings: Path, key: str) -> None:
    result = fpsgen("config", "set", key, "x")
    assert result.exit_code == 2
    assert "the settings are model, preset, output_dir" in result.stderr
    assert not settings.exists()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("preset", "fastt", "there is no preset fastt here; did you mean fast?"),
        ("model", "14bb", "there is no model 14bb here; did you mean 14b?"),
        ("model", "14b", None),
        ("model", "somebody/model", None),
        ("output_dir", "/nowhere/yet", None),
    ],
)
def test_a_name_that_nothing_has_is_written_and_said(settings: Path, key: str, value: str, said: str | None) -> None:
    result = fpsgen("config", "set", key, value)
    assert result.exit_code == 0
    assert f'{key} = "{value}"' in settings.read_text()
    assert ("note: " in result.stderr) is (said is not None)
    assert said is None or said in result.stderr


def test_a_video_without_a_name_goes_to_the_output_folder(settings: Path, pocket_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos" / "mine"
    settings.write_text(f'model = "{pocket_folder}"\npreset = "bf16"\noutput_dir = "{folder}"\n')
    run = Runner(pocket_folder, tmp_path)
    made = run(model=None, output=None, res=None)
    assert Path(made["output"]) == folder / "a-cat-surfing-1.mp4"
    assert Path(made["output"]).exists()
    assert made["preset"]["name"] == "bf16"
    assert Path(run(output=tmp_path / "here.mp4", res=None)["output"]) == tmp_path / "here.mp4"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("FPSGEN_MODEL", "nowhere", "model = 'nowhere' is set by FPSGEN_MODEL"),
        ("FPSGEN_PRESET", "nope", "preset = 'nope' is set by FPSGEN_PRESET"),
        ("FPSGEN_PRESET", "14b-480p-fast", "preset = '14b-480p-fast' is set by FPSGEN_PRESET"),
        ("FPSGEN_OUTPUT_DIR", "/dev/null/videos", "it is set by FPSGEN_OUTPUT_DIR"),
    ],
)
def test_a_wrong_value_is_told_when_used_with_who_set_it(
    pocket_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FPSGEN_MODEL", str(pocket_folder))
    monkeypatch.setenv(name, value)
    result = fpsgen("generate", "a cat")
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize("command", ["bench", "bench quality", "calibrate"])
def test_other_commands_take_the_model_too(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPSGEN_MODEL", "nowhere")
    result = fpsgen(*command.split())
    assert result.exit_code == 2
    assert "is set by FPSGEN_MODEL" in result.stderr


def test_the_command_line_goes_before_all(
    settings: Path, pocket_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.write_text('model = "nowhere"\npreset = "nope"\noutput_dir = "/dev/null/videos"\n')
    monkeypatch.setenv("FPSGEN_MODEL", "nowhere")
    assert Runner(pocket_folder, tmp_path)(preset="bf16", res=None)["preset"]["name"] == "bf16"
