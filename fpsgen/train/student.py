"""What is trained: all weights of a transformer, or LoRA adapters inside it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fpsgen.attention.quantize import Format, Quantized
from fpsgen.wan.linear import Linear, Rounded, quantized
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights import lora


class Adapted(Linear):
    """A linear layer and, beside it, an adapter (arXiv 2106.09685, section 4.1, with alpha = rank): W x + b + B A x.

    `weight` and `bias` are the layer's own parameters, under their names; A and B are float32. B is zero at first.
    """

    def __init__(self, linear: Linear, rank: int, random: torch.Generator):
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        where = {"device": linear.weight.device, "dtype": torch.float32}
        # Not through their own initialisation, which would draw from the global generator.
        self.lora_A = nn.utils.skip_init(nn.Linear, linear.in_features, rank, bias=False, **where)
        self.lora_B = nn.utils.skip_init(nn.Linear, rank, linear.out_features, bias=False, **where)
        drawn = nn.init.kaiming_uniform_(torch.empty(self.lora_A.weight.shape), math.sqrt(5), generator=random)
        with torch.no_grad():
            self.lora_A.weight.copy_(drawn)
            self.lora_B.weight.zero_()
        self.adapts = True

    def forward(self, x: Tensor | Rounded) -> Tensor:
        out = super().forward(x)
        if not self.adapts or isinstance(x, Rounded):
            return out
        a, b = (half.weight.to(x.dtype) for half in (self.lora_A, self.lora_B))  # not x, which would be kept twice
        return out + F.linear(F.linear(x, a), b)

    def quantized(self, kind: Format) -> Quantized:
        """Of the weight with the adapter in it: a LoRA is merged before weights are rounded."""
        if not self.adapts:
            return super().quantized(kind)
        return quantized(self.weight + self.lora_B.weight @ self.lora_A.weight, kind)


class Student:
    """A transformer, made ready for training in its place: with adapters of a rank on `lora.targets` and all else
    frozen in the dtype that it has; or, without a rank, in float32, to be trained as a whole.

    seed: of the adapters, which are drawn in the order of the layers. base: the transformer's fingerprint before.
    """

    def __init__(self, transformer: WanTransformer, rank: int | None, seed: int):
        self.transformer, self.base = transformer, transformer.fingerprint()
        self._adapted: list[Adapted] = []
        if rank is None:
            transformer.float().requires_grad_(True)
            return
        transformer.requires_grad_(False)
        random = torch.Generator().manual_seed(seed)
        for name in lora.targets(transformer.config):
            linear = transformer.get_submodule(name)
            assert isinstance(linear, Linear)
            self._adapted.append(Adapted(linear, rank, random))
            transformer.set_submodule(name, self._adapted[-1])

    def parameters_to_train(self) -> dict[str, nn.Parameter]:
        """By name, in the transformer's order; asked anew they are those that sharding put in their places."""
        return {name: each for name, each in self.transformer.named_parameters() if each.requires_grad}

    @contextmanager
    def teaching(self) -> Iterator[None]:
        """Inside, the transformer computes as before training: without adapters, keys and values of prompts included.
        One that is trained as a whole has no such other self."""
        assert self._adapted
        for each in self._adapted:
            each.adapts = False
        try:
            yield
        finally:
            for each in self._adapted:
                each.adapts = True
