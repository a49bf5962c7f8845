"""The ends of a video on a CUDA device: solver and VAE against a CPU's, and what the VAE's formats take there."""

from __future__ import annotations

import copy
import time

import numpy as np
import pytest
import torch

from fpsgen import assets, metrics
from fpsgen.solvers import Solver, SolverName, noise
from fpsgen.wan import vae as wan_vae
from fpsgen.wan.autoencoder import WanVAE
from tests.gpu.hopper import tell

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ["unipc", "dpm++", "euler"])
def test_a_solver_s_latents_are_a_cpu_s(name: SolverName) -> None:
    """Its scalars stay on the CPU."""
    ends = []
    for device in ("cpu", "cuda"):
        solver, latents = Solver(8, 5.0, name), noise(16, (3, 8, 12), 1).to(device)
        for step in range(8):
            latents = solver.step(noise(16, (3, 8, 12), 2 + step).to(device), latents)
        ends.append(latents.cpu())
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-5)


def test_the_pocket_s_frames_are_a_cpu_s_and_bfloat16_is_as_good(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tokenizers")  # a machine with a card may have torch and little else
    from fpsgen.weights.layout import recognise
    from fpsgen.weights.load import load_vae

    checkpoint, latents = recognise(assets.folder("pocket")), noise(16, (5, 12, 20), 1)
    expected = np.concatenate([*wan_vae.frames_of(load_vae(checkpoint, torch.device("cpu")), latents)])
    vae, notes = load_vae(checkpoint, torch.device("cuda")), list[str]()
    for rounded, least in ((None, 50), (copy.deepcopy(vae).bfloat16(), wan_vae.ENOUGH)):
        frames = np.concatenate([*wan_vae.frames_of(vae, latents.cuda(), rounded, notes.append)])
        found = metrics.psnr(metrics.mean_square(frames, expected))
        tell(capsys, f"PSNR to a CPU's {found:.1f} dB {' '.join(notes)}")
        assert found >= least


@torch.inference_mode()
def test_what_formats_take_at_wan_s_width(capsys: pytest.CaptureFixture[str]) -> None:
    """Told, not judged: seconds of a piece of 4 frames at 832x480, random weights; the order of channels is torch's."""
    torch.manual_seed(0)
    vae = WanVAE({}).cuda().requires_grad_(False)
    for parameter in vae.parameters():
        parameter.normal_(std=0.02)
    latents = torch.randn(1, 16, 4, 60, 104, device="cuda")
    for dtype in (torch.float32, torch.bfloat16):
        for last in (False, True):
            own = copy.deepcopy(vae).to(dtype)
            for module in own.modules():
                if isinstance(module, torch.nn.Conv3d) and last:
                    module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
            marks = []
            for piece in wan_vae.stream(own, latents):
                assert piece.isfinite().all()
                torch.cuda.synchronize()
                marks.append(time.perf_counter())
            tell(capsys, f"{dtype}{', channels last' if last else ''}: {marks[-1] - marks[-2]:.3f} s")
