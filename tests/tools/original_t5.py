"""Wan2.1's text encoder as arithmetic on an original checkpoint's tensors: an oracle for names as much as for values.

Written from the original's source (`wan/modules/t5.py`): RMS norms, attention that is not scaled and has a
position table in every block, a feed-forward whose gate goes through GELU(tanh).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

# What each tensor of a block is called in transformers' UMT5.
BLOCK = {
    "norm1": "layer.0.layer_norm",
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}


def names(layers: int) -> dict[str, str]:
    """Original name -> transformers' name of every parameter."""
    found = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
    for n in range(layers):
        found |= {f"blocks.{n}.{ours}.weight": f"encoder.block.{n}.{theirs}.weight" for ours, theirs in BLOCK.items()}
    return found


def encode(state: Mapping[str, Tensor], ids: Tensor, heads: int) -> Tensor:
    """Token ids [n] to embeddings [n, width]."""
    x = state["token_embedding.weight"][ids]
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for n in range(layers):
        block = {name: state[f"blocks.{n}.{name}.weight"] for name in BLOCK}
        normed = _norm(x, block["norm1"])
        q, k, v = (F.linear(normed, block[f"attn.{part}"]).unflatten(1, (heads, -1)).transpose(0, 1) for part in "qkv")
        scores = q @ k.transpose(1, 2) + block["pos_embedding.embedding"][_buckets(len(ids))].permute(2, 0, 1)
        x = x + F.linear((scores.softmax(-1) @ v).transpose(0, 1).flatten(1), block["attn.o"])
        normed = _norm(x, block["norm2"])
        gate = F.gelu(F.linear(normed, block["ffn.gate.0"]), approximate="tanh")
        x = x + F.linear(F.linear(normed, block["ffn.fc1"]) * gate, block["ffn.fc2"])
    return _norm(x, state["norm.weight"])


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def _buckets(length: int, buckets: int = 32, furthest: int = 128) -> Tensor:
    """Which of 32 buckets a pair of positions falls into: 16 for each direction, 8 of them exact, 8 logarithmic."""
    distance = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    half = buckets // 2
    exact = half // 2
    far = exact + (distance.abs().clamp(min=1) / exact).log() / math.log(furthest / exact) * (half - exact)
    within = torch.where(distance.abs() < exact, distance.abs(), far.long().clamp(max=half - 1))
    return within + half * (distance > 0)
