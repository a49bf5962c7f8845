"""Previews: what they show, and how a terminal is given them."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from fpsgen.cli import pictures
from fpsgen.cli.output import Output
from fpsgen.errors import RenderError, plain
from fpsgen.events import Notice, Preview, Written
from fpsgen.preview import HEIGHT, Previews
from fpsgen.wan import vae as wan_vae
from fpsgen.weights import load, models

CPU = torch.device("cpu")


def plan(model: str | Path, steps: int = 4) -> Any:
    """What a preview asks of a video's plan."""
    settings = SimpleNamespace(stride=8, noise_levels=[1.0, 0.75, 0.5, 0.25][:steps])
    request = SimpleNamespace(settings=settings, output=Path("v.mp4"))
    found, target = models.find(str(model)), SimpleNamespace(device=CPU)
    return SimpleNamespace(model=found, target=target, request=request, steps=[None] * steps)


def clip(count: int = 17) -> np.ndarray:
    """A bright square that moves over sea and sky, as the pocket's VAE knows them."""
    frames = np.empty((count, 96, 160, 3), np.uint8)
    frames[:, :56], frames[:, 56:] = (120, 190, 250), (20, 110, 190)
    for number, frame in enumerate(frames):
        frame[30:66, 20 + 5 * number : 60 + 5 * number] = (250, 180, 30)
    return frames


def test_a_preview_shows_the_frames_of_the_running_estimate() -> None:
    """By the pocket's VAE, at a quarter, half and three quarters. Noise and velocity of a flow give its end exactly."""
    pocket, sent = plan("pocket"), clip()
    ends = wan_vae.encode(load.load_vae(pocket.model.checkpoint, CPU), sent)
    noise = torch.randn(ends.shape, generator=torch.Generator().manual_seed(0))
    step, level = 2, 0.5
    (event,) = Previews(3).after(pocket, step, (1 - level) * ends + level * noise, noise - ends)
    assert isinstance(event, Preview)
    assert (event.output, event.done, event.total) == (Path("v.mp4"), 3, 4)
    assert event.pixels.shape == (HEIGHT, 3 * 400, 3)
    for number, frame in enumerate((4, 8, 12)):
        shown = Image.fromarray(event.pixels[:, 400 * number : 400 * number + 400]).resize((160, 96))
        error = np.asarray(shown).astype(float) - sent[frame]
        # It is 10, of the VAE's loss and of what it lacks between these frames; the frames beside this one err by 21.
        assert np.sqrt((error**2).mean()) < 15


def test_a_known_vae_is_not_loaded(wan_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "load_vae", lambda *_: pytest.fail("the VAE was loaded"))
    latents = torch.zeros(1, 16, 3, 6, 8)
    latents[:, 14] = 1
    shown = Previews(1).picture(plan(wan_folder), latents)
    assert shown.shape == (HEIGHT, 3 * 320, 3)
    assert np.allclose(shown, 127.5 * (np.array([0.3477 - 0.1835, 0.2275 - 0.0868, 0.2950 - 0.3360]) + 1), atol=0.51)


def test_previews_are_due_after_every_n_steps_but_the_last(wan_folder: Path) -> None:
    latents, previews, made = torch.zeros(1, 16, 1, 6, 8), Previews(2), plan(wan_folder)
    shown = [list(previews.after(made, step, latents, latents)) for step in range(4)]
    assert [len(events) for events in shown] == [0, 1, 0, 0]


def test_a_video_of_too_few_steps_for_a_preview_is_told_of_once(wan_folder: Path) -> None:
    latents, previews, made = torch.zeros(1, 16, 1, 6, 8), Previews(4), plan(wan_folder)
    events = [event for step in (0, 1, 2, 3, 0, 1) for event in previews.after(made, step, latents, latents)]
    assert [plain(event.text) for event in events] == ["there is no preview: preview=4, and the video has 4 steps"]


