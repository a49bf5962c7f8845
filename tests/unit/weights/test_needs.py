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
    found, in_blocks = needs.memory(model.checkpoint, (1280, 720, 81), target)
    tokens = 21 * 45 * 80
    assert alone["transformer"] == pytest.approx(2 * 14.3e9, rel=0.02)  # and little in float32
    assert found["transformer"] - alone["transformer"] == tokens * (16 * 5120 + 2 * (4 * 5120 + 2 * 13824))
    assert found["text encoder"] == alone["text encoder"] == pytest.approx(2 * 5.68e9, rel=0.01)
    assert found["VAE"] - alone["VAE"] == 1280 * 720 * needs.VAE_BYTES_PER_PIXEL
    streamed = needs.streamed(model.checkpoint, target)
    assert in_blocks == found["transformer"] - alone["transformer"] + streamed


def test_5b_at_720p_by_hand() -> None:
    model = models.absent("5b")
    target = Target(torch.device("cpu"), torch.bfloat16, torch.bfloat16)
    alone = needs.weights(model.checkpoint, target)
    found, _ = needs.memory(model.checkpoint, (1280, 704, 121), target)
    assert alone["transformer"] == pytest.approx(2 * 5.0e9, rel=0.02)
    assert found["transformer"] - alone["transformer"] == 31 * 22 * 40 * (16 * 3072 + 2 * (4 * 3072 + 2 * 14336))
    assert alone["VAE"] == pytest.approx(4 * 0.705e9, rel=0.01)


@pytest.mark.parametrize(("fp8", "bf16"), [("14b-fp8", "14b"), ("2.2-i2v-fast-fp8", "2.2-i2v")])
def test_fp8_of_a_model_that_is_absent_counts_a_byte_for_each_weight(fp8: str, bf16: str) -> None:
    target = Target(torch.device("cpu"), torch.bfloat16, torch.bfloat16)
    small, large = (needs.weights(models.absent(key).checkpoint, target) for key in (fp8, bf16))
    part = models.absent(fp8).checkpoint.words("transformer")
    assert 0.5 < small.pop(part) / large.pop(part) < 0.52  # biases, embeddings and the head are as they are
    small.pop("low-noise expert", None)
    assert all(large[name] == size for name, size in small.items())


def test_an_absent_model_that_sees_images_has_their_encoder() -> None:
    target = Target(torch.device("cpu"), torch.bfloat16, torch.bfloat16)
    found = needs.weights(models.absent("i2v-720p").checkpoint, target)
    assert found["image encoder"] == pytest.approx(4 * 632e6, rel=0.01)  # CLIP's ViT-H/14, in float32
    assert "image encoder" not in needs.weights(models.absent("2.2-i2v").checkpoint, target)


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


@pytest.mark.parametrize(
    ("model", "channels", "per_pixel"),
    [("1.3b", 16, needs.VAE_BYTES_PER_PIXEL), ("5b", 48, needs.VAE_2_2_BYTES_PER_PIXEL)],
)
def test_what_the_vae_takes_for_a_pixel_is_counted(model: str, channels: int, per_pixel: int) -> None:
    vae = load.empty_vae(models.absent(model).checkpoint)
    shape, pixels = (12, 20), models.absent(model).defaults.stride ** 2
    latents = torch.empty(1, channels, 5, *shape, device="meta")
    with torch.no_grad(), Live() as live:
        for _ in wan_vae.stream.__wrapped__(vae, latents):  # type: ignore[attr-defined]
            pass
    assert live.peak / (pixels * prod(shape)) == pytest.approx(per_pixel, rel=0.02)
