"""The kernels' own sources, compiled by g++ against the host twin of the device header, and called from here."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fpsgen import assets
from fpsgen.attention import QKTransform
from fpsgen.attention.emulator import Variant, operands
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import TileGrid, key_lists

SOURCES = assets.folder("kernels_cuda")
SLOTS = 128
TRAILER = np.dtype([("scale", "f4"), ("valid", "i4"), ("unused", "i4", 2)])
ATTENTION = "HOST_RUN(fps_attention, Parameters, THREADS, Shared)"
PROLOGUE = "\n".join(
    f"HOST_RUN({kernel}, Parameters, THREADS, Shared)"
    for kernel in ("fps_row_rms", "fps_channel_sums", "fps_channel_totals", "fps_prologue")
)
SCORES = {"fp32": 0, "fp16": 1, "int32": 2}


def defines(variant: Variant, ragged: bool) -> dict[str, int]:
    return {
        "SCORES": SCORES[variant.scores],
        "SYNTHESISE": int(variant.synthesise),
        "SUM_CODES": int(variant.sum_codes),
        "PROMOTE": variant.promote or 1,
        "RAGGED": int(ragged),
    }


def prologue_defines(variant: Variant, smooth_k: bool) -> dict[str, int]:
    return {
        "QK_INT8": int(variant.qk == "int8"),
        "QK_LARGEST": int(variant.largest),
        "SMOOTH_K": int(smooth_k),
        "V_ONES": 8 if variant.sum_codes else 0,
    }


@cache
def build_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="fpsgen-host-"))


def build(source: str, main: str, options: dict[str, int]) -> ctypes.CDLL:
    """A shared library of the kernel text `source`, with the lines `main` behind it; built once for each content."""
    flags = ["-O2", "-std=c++17", "-shared", "-fPIC", "-w", f"-I{SOURCES / 'host'}"]
    flags += [f"-D{name}={value}" for name, value in options.items()]
    text = f"{source}\n{main}\n"
    headers = b"".join(path.read_bytes() for path in sorted((SOURCES / "host").iterdir()))
    path = build_folder() / (hashlib.sha256(repr((text, flags)).encode() + headers).hexdigest() + ".so")
    if not path.exists():
        subprocess.run(["g++", *flags, "-x", "c++", "-", "-o", path], input=text, text=True, check=True)
    return ctypes.CDLL(str(path))


@dataclass(frozen=True)
class Schedule:
    """How the machine behaves: the seed of its choices, whether copies land as late as can be, bits of FP8 sums."""

    seed: int = 0
    adversarial: bool = False
    accumulator_bits: int | None = None


def run(library: ctypes.CDLL, kernel: str, parameters: ctypes.Structure, blocks: int, schedule: Schedule) -> None:
    """Every block of a kernel; AssertionError where the machine found a fault."""
    entry = library[f"run_{kernel}"]
    entry.restype = ctypes.c_char_p
    bits = schedule.accumulator_bits or 0
    fault = entry(ctypes.byref(parameters), blocks, schedule.seed, int(schedule.adversarial), bits)
    assert fault is None, fault.decode()


class AttentionParameters(ctypes.Structure):
    """`Parameters` of sm90_attention.cu."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "trailers", "q_scale", "v_scale")),
        *((name, ctypes.c_void_p) for name in ("row_ptr", "cols", "list_of", "offsets", "out")),
        *((name, ctypes.c_int) for name in ("streams", "heads", "tiles", "tokens")),
    ]


