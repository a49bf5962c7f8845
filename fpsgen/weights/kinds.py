"""Which kind of file a file is: by its first bytes, by the names and shapes of its tensors, by its metadata and, if
nothing else decides, by its name. The kinds and the sentences about them are a table, `kinds.toml`.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fpsgen.errors import ModelError
from fpsgen.printable import printable
from fpsgen.wan.config import FETCH_AGAIN, OURS
from fpsgen.weights import keys

FIRST_BYTES = 512  # that tell a file without tensors
# By safetensors' names; ggml has the first three, too.
FLOATS = ("F32", "BF16", "F16")
EIGHT_BITS = ("F8_E4M3", "F8_E5M2", "I8")
_BLOCKS = re.compile(r"[IT]?Q\d.*|MXFP4|NVFP4")  # GGUF's types, whose blocks contain their scales


@dataclass(frozen=True)
class Header:
    """What a file says of a tensor without its being read; dtype by safetensors' or ggml's name for it. scale: the
    tensor by which its 8-bit numbers are multiplied, if there is one."""

    shape: tuple[int, ...]
    dtype: str
    scale: str | None = None

    @property
    def is_8_bits(self) -> bool:
        """Whether a weight of these numbers is kept in them, with scales."""
        return self.dtype in EIGHT_BITS and len(self.shape) > 1

    @property
    def is_read(self) -> bool:
        """Whether values can be made of its numbers."""
        known = self.dtype in FLOATS or (self.dtype in EIGHT_BITS and (self.dtype != "I8" or bool(self.scale)))
        return known or bool(_BLOCKS.fullmatch(self.dtype))


@dataclass(frozen=True)
class Contents:
    """What a file with tensors says of itself. fault: what is wrong with the scales of its weights, as the rest of a
    sentence that begins with its name; "" if nothing is."""

    file: Path
    tensors: Mapping[str, Header]
    metadata: Mapping[str, str] = field(default_factory=dict)
    fault: str = ""

    @cached_property
    def by_original_name(self) -> dict[str, Header]:
        """The tensors under the original's names for a transformer's."""
        return {keys.TRANSFORMER.to_original(keys.bare(name)): header for name, header in self.tensors.items()}

    @property
    def channels(self) -> int | None:
        """Latent channels that a transformer takes."""
        embedding = self.by_original_name.get("patch_embedding.weight")
        return embedding.shape[1] if embedding and len(embedding.shape) == 5 else None

    @property
    def reads_images(self) -> bool:
        """Whether a transformer has layers for an image encoder's states."""
        return any(name.startswith("img_emb.") for name in self.by_original_name)

    @property
    def is_whole(self) -> bool:
        """Whether a transformer has its first layer and its last."""
        return bool(self.channels) and "head.head.weight" in self.by_original_name

    @property
    def label(self) -> str:
        """Where people write what a file is: in its name, its metadata, and the folder's name if that is Wan2.2's."""
        folder = self.file.parent.name if self.file.parent.name.endswith("_noise_model") else ""
        metadata = " ".join(f"{key}={value}" for key, value in self.metadata.items())
        return f"{folder} {self.file.name} {metadata[:10_000]}"


@dataclass(frozen=True)
class Kind:
    """One row of the table, which explains the fields."""

    name: str
    says: str = ""
    expert: bool = False
    hint: str = OURS
    when: Mapping[str, str] = field(default_factory=dict)

    def fits(self, contents: Contents) -> bool:
        return all(
            any(map(re.compile(pattern).match, contents.by_original_name))
            if key == "tensors"
            else re.search(pattern, str(getattr(contents, key)))
            for key, pattern in self.when.items()
        )


@functools.cache
def table(by: str) -> tuple[Kind, ...]:
    """The kinds of files by `first_bytes`, or by `tensors`."""
    rows = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return tuple(Kind(**row) for row in rows[by])


def is_safetensors(start: bytes) -> bool:
    """Whether a file begins with a header's length, which may read like anything, and a header."""
    return start[4:9] == b"\0\0\0\0{"


def refuse_plain(file: Path, start: bytes, *allowed: str) -> None:
    """ModelError where a file's first bytes tell that it holds no tensors, unless it is of a kind that is `allowed`."""
    if is_safetensors(start):
        return
    for kind in table("first_bytes"):
        if kind.name not in allowed and re.match(kind.when["start"], start.decode("latin-1")):
            words = printable(" ".join(start.decode(errors="replace").split()), 60)
            raise ModelError(f"{printable(file)} {kind.says.format(start=words)}", hint=kind.hint)


def kind_of(contents: Contents) -> Kind:
    return next(kind for kind in table("tensors") if kind.fits(contents))


def refuse_other_kinds(contents: Contents, wanted: str = "transformer", paired: bool = False) -> None:
    """ModelError where a file is not of the kind `wanted`, or holds it in numbers that fpsgen does not read. paired:
    whether it lies beside the other one of two experts."""
    kind = kind_of(contents)
    if kind.name == wanted or (paired and kind.expert):
        refuse_fault(contents)
        if wanted == "LoRA" and any(header.is_8_bits for header in contents.tensors.values()):
            message = f"{printable(contents.file)} holds the LoRA in 8 bits, which fpsgen does not read"
            raise ModelError(message, hint="use the fp16 or bf16 file of the same LoRA")
        return
    tensors = ", ".join(printable(name, 40) for name in list(contents.tensors)[:3])
    says = (kind.says or "is a transformer").format(
        channels=contents.channels, tensors=tensors or "nothing, for there are none"
    )
    hint = kind.hint
    if wanted != "transformer":
        says = f"should be the {wanted}, but {says.removesuffix(', not a transformer')}"
        hint = "give the LoRA's own file" if wanted == "LoRA" else FETCH_AGAIN
    raise ModelError(f"{printable(contents.file)} {says}", hint=hint)


def refuse_fault(contents: Contents) -> None:
    """ModelError where the scales of a file's weights are missing, do not fit, or are of a format that is not read."""
    if contents.fault:
        hint = "use the fp16, the bf16 or a scaled FP8 file of the same model"
        raise ModelError(f"{printable(contents.file)} {contents.fault}", hint=hint)


def some(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    return ", ".join(printable(name, 80) for name in names[:most]) + (", …" if len(names) > most else "")
