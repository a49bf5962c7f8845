"""What is measured of two clips, against formulas written down anew and against scikit-image."""

from __future__ import annotations

import hashlib
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from fpsgen import metrics
from fpsgen.bench import fidelity, perceptual

CPU = torch.device("cpu")
LATENTS = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(0))


def frames(seed: int, shape: tuple[int, ...] = (3, 24, 40)) -> np.ndarray:
    """Smooth pictures with an edge."""
    rng = np.random.default_rng(seed)
    n, height, width = shape
    y, x = np.mgrid[:height, :width]
    waves = np.sin(x / 7 + rng.uniform(0, 6, (n, 1, 1))) + np.cos(y / 5 + rng.uniform(0, 6, (n, 1, 1)))
    edge = 60.0 * (x > width // 2)
    return np.clip(110 + 40 * waves + edge, 0, 255).astype(np.uint8)[..., None].repeat(3, 3)


def noisy(clip: np.ndarray, spread: float, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, spread, clip.shape)
    return np.clip(clip + noise, 0, 255).round().astype(np.uint8)


# --- SSIM ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 24, 40), (1, 11, 11), (2, 12, 33)])
@pytest.mark.parametrize("spread", [1.0, 20.0, 120.0])
def test_ssim_is_scikit_images(shape: tuple[int, ...], spread: float) -> None:
    exact = frames(0, shape)
    ours = noisy(exact, spread)
    theirs = [
        structural_similarity(
            a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=2, data_range=255
        )
        for a, b in zip(ours, exact, strict=True)
    ]
    # Both compute in float64; the order of sums differs.
    assert metrics.ssim(ours, exact) == pytest.approx(np.mean(theirs), abs=1e-9)


def test_ssim_of_equal_flat_and_opposite_frames() -> None:
    exact = frames(0)
    assert metrics.ssim(exact, exact) == pytest.approx(1, abs=1e-12)
    assert metrics.ssim(255 - exact, exact) < 0
    black, white = np.zeros((1, 16, 16, 3), np.uint8), np.full((1, 16, 16, 3), 255, np.uint8)
    # No structure in either: luminance alone, c1 / (255² + c1).
    assert metrics.ssim(black, white) == pytest.approx(6.5025 / (255**2 + 6.5025))


@pytest.mark.parametrize("shape", [(2, 10, 40), (2, 40, 8)])
def test_frames_smaller_than_the_window_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="sides of 11 pixels"):
        metrics.ssim(frames(0, shape), frames(1, shape))


# --- intervals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("freedom", "wanted"),
    # Any table of Student's t, two-sided 95 %.
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (10, 2.228), (30, 2.042), (120, 1.980)],
)
def test_students_t(freedom: int, wanted: float) -> None:
    assert metrics.student_t95(freedom) == pytest.approx(wanted, abs=6e-4)


def test_students_t_ends_at_the_normal_distribution() -> None:
    assert metrics.student_t95(20_000) == pytest.approx(1.96, abs=2e-4)


def test_an_interval_holds_the_mean_in_95_of_100_draws() -> None:
    """Of three values, where 1.96 standard errors would hold it in 81."""
    rng, within = np.random.default_rng(0), 0
    for _ in range(2000):
        mean, half = metrics.mean_ci95(rng.normal(5, 2, 3))
        assert half is not None
        within += abs(mean - 5) <= half
    assert within / 2000 == pytest.approx(0.95, abs=0.015)  # three standard errors of that share


def test_of_one_value_nothing_is_known() -> None:
    assert metrics.mean_ci95([3.0]) == (3.0, None)
    assert metrics.mean_ci95([3.0, 3.0]) == (3.0, 0.0)


# --- a clip and its reference --------------------------------------------------------------------------


def test_a_clip_against_itself() -> None:
    same = fidelity.between((LATENTS, frames(0)), (LATENTS.clone(), frames(0)))
    assert same.identical
    assert (same.latent_cosine, same.latent_error, same.psnr, same.nonfinite) == (1.0, 0.0, None, 0)
    assert same.ssim == pytest.approx(1, abs=1e-12)
    assert same.lpips is None


def test_a_clip_against_another() -> None:
    ours, exact = noisy(frames(0), 5), frames(0)
    moved = LATENTS + 0.1 * torch.randn(LATENTS.shape, generator=torch.Generator().manual_seed(1))
    found = fidelity.between((moved, ours), (LATENTS, exact))
    assert not found.identical
    cosine = torch.cosine_similarity(moved.flatten().double(), LATENTS.flatten().double(), 0)
    assert found.latent_cosine == pytest.approx(float(cosine), abs=1e-12)
    assert found.latent_error == pytest.approx(1 - float(cosine), abs=1e-12)
    assert found.psnr == pytest.approx(10 * math.log10(255**2 / ((ours.astype(float) - exact) ** 2).mean()))
    assert found.ssim == metrics.ssim(ours, exact) < 1


def test_latents_apart_with_frames_that_are_not() -> None:
    found = fidelity.between((LATENTS * (1 + 1e-3 * LATENTS), frames(0)), (LATENTS, frames(0)))
    assert found.identical
    assert found.psnr is None
    assert 0 < found.latent_error < 1e-3