def aligned(x: np.ndarray) -> np.ndarray:
    """A copy at a multiple of 128 bytes, as bulk copies want it."""
    room = np.empty(x.nbytes + 128, np.uint8)
    start = -room.ctypes.data % 128
    copy = room[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


def swizzled(rows: np.ndarray) -> np.ndarray:
    """uint8 [..., rows, 128] as the tile image: chunk c of row r at chunk c ^ (r & 7)."""
    chunks = rows.reshape(*rows.shape[:-1], 8, 16)
    places = np.arange(8) ^ (np.arange(rows.shape[-2])[:, None] & 7)
    return np.take_along_axis(chunks, np.broadcast_to(places[..., None], chunks.shape), -2).reshape(rows.shape)


def token_at() -> np.ndarray:
    """Which of a tile's 128 tokens stands at each position of v's image."""
    p = np.arange(SLOTS)
    inner = p % 32
    return p - inner + 8 * (2 * (inner // 16) + inner % 4 // 2) + 2 * (inner % 16 // 4) + inner % 2


def slots(x: Tensor, tiles: TileGrid) -> np.ndarray:
    """[batch, heads, tokens, …] to [streams, tiles, 128, …], zeros behind a tile's tokens."""
    x = x.flatten(0, 1)
    padded = np.zeros((x.shape[0], len(tiles.valid), SLOTS, *x.shape[2:]), np.float32)
    for tile, (first, count) in enumerate(zip(tiles.offsets.tolist(), tiles.valid.tolist(), strict=False)):
        padded[:, tile, :count] = x[:, first : first + count].numpy()
    return padded


def codes(x: np.ndarray, kind: str) -> np.ndarray:
    numbers = torch.from_numpy(np.ascontiguousarray(x))
    return numbers.to(torch.int8 if kind == "int8" else torch.float8_e4m3fn).view(torch.uint8).numpy()


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: AttentionPlan,
    variant: Variant,
    *,
    source: str | None = None,
    blocks: int = 3,
    schedule: Schedule = Schedule(),
) -> Tensor:
    """What sm90_attention.cu computes of operands that the emulator rounded; as `emulator.emulate`."""
    return launch(images(q, k, v, plan, variant), plan, variant, q.shape, source, blocks, schedule)


def images(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, variant: Variant) -> dict[str, np.ndarray]:
    """What the prologue hands over, made from the emulator's operands."""
    tiles = plan.tiles
    queries, keys, values = operands(q, k, v, plan, variant, "token")
    count = len(tiles.valid)
    image = {
        "q": swizzled(codes(slots(queries.numbers, tiles), variant.qk)),
        "k": swizzled(codes(slots(keys.numbers, tiles), variant.qk)),
    }
    transposed = np.swapaxes(codes(slots(values.numbers, tiles), "fp8"), -1, -2)[..., token_at()]
    if variant.sum_codes:
        ones = (np.arange(SLOTS) < tiles.valid.numpy()[:, None]).astype(np.float32)[:, None, token_at()]
        ones = np.broadcast_to(codes(ones, "fp8"), (len(transposed), count, 8, SLOTS))
        transposed = np.concatenate([transposed, ones], -2)
    trailers = np.zeros((len(transposed), count), TRAILER)
    trailers["scale"] = keys.scale.flatten(0, 1)[:, tiles.offsets[:-1], 0].numpy()
    trailers["valid"] = tiles.valid.numpy()
    per_score = queries.scale * (q.shape[3] ** -0.5 * np.log2(np.e))
    return {
        **image,
        "v": swizzled(transposed),
        "trailers": trailers,
        "q_scale": slots(per_score[..., 0], tiles),
        "v_scale": values.scale.flatten(0, 2).numpy(),
    }


def launch(
    handed: dict[str, np.ndarray],
    plan: AttentionPlan,
    variant: Variant,
    shape: tuple[int, ...],
    source: str | None,
    blocks: int,
    schedule: Schedule,
) -> Tensor:
    """sm90_attention.cu on what the prologue handed over; shape: [batch, tokens, heads, head_dim]."""
    tiles, (batch, tokens, heads, _) = plan.tiles, shape
    row_ptr, cols, list_of = merged_lists(plan, heads)
    arrays = handed | {
        "row_ptr": row_ptr,
        "cols": cols,
        "list_of": list_of,
        "offsets": tiles.offsets.numpy().astype(np.int32),
        "out": np.full(shape, 0x7FC0, np.uint16),  # NaN: rows that are not written show
    }
    arrays = {name: aligned(np.ascontiguousarray(x)) for name, x in arrays.items()}
    parameters = AttentionParameters(
        *(arrays[name].ctypes.data for name, _ in AttentionParameters._fields_[:11]),
        batch * heads,
        heads,
        len(tiles.valid),
        tokens,
    )
    text = source or (SOURCES / "sm90_attention.cu").read_text()
    ragged = bool((tiles.valid < SLOTS).any())
    library = build(text, ATTENTION, defines(variant, ragged))
    run(library, "fps_attention", parameters, blocks, schedule)
    return torch.from_numpy(arrays["out"].copy()).view(torch.bfloat16)


class PrologueParameters(ctypes.Structure):
    """`Parameters` of sm90_prologue.cu."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q_in", "k_in", "v_in", "norm_q", "norm_k", "rope", "offsets")),
        *((name, ctypes.c_void_p) for name in ("q_rms", "k_rms", "k_partial", "v_partial", "k_mean", "v_scale")),
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "trailers", "q_scale", "q_pooled", "k_pooled")),
        *((name, ctypes.c_int) for name in ("batch", "heads", "tiles", "tokens")),
        ("eps", ctypes.c_float),
    ]


def prologue(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    transform: QKTransform,
    plan: AttentionPlan,
    variant: Variant,
    *,
    source: str | None = None,
    schedule: Schedule = Schedule(),
) -> dict[str, np.ndarray]:
    """What sm90_prologue.cu makes of bfloat16 q, k and v before norm and RoPE; more than `images`."""
    tiles, (batch, tokens, heads, dim) = plan.tiles, q.shape
    streams, count = batch * heads, len(tiles.valid)
    channels = (streams, count, dim)
    arrays = {
        **{f"{name}_in": x.contiguous().view(torch.int16).numpy() for name, x in (("q", q), ("k", k), ("v", v))},
        "norm_q": transform.norm_q.float().numpy(),
        "norm_k": transform.norm_k.float().numpy(),
        "rope": transform.rope.numpy(),
        "offsets": tiles.offsets.numpy().astype(np.int32),
        **{name: np.full((batch, tokens), np.nan, np.float32) for name in ("q_rms", "k_rms")},
        **{name: np.full(channels, np.nan, np.float32) for name in ("k_partial", "v_partial", "q_pooled", "k_pooled")},
        **{name: np.full((streams, dim), np.nan, np.float32) for name in ("k_mean", "v_scale")},
        **{name: np.full((streams, count, SLOTS, dim), 255, np.uint8) for name in ("q", "k")},
        "v": np.full((streams, count, dim + (8 if variant.sum_codes else 0), SLOTS), 255, np.uint8),
        "trailers": np.zeros((streams, count), TRAILER),
        "q_scale": np.full((streams, count, SLOTS), np.nan, np.float32),
    }
    arrays = {name: aligned(np.ascontiguousarray(x)) for name, x in arrays.items()}
    pointers = (arrays[name].ctypes.data for name, kind in PrologueParameters._fields_ if kind is ctypes.c_void_p)
    parameters = PrologueParameters(*pointers, batch, heads, count, tokens, transform.eps)
    text = source or (SOURCES / "sm90_prologue.cu").read_text()
    library = build(text, PROLOGUE, prologue_defines(variant, plan.smooth_k))
    for kernel, blocks in (
        ("fps_row_rms", -(-2 * batch * tokens // 8)),
        ("fps_channel_sums", streams * count),
        ("fps_channel_totals", streams),
        ("fps_prologue", streams * count),
    ):
        run(library, kernel, parameters, blocks, schedule)
    return arrays


def merged_lists(plan: AttentionPlan, heads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The key lists of all windows in one CSR structure, and list_of [heads, tiles], -1 where dense."""
    row_ptr, cols = [np.zeros(1, np.int32)], [np.zeros(1, np.int32)]
    list_of = np.full((heads, len(plan.tiles.valid)), -1, np.int32)
    lists = entries = 0
    for index, window in enumerate(plan.windows):
        if window is None:
            continue
        own = key_lists(plan.tiles, window)
        list_of[plan.heads_of(index)] = own.list_of.numpy() + lists
        row_ptr.append(own.row_ptr.numpy()[1:] + entries)
        cols.append(own.cols.numpy())
        lists += len(own.row_ptr) - 1
        entries += len(own.cols)
    joined = np.concatenate(cols[1:]) if len(cols) > 1 else cols[0]
    return np.concatenate(row_ptr), joined, list_of
