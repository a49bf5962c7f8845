"""Work that is kept on disk piece by piece, so that whoever is killed goes on where they were."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from fpsgen import __version__, files
from fpsgen.errors import RenderError, reason
from fpsgen.machine import device_name, installed
from fpsgen.target import Target
from fpsgen.weights.models import Model

_READ = 2**26  # bytes, in a tenth of a second; the pocket model's files, which every installation writes anew, are less
_SUFFIX = ".piece"
_HASH = hashlib.sha256().digest_size


def surroundings(model: Model, weights: str, target: Target) -> dict[str, object]:
    """All that a clip depends on besides its settings, for a journal's key. weights: the transformer's fingerprint."""
    device = target.device
    others, loras = (*model.checkpoint.text_encoder, *model.checkpoint.vae), model.checkpoint.loras
    return {
        "versions": [__version__, torch.__version__, *map(installed, ("diffusers", "transformers"))],
        "others": [identity(file) for file in others],
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "device": device_name(device),
        "dtypes": [str(target.dtype), str(target.text_dtype)],
        "weights": weights,
    } | ({"loras": [[each.sha256, each.scale, each.expert] for each in loras]} if loras else {})


def identity(file: Path) -> list[object]:
    """What tells a file of weights from another: its content, or of a large one, which takes longer to read than a clip
    to render anew, size and time."""
    told = file.stat()
    if told.st_size <= _READ:
        return [told.st_size, hashlib.sha256(file.read_bytes()).hexdigest()]
    return [told.st_size, told.st_mtime_ns]


def check(root: Path) -> None:
    """RenderError where nothing could be kept in `root`: to be told before there is anything to keep."""
    with _explained(root):
        root.mkdir(parents=True, exist_ok=True)
        files.check_writable(root / "piece")


class Journal:
    """Named pieces in the folder of one key: whatever the pieces depend on. A piece appears whole or not at all.

    It is a safetensors file with a hash behind it, of the key, the piece's name and the file: names, shapes and values
    of its tensors. What was damaged or put in its place from elsewhere is therefore not there, and measured anew.
    """

    def __init__(self, root: Path, key: dict):
        told = json.dumps(key, sort_keys=True, ensure_ascii=False)
        self.folder = root / hashlib.sha256(told.encode()).hexdigest()[:24]
        with _explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._write(self.folder / "key.json", told.encode())

    def get(self, name: str) -> dict[str, Tensor] | None:
        """The piece, or None where it is not there; one that is damaged is not."""
        path = self.path(name)
        try:
            if path.is_symlink():
                return None
            with files.open_regular(path) as file:
                data = file.read()
        except OSError:
            return None
        body, told = data[:-_HASH], data[-_HASH:]
        return safetensors.torch.load(body) if told == self._hash(name, body) else None

    def put(self, name: str, **tensors: Tensor) -> dict[str, Tensor]:
        """Keep a piece; returns it as `get` will."""
        kept = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        body = safetensors.torch.save(kept)
        self._write(self.path(name), body + self._hash(name, body))
        return kept

    def path(self, name: str) -> Path:
        """The file of a piece, which may not be there."""
        return self.folder / f"{name}{_SUFFIX}"

    def drop(self, begin: str) -> None:
        """Remove the pieces whose names begin so."""
        with _explained(self.folder):
            for path in self.folder.glob(f"{begin}*{_SUFFIX}"):
                path.unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove all pieces. The folder stays: another run may be writing into it."""
        self.drop("")

    def _write(self, path: Path, data: bytes) -> None:
        """By one rename, which replaces a link or a pipe that stands there; whoever is stopped leaves no half of it."""
        with _explained(self.folder), files.beside(self.folder / "piece") as whole:
            whole.write_bytes(data)
            whole.replace(path)

    def _hash(self, name: str, body: bytes) -> bytes:
        return hashlib.sha256(f"{self.folder.name}/{name}\n".encode() + body).digest()


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """An OSError inside ends as a RenderError that `folder` cannot be written."""
    try:
        yield
    except OSError as fault:
        hint = "FPSGEN_CACHE_DIR names another place; what was measured is kept"
        raise RenderError(f"{folder} cannot be written: {reason(fault)}", hint) from None
