"""Where a model lives, by what is free: by numbers, and in whole videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fpsgen import machine, pipeline, residence
from fpsgen.events import Event, Notice, Written
from fpsgen.experts import turns, way_ahead
from fpsgen.printable import readable
from fpsgen.request import Request, VideoPlan, resolve
from fpsgen.settings import Offload
from fpsgen.target import Target
from fpsgen.wan.plan import dense
from fpsgen.weights import load, models
from tests.tools.lora import write as write_lora
from tests.tools.videos import read

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
GB = 10**9


def plan(name: str, device: torch.device, width: int = 1280, height: int = 720) -> VideoPlan:
    model = models.absent(name)
    own = model.defaults.override(width=width, height=height)
    tiles = model.tiles(own.latent_shape)
    steps = (dense(tiles, model.config.num_layers),) * own.steps
    request = Request("a cat", own, 1, Path("a.mp4"))
    return VideoPlan(request, model, Target(device, torch.bfloat16, torch.bfloat16), steps)


def free(monkeypatch: pytest.MonkeyPatch, device: float, host: float = 64) -> None:
    sizes = {"cuda": int(device * GB), "cpu": int(host * GB)}
    monkeypatch.setattr(machine, "free_bytes", lambda own: sizes[own.type])


@pytest.mark.parametrize(
    ("name", "device", "host", "offload", "home"),
    [
        ("14b", 80, 64, "auto", "device"),
        ("14b", 24, 64, "auto", "host memory"),  # 28.6 GB of weights
        ("14b", 24, 16, "auto", "files"),
        ("14b", 24, 64, "none", "device"),
        ("14b", 80, 64, "blocks", "host memory"),
        ("2.2-14b", 48, 64, "auto", "device"),  # one of two experts at a time
        ("1.3b", 12, 64, "auto", "device"),
    ],
)
def test_a_gpu(
    monkeypatch: pytest.MonkeyPatch, name: str, device: float, host: float, offload: Offload, home: str
) -> None:
    free(monkeypatch, device, host)
    found = residence.of_transformer([plan(name, CUDA)], offload)
    assert (found.home, found.costs_time) == (home, home != "device" and offload == "auto")
    if home != "device":
        assert found.needed - found.held > (25 if offload == "auto" else 9) * GB  # there is room for both branches
        assert f"come from {home} one by one" in str(found)


@pytest.mark.parametrize(("host", "home"), [(64, "device"), (24, "files")])
def test_a_cpu_has_no_other_memory(monkeypatch: pytest.MonkeyPatch, host: float, home: str) -> None:
    free(monkeypatch, 0, host)
    assert residence.of_transformer([plan("14b", CPU)]).home == home


def test_the_largest_video_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 33)
    small, large = plan("14b", CUDA, 480, 320), plan("14b", CUDA)
    assert [residence.of_transformer(own).home for own in ([small], [small, large])] == ["device", "host memory"]


def test_gpus_that_share_the_tokens_take_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 720p a branch of 14B takes 16.8 GB beside the weights; four GPUs share it by two, eight by four."""
    free(monkeypatch, 39)
    own = plan("14b", CUDA)
    found = {gpus: residence.of_transformer([own], gpus=gpus) for gpus in (1, 2, 4, 8)}
    assert {gpus: one.home for gpus, one in found.items()} == {
        1: "host memory", 2: "host memory", 4: "device", 8: "device",
    }  # fmt: skip
    assert found[1].needed - found[4].needed == pytest.approx(8.42 * GB, rel=0.01)


@pytest.mark.parametrize(("gigabytes", "host", "home"), [(15, 8, "device"), (14, 15, "host memory"), (14, 14, "files")])
def test_a_text_encoder_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, gigabytes: float, host: float, home: str
) -> None:
    """UMT5-XXL's 5.68 billion parameters take 11.4 GB in bf16."""
    free(monkeypatch, gigabytes, host)
    own = plan("14b", CUDA)
    assert residence.of_text_encoder(own.model, own.target) == home


@pytest.mark.parametrize(("gigabytes", "gpus", "at_once"), [(60, 1, 1), (63, 1, 2), (63, 2, 1)])
def test_both_guidance_branches_at_once_where_they_fit(
    monkeypatch: pytest.MonkeyPatch, gigabytes: float, gpus: int, at_once: int
) -> None:
    """At 720p 14B takes 28.6 GB of weights, and each branch 16.8 GB; several GPUs compute one each."""
    free(monkeypatch, gigabytes)
    found = residence.of_transformer([plan("14b", CUDA)], gpus=gpus)
    assert found.home == "device"
    assert found.held - found.needed == pytest.approx((at_once - 1) * 16.8 * GB, rel=0.01)
    assert readable(found.held) in str(found)


