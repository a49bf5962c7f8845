"""UMT5's encoder, which Wan2.1 reads prompts with. Parameters have transformers' names; so have the settings.

Written out because transformers takes seconds to load, for a network of a hundred lines. A test holds it
bit-identical to transformers' `UMT5EncoderModel`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fpsgen.wan.linear import Linear

_DEFAULTS = {"d_kv": 64, "relative_attention_num_buckets": 32, "layer_norm_epsilon": 1e-6}
_FARTHEST = 128  # tokens; all that are farther away count alike (`relative_attention_max_distance`)


class UMT5Encoder(nn.Module):
    """Token ids [1, n] to hidden states [1, n, d_model], in the dtype of the weights. config: a checkpoint's, with
    transformers' names for the settings."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        told = {**_DEFAULTS, **config}
        self.shared = nn.Embedding(told["vocab_size"], told["d_model"])
        self.encoder = _Stack(told)

    def forward(self, ids: Tensor) -> Tensor:
        return self.encoder(self.shared(ids))


class _Stack(nn.Module):
    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.block = nn.ModuleList(_Block(config) for _ in range(config["num_layers"]))
        self.final_layer_norm = _RMSNorm(config["d_model"], config["layer_norm_epsilon"])
        self.streamed: Iterable[nn.Module] | None = None  # the same blocks, which are here only while they compute

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block if self.streamed is None else self.streamed:
            x = block(x)
        return self.final_layer_norm(x)


class _Block(nn.Module):
    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        attention = _Layer(config, "SelfAttention", _BiasedAttention(config))
        feed_forward = _Layer(config, "DenseReluDense", _GatedFeedForward(config["d_model"], config["d_ff"]))
        self.layer = nn.ModuleList([attention, feed_forward])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layer:
            x = x + layer(x)
        return x


class _RMSNorm(nn.Module):
    """Mean and product in float32, whatever the weights are."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.empty(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        variance = x.float().pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + self.eps)).to(self.weight.dtype)


class _Layer(nn.Module):
    """A norm, and the part called `name` behind it."""

    def __init__(self, config: Mapping[str, Any], name: str, part: nn.Module):
        super().__init__()
        self.add_module(name, part)
        self.layer_norm, self._name = _RMSNorm(config["d_model"], config["layer_norm_epsilon"]), name

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self._name)(self.layer_norm(x))


class _GatedFeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.wi_0, self.wi_1 = Linear(dim, hidden, bias=False), Linear(dim, hidden, bias=False)
        self.wo = Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.wi_0(x)
        # GELU by tanh, one operation after the other: each rounds to the weights' dtype, as in transformers.
        gate = 0.5 * gate * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (gate + 0.044715 * torch.pow(gate, 3.0))))
        return self.wo(gate * self.wi_1(x))


class _BiasedAttention(nn.Module):
    """Scores are not scaled; to each is added what its head has learned for the distance of the two tokens."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.heads, dim, inner = config["num_heads"], config["d_model"], config["num_heads"] * config["d_kv"]
        self.q, self.k, self.v = (Linear(dim, inner, bias=False) for _ in range(3))
        self.o = Linear(inner, dim, bias=False)
        self.relative_attention_bias = nn.Embedding(config["relative_attention_num_buckets"], self.heads)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        bias = self.relative_attention_bias(self._buckets(x.shape[1], x.device)).permute(2, 0, 1)[None].contiguous()
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.o(out.transpose(1, 2).flatten(2))

    def _buckets(self, length: int, device: torch.device) -> Tensor:
        """int64 [length, length], from query to key: half of the buckets are for keys behind; in each half, half are
        for one distance each, the others for ranges of growing width (Raffel et al., arXiv 1910.10683, 2.1)."""
        half = self.relative_attention_bias.num_embeddings // 2
        exact, place = half // 2, torch.arange(length, device=device)
        distance = place[None, :] - place[:, None]
        behind, distance = (distance > 0).long() * half, distance.abs()
        ratio = torch.log(distance.float() / exact) / math.log(_FARTHEST / exact)
        far = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
        return behind + torch.where(distance < exact, distance, far)
