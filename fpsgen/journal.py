"""Work that is kept on disk piece by piece, so that whoever is killed goes on where they were."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from pathlib import Path

import diffusers
import safetensors.torch
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor

from fpsgen import __version__, files
from fpsgen.errors import RenderError
from fpsgen.wan.models import Model

_READ = 2**26  # bytes, in a tenth of a second; the pocket model's files, which every installation writes anew, are less


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def surroundings(
    model: Model, weights: str, device: torch.device, dtype: torch.dtype, text_dtype: torch.dtype
) -> dict[str, object]:
    """All that a clip depends on besides its settings, for a journal's key. weights: the transformer's fingerprint."""
    others = (*model.checkpoint.text_encoder, *model.checkpoint.vae)
    return {
        "versions": [__version__, torch.__version__, diffusers.__version__, transformers.__version__],
        "others": [identity(file) for file in others],
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "device": device_name(device),
        "dtypes": [str(dtype), str(text_dtype)],
        "weights": weights,
    }


def identity(file: Path) -> list[object]:
    """What tells a file of weights from another: its content, or of a large one, which takes longer to read than a clip
    to render anew, size and time."""
    told = file.stat()
    if told.st_size <= _READ:
        return [told.st_size, hashlib.sha256(file.read_bytes()).hexdigest()]
    return [told.st_size, told.st_mtime_ns]


def check(root: Path) -> None:
    """RenderError where nothing could be kept in `root`: to be told before there is anything to keep."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        files.check_writable(root / "piece")
    except OSError as fault:
        raise _no_room(root, fault) from None


class Journal:
    """Named pieces in the folder of one key: whatever the pieces depend on. A piece appears whole or not at all."""

    def __init__(self, root: Path, key: dict):
        told = json.dumps(key, sort_keys=True, ensure_ascii=False)
        self.folder = root / hashlib.sha256(told.encode()).hexdigest()[:24]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "key.json").write_text(told, encoding="utf-8")
        except OSError as fault:
            raise _no_room(self.folder, fault) from None

    def get(self, name: str) -> dict[str, Tensor] | None:
        """The piece, or None where it is not there; one that is damaged is not."""
        try:
            return safetensors.torch.load_file(self._path(name))
        except (OSError, SafetensorError):
            return None

    def put(self, name: str, **tensors: Tensor) -> dict[str, Tensor]:
        """Keep a piece; returns it as `get` will."""
        kept = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        beside = self.folder / f".{secrets.token_hex(6)}.part"
        try:
            safetensors.torch.save_file(kept, beside)
            os.replace(beside, self._path(name))
        except (OSError, SafetensorError) as fault:  # safetensors has an error of its own for a full disk
            raise _no_room(self.folder, fault) from None
        finally:  # whoever is stopped leaves no half of a piece
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
        return kept

    def drop(self, begin: str) -> None:
        """Remove the pieces whose names begin so."""
        try:
            for path in self.folder.glob(f"{begin}*.safetensors"):
                path.unlink(missing_ok=True)
        except OSError as fault:
            raise _no_room(self.folder, fault) from None

    def forget(self) -> None:
        """Remove all pieces. The folder stays: another run may be writing into it."""
        self.drop("")

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def _no_room(folder: Path, fault: Exception) -> RenderError:
    told = getattr(fault, "strerror", None) or str(fault).partition("\n")[0]
    hint = "FPSGEN_CACHE_DIR names another place; what was measured is kept"
    return RenderError(f"{folder} cannot be written: {told}", hint)