def test_a_preview_that_fails_is_told_once(wan_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Previews, "picture", fail)
    previews, latents = Previews(1), torch.zeros(1, 16, 1, 6, 8)
    events = [event for step in range(3) for event in previews.after(plan(wan_folder), step, latents, latents)]
    assert events == [Notice("there are no previews: CUDA out of memory")]


@pytest.mark.parametrize(
    ("environment", "how"),
    [
        ({"TERM": "xterm-256color"}, None),
        ({}, None),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"LC_TERMINAL": "iTerm2", "TERM": "xterm-256color"}, "iterm"),
        ({"TERM": "screen-256color", "KITTY_WINDOW_ID": "1"}, None),
        ({"TERM": "xterm-256color", "TMUX": "/tmp/x", "TERM_PROGRAM": "iTerm.app"}, None),
    ],
)
def test_terminals_say_whether_they_show_pictures(environment: dict[str, str], how: str | None) -> None:
    assert pictures.protocol(environment) == how


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)


@pytest.mark.parametrize("how", ["kitty", "iterm"])
def test_a_terminal_gets_the_picture_whole(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "protocol", lambda _: how)
    out, drawn = Output(), io.StringIO()
    out.console = Console(file=drawn, force_terminal=True, width=40)
    with pictures.shown(out) as show:
        show(Preview(Path("v.mp4"), 1, 2, picture()))
        show(Notice("of something else"))
    text = drawn.getvalue()
    if how == "kitty":
        parts = re.findall(r"\x1b_G([^;]*);([A-Za-z0-9+/=]*)\x1b\\", text)
        assert parts[0][0] == "a=T,f=100,q=2,r=12,m=1"
        assert [head for head, _ in parts[1:]] == ["m=1"] * (len(parts) - 2) + ["m=0"]
        assert max(len(part) for _, part in parts) == 4096
        data = "".join(part for _, part in parts)
    else:
        ((size, data),) = re.findall(r"\x1b\]1337;File=inline=1;size=(\d+);height=12:([A-Za-z0-9+/=]*)\x07", text)
        assert int(size) == len(base64.b64decode(data))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), picture())
    assert text.endswith("\n")


def test_elsewhere_a_file_beside_the_video_is_renewed_and_gone_in_the_end(tmp_path: Path) -> None:
    (tmp_path / "v.preview.png").write_text("mine")
    place = tmp_path / "v.preview-2.png"
    with pictures.shown(Output(json=True)) as show:
        for step in (1, 2):
            show(Preview(tmp_path / "v.mp4", step, 3, np.full((4, 4, 3), step, np.uint8)))
            assert np.asarray(Image.open(place)).max() == step
    assert [path.name for path in tmp_path.iterdir()] == ["v.preview.png"]
    assert (tmp_path / "v.preview.png").read_text() == "mine"


def test_each_video_has_its_own_until_it_is_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pictures.shown(Output(json=True)) as show:
        for name in ("a", "b"):
            show(Preview(tmp_path / f"{name}.mp4", 1, 2, picture()))
            assert [path.name for path in tmp_path.iterdir()] == [f"{name}.preview.png"]
            show(Written(tmp_path, SimpleNamespace(request=SimpleNamespace(output=tmp_path / f"{name}.mp4")), {}))  # type: ignore[arg-type]
            assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err.count("a preview is in") == 1


def test_a_preview_that_cannot_be_written_costs_a_note(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pictures.shown(Output(json=True)) as show:
        for step in (1, 2):
            show(Preview(tmp_path / "gone" / "v.mp4", step, 3, picture()))
    assert capsys.readouterr().err.count("the preview cannot be written") == 1


def test_a_preview_of_an_earlier_step_goes_where_a_later_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the disk fills up meanwhile."""
    full = RenderError("the preview cannot be written: No space left on device")
    with pictures.shown(Output(json=True)) as show:
        show(Preview(tmp_path / "v.mp4", 1, 3, picture()))
        monkeypatch.setattr("fpsgen.video.write_picture", lambda *_: (_ for _ in ()).throw(full))
        show(Preview(tmp_path / "v.mp4", 2, 3, picture()))
    assert not list(tmp_path.iterdir())