def test_values_that_are_not_finite_are_counted() -> None:
    broken = LATENTS.clone()
    broken[0, :, 0, 0, 0] = torch.nan
    broken[0, :3, 1] = -torch.inf
    found = fidelity.between((broken, frames(0)), (LATENTS, frames(0)))
    assert found.nonfinite == 16 + 3 * 24
    clean = broken.nan_to_num(0, 0, 0)
    assert found.latent_error == metrics.latent_error(clean, LATENTS)
    lost = fidelity.between((LATENTS * torch.nan, frames(0)), (LATENTS, frames(0)))
    assert (lost.nonfinite, lost.latent_cosine) == (LATENTS.numel(), 0.0)


def test_clips_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="latents of shapes"):
        fidelity.between((LATENTS[:, :, 1:], frames(0)), (LATENTS, frames(0)))
    with pytest.raises(ValueError, match="one shape"):
        fidelity.between((LATENTS, frames(0)[1:]), (LATENTS, frames(0)))


# --- LPIPS ---------------------------------------------------------------------------------------------


class Trunk(nn.Module):
    """Named as lpips names AlexNet's layers."""

    def __init__(self) -> None:
        super().__init__()
        self.slice1, self.slice2 = nn.Sequential(), nn.Sequential()
        self.slice1.add_module("0", nn.Conv2d(3, 2, 1))
        self.slice2.add_module("3", nn.Conv2d(2, 1, 1))


class Fake(nn.Module):
    """Stands in for lpips.LPIPS: the mean distance of two pictures."""

    made: dict[str, Any]
    latest: Fake

    def __init__(self, **options: Any) -> None:
        super().__init__()
        Fake.made, Fake.latest, self.net = options, self, Trunk()
        self.seen: list[Tensor] = []

    def forward(self, ours: Tensor, exact: Tensor) -> Tensor:
        self.seen += [ours, exact]
        return (ours - exact).abs().mean().view(1, 1, 1, 1)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """A package `lpips`, and a place for weights that is empty; whoever downloads fails."""
    module = ModuleType("lpips")
    module.LPIPS = Fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", module)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("it downloads"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("it downloads"))
    return module


def put_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """AlexNet's, of the fake's size, under a name that their hash makes true."""
    torch.manual_seed(5)
    state = {f"features.{n}.{kind}": tensor for n, layer in ((0, nn.Conv2d(3, 2, 1)), (3, nn.Conv2d(2, 1, 1)))
             for kind, tensor in layer.state_dict().items()}  # fmt: skip
    state["classifier.1.weight"] = torch.zeros(1)
    path = folder / "hub" / "checkpoints" / "weights"
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    name = f"alexnet-owt-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"
    path.rename(path.with_name(name))
    monkeypatch.setattr(perceptual, "WEIGHTS", name)
    return state


def test_lpips_by_the_package(package: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = put_weights(tmp_path / "torch", monkeypatch)
    before = torch.random.get_rng_state()
    found, why_not = perceptual.load(CPU)
    assert found is not None, why_not
    assert why_not is None
    assert before.equal(torch.random.get_rng_state())
    assert Fake.made == {"net": "alex", "pnet_rand": True, "verbose": False}
    network = Fake.latest
    for layer, name in ((network.net.slice1[0], "0"), (network.net.slice2[0], "3")):
        assert layer.weight.equal(state[f"features.{name}.weight"])
        assert layer.bias.equal(state[f"features.{name}.bias"])
    ours, exact = noisy(frames(0, (3, 32, 40)), 30), frames(0, (3, 32, 40))
    value = fidelity.between((LATENTS, ours), (LATENTS, exact), found).lpips
    assert value == pytest.approx(np.abs(ours.astype(float) - exact).mean() / 127.5, rel=1e-5)
    assert [one.shape for one in network.seen] == [(1, 3, 32, 40)] * 6
    assert all(one.min() >= -1 and one.max() <= 1 for one in network.seen)
    assert found(frames(0, (1, 30, 40)), frames(1, (1, 30, 40))) is None, "too small for AlexNet"


def test_lpips_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    found, why_not = perceptual.load(CPU)
    assert found is None
    assert 'lpips is not installed (pip install "fpsgen[eval]")' in (why_not or "")


def test_lpips_without_torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lpips.py").write_text("from torchvision import models\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lpips", raising=False)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    found, why_not = perceptual.load(CPU)
    assert found is None
    assert "torchvision is not installed" in (why_not or "")


def test_lpips_beside_a_torchvision_for_another_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lpips.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lpips", raising=False)
    found, why_not = perceptual.load(CPU)
    assert found is None
    assert "lpips cannot be imported: operator torchvision::nms does not exist" in (why_not or "")


def test_lpips_without_weights_says_how_to_fetch_them(package: ModuleType, tmp_path: Path) -> None:
    found, why_not = perceptual.load(CPU)
    assert found is None
    place = tmp_path / "torch" / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    assert f"curl -L --create-dirs -o {place} https://" in (why_not or "")
    assert not (tmp_path / "torch").exists()


def test_lpips_with_other_weights(package: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_weights(tmp_path / "torch", monkeypatch)
    (path,) = (tmp_path / "torch").rglob("*.pth")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    found, why_not = perceptual.load(CPU)
    assert found is None
    assert "is not the file that its name says" in (why_not or "")