def test_what_streamed_blocks_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks of thirty, and what is no block."""
    free(monkeypatch, 1)
    own = plan("1.3b", CUDA)
    transformer, dtype = load.empty_transformer(own.model.checkpoint), load.by_name(torch.bfloat16)
    numbers = {name: value.numel() * dtype(name).itemsize for name, value in transformer.named_parameters()}
    held = sum(size for name, size in numbers.items() if not name.startswith("blocks.") or name[7:9] in ("0.", "1."))
    at_work = own.tiles.tokens * (16 * 1536 + 2 * (4 * 1536 + 2 * 8960)) / 0.8
    assert residence.of_transformer([own]).held == pytest.approx(held + at_work, abs=2)


@pytest.mark.parametrize(("gigabytes", "copies", "fits"), [(23.6, 1, False), (24.2, 1, True), (24.2, 2, False)])
def test_the_vae_beside_the_transformer(
    monkeypatch: pytest.MonkeyPatch, gigabytes: float, copies: int, fits: bool
) -> None:
    """At 720p it needs 18.7 GB beside its weights of 0.5 GB, and 0.8 of what is free may be taken."""
    free(monkeypatch, gigabytes)
    assert residence.vae_fits_beside(plan("14b", CUDA), copies) is fits


def test_an_expert_is_not_loaded_beside_streamed_blocks(
    monkeypatch: pytest.MonkeyPatch, experts: dict[str, Path]
) -> None:
    free(monkeypatch, 200, 200)
    model = models.find(str(experts["original"]))
    own = model.defaults.override(width=128, height=128, frames=5, steps=4)
    request = Request("a cat", own, 1, Path("a.mp4"))
    plans = [resolve(request, model, Target(CPU, torch.float32, torch.float32))]
    on_gpu = [VideoPlan(plans[0].request, model, Target(CUDA, torch.bfloat16, torch.bfloat16), plans[0].steps)]
    assert way_ahead(turns(plans, [0])[1], on_gpu) == "load"
    assert way_ahead(turns(plans, [0])[1], on_gpu, "host memory") == "read"


@pytest.mark.parametrize(
    ("gigabytes", "tile"),
    [(20, None), (12, (49, 84)), (3, (36, 46)), (0.1, (32, 31))],
)
def test_tiles_of_the_vae(monkeypatch: pytest.MonkeyPatch, gigabytes: float, tile: Any) -> None:
    """At 720p, of 90 x 160 latents, whole frames need 18.7 GB."""
    found = residence.vae_tile(plan("14b", CUDA), int(gigabytes * GB))
    assert (found is None) == (tile is None)
    if found:
        share = found[0] * found[1] / (90 * 160)
        assert share * 18.7 <= 0.81 * gigabytes or max(found) <= 33
        assert min(found) >= 20


def made(model: Any, tmp_path: Path, offload: Offload, **own: Any) -> tuple[Any, list[str]]:
    settings = model.defaults.override(steps=2, **own)
    request = Request("a cat surfing", settings, 1, tmp_path / f"{offload}.mp4")
    target = Target(CPU, torch.float32, torch.float32)
    events: list[Event] = list(pipeline.generate([request], model, target, offload=offload))
    (written,) = [event for event in events if isinstance(event, Written)]
    return (read(written.path)[1], written.about["weights"]), [one.text for one in events if isinstance(one, Notice)]


def test_a_video_is_the_same_from_streamed_blocks(pocket_folder: Path, tmp_path: Path) -> None:
    model = models.open_folder(pocket_folder, "pocket")
    file = write_lora(tmp_path / "own.safetensors", model.config)
    from fpsgen.weights import lora

    model = model.with_loras([lora.find(str(file))])
    (frames, weights), told = made(model, tmp_path, "none")
    assert any("the transformer stays in memory" in one for one in told)
    (same, as_well), told = made(model, tmp_path, "blocks")
    assert any("come from files one by one" in one for one in told)
    assert weights == as_well
    assert (frames == same).all()


def test_a_video_of_two_experts_is_the_same_from_streamed_blocks(experts: dict[str, Path], tmp_path: Path) -> None:
    model = models.find(str(experts["diffusers"]))
    small = {"width": 64, "height": 64, "frames": 5}
    (frames, weights), _ = made(model, tmp_path, "none", **small)
    (same, as_well), _ = made(model, tmp_path, "blocks", **small)
    assert weights == as_well
    assert (frames == same).all()


def test_what_does_not_fit_is_streamed_and_tiled_and_says_so(
    monkeypatch: pytest.MonkeyPatch, pocket_folder: Path, tmp_path: Path
) -> None:
    model = models.open_folder(pocket_folder, "pocket")
    own = {"width": 320, "height": 288, "frames": 1}
    (whole, _), _ = made(model, tmp_path, "none", **own)
    monkeypatch.setattr(machine, "free_bytes", lambda device: 10**4)
    (tiled, _), told = made(model, tmp_path, "auto", **own)
    assert any("the text encoder's blocks came from files one by one" in one for one in told)
    assert any("come from files one by one" in one and "offload" in one for one in told)
    assert any("the VAE decodes in tiles of" in one for one in told)
    assert tiled.shape == whole.shape
