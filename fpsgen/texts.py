"""Text embeddings of earlier runs, kept on disk: where all texts of a video are known, no text encoder is loaded."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import torch
from torch import Tensor

from fpsgen import __version__, assets
from fpsgen.errors import RenderError, UsageError
from fpsgen.journal import Journal, identity
from fpsgen.machine import device_name
from fpsgen.target import Target
from fpsgen.weights.models import Model

MOST_BYTES = 2**28  # on disk: 64 of Wan2.1's longest texts, hundreds of usual ones


class Texts:
    """What one text encoder made of tokens, on one kind of device. What cannot be read or written is not kept."""

    def __init__(self, model: Model, target: Target):
        self._journal: Journal | None = None
        device, checkpoint = target.device, model.checkpoint
        key = {
            "versions": [__version__, torch.__version__],
            "encoder": [identity(path) for path in checkpoint.text_encoder],
            "config": checkpoint.text_config,
            "dtype": str(target.text_dtype),
            "device": device_name(device),
            "threads": torch.get_num_threads() if device.type == "cpu" else None,  # which its last bits depend on
        }
        with contextlib.suppress(RenderError, UsageError):
            self._journal = Journal(assets.cache("texts"), key)

    def get(self, tokens: list[int]) -> Tensor | None:
        """[1, tokens, text_dim], on the CPU; None where it is not kept."""
        if self._journal is None or (piece := self._journal.get(name := _name(tokens))) is None:
            return None
        with contextlib.suppress(OSError):
            os.utime(self._journal.path(name))  # the longest unused goes first
        return piece["text"]

    def put(self, tokens: list[int], text: Tensor) -> None:
        """Keep an embedding, and remove those that were not used for the longest time."""
        if self._journal is not None:
            with contextlib.suppress(RenderError, OSError):
                self._journal.put(_name(tokens), text=text)
                _shrink(self._journal.folder.parent)


def _name(tokens: list[int]) -> str:
    return hashlib.sha256(repr(tokens).encode()).hexdigest()[:32]


def _shrink(root: Path) -> None:
    pieces = [(told.st_mtime_ns, told.st_size, path) for path in root.glob("*/*.piece") for told in (path.stat(),)]
    left = sum(size for _, size, _ in pieces)
    for _, size, path in sorted(pieces):
        if left <= MOST_BYTES:
            return
        path.unlink(missing_ok=True)
        left -= size
