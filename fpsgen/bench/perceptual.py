"""LPIPS (Zhang et al., 2018) by its authors' package, of the extra `eval`, with the AlexNet that lies on this disk.

The package would fetch AlexNet's weights, and unpickle whatever came. Here it builds the network empty, and the weights
are read as tensors, from a file whose hash is known.
"""

from __future__ import annotations

import hashlib
import importlib
import shlex
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

WEIGHTS = "alexnet-owt-7be5be79.pth"  # torchvision's, which ends in the beginning of its SHA-256
_URL = f"https://download.pytorch.org/models/{WEIGHTS}"
_LEAST = 31  # pixels: below that, AlexNet's second pooling has nothing to pool

# The mean over frames of two clips, uint8 [frames, height, width, 3]; None for frames too small for AlexNet.
Lpips = Callable[[np.ndarray, np.ndarray], float | None]


def load(device: torch.device) -> tuple[Lpips | None, str | None]:
    """What measures LPIPS on `device`; else None, and why, with what to do about it. Nothing is downloaded."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    try:
        package = importlib.import_module("lpips")
        begin = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    except ModuleNotFoundError as missing:
        return None, f'LPIPS is left out: {missing.name} is not installed (pip install "fpsgen[eval]")'
    except OSError as fault:
        command = f"curl -L --create-dirs -o {shlex.quote(str(path))} {_URL}"
        return None, f"LPIPS is left out: AlexNet's weights cannot be read: {fault.strerror or fault} ({command})"
    except Exception as fault:  # a torchvision that was built for another torch raises a RuntimeError
        return None, f"LPIPS is left out: lpips cannot be imported: {str(fault).partition(chr(10))[0]}"
    if begin != path.stem.rpartition("-")[2]:
        return None, f"LPIPS is left out: {path} is not the file that its name says: its SHA-256 begins with {begin}"
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # it calls torchvision as one did years ago
        warnings.simplefilter("ignore")
        network = package.LPIPS(net="alex", pnet_rand=True, verbose=False)
    weights = torch.load(path, map_location="cpu", weights_only=True)
    # AlexNet's "features.3.weight" is the trunk's "slice2.3.weight": slices cut the row of layers, numbers stay.
    names = network.net.state_dict()
    network.net.load_state_dict({name: weights[f"features.{name.partition('.')[2]}"] for name in names})
    return partial(distance, network.requires_grad_(False).eval().to(device), device), None


@torch.inference_mode()
def distance(network: Any, device: torch.device, ours: np.ndarray, exact: np.ndarray) -> float | None:
    """What `Lpips` says, by the package's network."""
    if min(ours.shape[1:3]) < _LEAST:
        return None

    def picture(frame: np.ndarray) -> Tensor:
        """[1, 3, height, width] in [-1, 1]."""
        return torch.from_numpy(frame).to(device).permute(2, 0, 1)[None].float() / 127.5 - 1

    return float(np.mean([float(network(picture(a), picture(b))) for a, b in zip(ours, exact, strict=True)]))
