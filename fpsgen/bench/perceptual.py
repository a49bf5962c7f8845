"""LPIPS (Zhang et al., 2018) by its authors' package, of the extra `eval`, with the AlexNet that lies on this disk.

The package would fetch them, and unpickle whatever came. Here it builds the network empty, and the weights are read as
tensors, from a file whose hash is known.
"""

from __future__ import annotations

import hashlib
import importlib
import shlex
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

WEIGHTS = "alexnet-owt-7be5be79.pth"  # torchvision's, which ends in the beginning of its SHA-256
_URL = f"https://download.pytorch.org/models/{WEIGHTS}"
_LEAST = 31  # pixels: below that, AlexNet's second pooling has nothing to pool


class Lpips:
    """The mean over frames of two clips, uint8 [frames, height, width, 3]; None for frames too small for AlexNet."""

    def __init__(self, network: Any, device: torch.device):
        self._network, self._device = network, device

    @torch.inference_mode()
    def __call__(self, ours: np.ndarray, exact: np.ndarray) -> float | None:
        if min(ours.shape[1:3]) < _LEAST:
            return None
        pairs = zip(ours, exact, strict=True)
        return float(np.mean([float(self._network(self._input(a), self._input(b))) for a, b in pairs]))

    def _input(self, frame: np.ndarray) -> Tensor:
        """[1, 3, height, width] in [-1, 1]."""
        return torch.from_numpy(frame).to(self._device).permute(2, 0, 1)[None].float() / 127.5 - 1


def load(device: torch.device) -> tuple[Lpips | None, str | None]:
    """What measures LPIPS on `device`; else None, and why, with what to do about it. Nothing is downloaded."""
    try:
        package = importlib.import_module("lpips")
    except ModuleNotFoundError as missing:
        return None, f"LPIPS is left out: {missing.name} is not installed (pip install 'fpsgen[eval]')"
    except Exception as fault:  # a torchvision that was built for another torch raises a RuntimeError
        told = str(fault).partition("\n")[0]
        return None, f"LPIPS is left out: lpips cannot be imported: {told}"
    path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    if not path.is_file():
        command = f"curl -L --create-dirs -o {shlex.quote(str(path))} {_URL}"
        return None, f"LPIPS is left out: AlexNet's weights are not on this disk ({command})"
    if damage := _damage(path):
        return None, f"LPIPS is left out: {path} {damage}"
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # it calls torchvision as one did years ago
        warnings.simplefilter("ignore")
        network = package.LPIPS(net="alex", pnet_rand=True, verbose=False)
    _fill(network.net, torch.load(path, map_location="cpu", weights_only=True))
    return Lpips(network.requires_grad_(False).eval().to(device), device), None


def _damage(path: Path) -> str | None:
    """What is wrong with the weights' file."""
    try:
        begin = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    except OSError as fault:
        return f"cannot be read: {fault.strerror or fault}"
    wanted = path.stem.rpartition("-")[2]
    return None if begin == wanted else f"is not what its name says: its SHA-256 begins with {begin}"


def _fill(trunk: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    """AlexNet's "features.3.weight" is the trunk's "slice2.3.weight": slices cut the row of layers, numbers stay."""
    own = {name: name.partition(".")[2] for name in trunk.state_dict()}
    trunk.load_state_dict({name: weights[f"features.{rest}"] for name, rest in own.items()})
