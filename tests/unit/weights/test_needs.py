"""How much memory a model takes, by hand and by counting."""

from __future__ import annotations

import weakref
from math import prod
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fpsgen.target import Target
from fpsgen.wan import vae as wan_vae
from fpsgen.weights import load, models, needs


def test_14b_at_720p_by_hand() -> None:
    model = models.absent("14b")
    target = Target(torch.device("cpu"), torch.bfloat16, torch.bfloat16)
    alone = needs.weights(model.checkpoint, target)
    found = needs.memory(model.checkpoint, (1280, 720, 81), target)
    tokens = 21 * 45 * 80
    assert alone["transformer"] == pytest.approx(2 * 14.3e9, rel=0.02)  # and little in float32
    assert found["transformer"] - alone["transformer"] == tokens * (16 * 5120 + 2 * (4 * 5120 + 2 * 13824))
    assert found["text encoder"] == alone["text encoder"] == pytest.approx(2 * 5.68e9, rel=0.01)
    assert found["VAE"] - alone["VAE"] == 1280 * 720 * needs.VAE_BYTES_PER_PIXEL


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that there are at once."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.bytes:
                    self.bytes[key] = storage.nbytes()
                    weakref.finalize(storage, self.bytes.pop, key)
        self.peak = max(self.peak, sum(self.bytes.values()))
        return out


def test_what_the_vae_takes_for_a_pixel_is_counted() -> None:
    vae = load.empty_vae(models.absent("1.3b").checkpoint)
    shape = (12, 20)
    latents = torch.empty(1, 16, 5, *shape, device="meta")
    with torch.no_grad(), Live() as live:
        for _ in wan_vae.stream.__wrapped__(vae, latents):  # type: ignore[attr-defined]
            pass
    assert live.peak / (64 * prod(shape)) == pytest.approx(needs.VAE_BYTES_PER_PIXEL, rel=0.02)
