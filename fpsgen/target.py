"""Where a model runs, and in which precision: one value, chosen once by a command and passed downward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fpsgen import machine

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Target:
    """dtype: of the transformer's matrix products; text_dtype: of the text encoder's. graphs: whether
    videos run as CUDA graphs, where they can."""

    device: torch.device
    dtype: torch.dtype
    text_dtype: torch.dtype
    graphs: bool = False

    @property
    def dtype_name(self) -> str:
        """The transformer's precision as torch calls it, such as bfloat16."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def may_decode_in_bf16(self) -> bool:
        """Unless float32 was asked for, which the text encoder's dtype says, and where it is quicker."""
        return self.text_dtype.itemsize == 2 and machine.has_fast_bf16(self.device)

    def as_dict(self) -> dict[str, Any]:
        """The three by name, for JSON."""
        text_dtype = str(self.text_dtype).removeprefix("torch.")
        return {"device": str(self.device), "dtype": self.dtype_name, "text_dtype": text_dtype}
