"""The kernels' own sources, compiled by g++ against the host twin of the device header, in the place of the card.

`on_this_machine` puts them under the product's own host code: what fills their parameters is what does so for a card.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Literal
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from fpsgen import assets
from fpsgen.attention import hopper, reference
from fpsgen.attention.door import choose
from fpsgen.attention.emulator import VARIANTS, Variant, emulate, operands, summary
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.qk import QKTransform, prepare
from fpsgen.attention.sums import HOPPER
from fpsgen.attention.tiles import TileGrid
from fpsgen.kernels.cache import Kernel
from fpsgen.wan import elementwise
from tests.tools import once

SOURCES = assets.folder("kernels_cuda")
SLOTS = 128
LATE = ("nothing", "copies", "wgmmas")  # `Late` of host/machine.h
TRAILER = np.dtype([("scale", "f4"), ("valid", "i4"), ("unused", "i4", 2)])
ENTRIES = {
    "sm90_attention": ("fps_attention",),
    "sm90_prologue": ("fps_rows", "fps_channels", "fps_tiles", "fps_v_again", "fps_summary"),
    "sm90_select": ("fps_select",),
    "sm90_elementwise": ("fps_norm", "fps_residual", "fps_round", "fps_gelu"),
}


@cache
def build_folder() -> Path:
    """The test session's, or one that goes when this process ends, but not when one that it forked does."""
    if shared := os.environ.get(once.FOLDER):
        return Path(shared)
    folder, owner = Path(tempfile.mkdtemp(prefix="fpsgen-host-")), os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(folder, ignore_errors=True))
    return folder


# With the first of these as some distributions' default, longjmp leaves no stack but its own.
FLAGS = ("-U_FORTIFY_SOURCE", "-O2", "-std=c++17", "-fPIC", "-w")


@cache
def headers() -> Path:
    """The standard headers of the machine, compiled: reading them takes g++ a second, most of a library's time."""
    lines = [line for path in (SOURCES / "host").glob("*.h") for line in path.read_text().splitlines(keepends=True)]
    text = "".join(sorted({line for line in lines if line.startswith("#include <")}))
    path = build_folder() / f"{hashlib.sha256(text.encode()).hexdigest()}.h"
    once.made(path, lambda beside: beside.write_text(text))
    once.made(path.with_suffix(".h.gch"), lambda beside: g_plus_plus("-x", "c++-header", path, "-o", beside))
    return path


def g_plus_plus(*arguments: object, text: str = "") -> None:
    subprocess.run(["g++", *FLAGS, *map(str, arguments)], input=text, text=True, check=True)


def build(source: str, main: str, options: Mapping[str, int]) -> ctypes.CDLL:
    """A shared library of the kernel text `source`, with the lines `main` behind it; built once for each content."""
    flags = [f"-I{SOURCES / 'host'}", f"-I{SOURCES}", *(f"-D{name}={value}" for name, value in options.items())]
    text = f"{source}\n{main}\n"
    included = b"".join(path.read_bytes() for path in sorted([*(SOURCES / "host").iterdir(), *SOURCES.glob("*.cuh")]))
    name = hashlib.sha256(repr((text, FLAGS, flags)).encode() + included).hexdigest()
    made = once.made(
        build_folder() / f"{name}.so",
        lambda beside: g_plus_plus("-shared", "-include", headers(), *flags, "-x", "c++", "-", "-o", beside, text=text),
    )
    return ctypes.CDLL(str(made))


def entries(kernel: Kernel) -> tuple[str, ...]:
    """Its entry functions: a prologue without a SUMMARY makes none; what rounds to 8 bits needs them, and the residual
    stream does not."""
    absent: set[str] = set()
    if kernel.SOURCE == "sm90_prologue" and not kernel.defines["SUMMARY"]:
        absent = {"fps_summary"}
    if kernel.SOURCE == "sm90_elementwise":
        absent = {"fps_residual"} if kernel.defines["FORMAT"] else {"fps_round", "fps_gelu"}
    return tuple(name for name in ENTRIES[kernel.SOURCE] if name not in absent)


def exported(entries: tuple[str, ...], cluster: int = 1) -> str:
    """The lines that make entry functions callable from here; see HOST_RUN."""
    return "\n".join(f"HOST_RUN({entry}, Parameters, {cluster}, THREADS, Shared)" for entry in entries)


@dataclass(frozen=True)
class Schedule:
    """How the machine behaves: the seed of its choices, what happens as late as can be, the bits that FP8 summands and
    sums keep (None: exact sums)."""

    seed: int = 0
    late: Literal["nothing", "copies", "wgmmas"] = "nothing"
    accumulator_bits: int | None = HOPPER.bits


def run(library: ctypes.CDLL, entry: str, parameters: np.ndarray, blocks: int, schedule: Schedule) -> None:
    """Every block of a kernel; AssertionError where the machine found a fault, or has other parameters."""
    size = ctypes.c_int.in_dll(library, f"parameters_of_{entry}").value
    assert parameters.nbytes == size, f"{entry} takes {size} bytes of parameters, not {parameters.nbytes}"
    function = library[f"run_{entry}"]
    function.restype = ctypes.c_char_p
    bits = schedule.accumulator_bits or 0
    address = ctypes.c_void_p(parameters.ctypes.data)
    fault = function(address, blocks, schedule.seed, LATE.index(schedule.late), bits)
    assert fault is None, fault.decode()


@contextmanager
def on_this_machine(
    schedule: Schedule = Schedule(), blocks: int = 3, edited: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Launch on the CPU what `fpsgen.attention.hopper` and `fpsgen.wan.elementwise` launch, and let `attend` and blocks
    choose it. blocks: of persistent kernels; edited: text of a source by its name. Memory that is not written shows as
    NaN."""

    def launch(kernel: Kernel, entry: str, count: int, parameters: np.ndarray, _: torch.device) -> None:
        text = (edited or {}).get(kernel.SOURCE) or (SOURCES / f"{kernel.SOURCE}.cu").read_text()
        library = build(text, exported(entries(kernel), kernel.defines.get("CLUSTER", 1)), kernel.defines)
        threads = ctypes.c_int.in_dll(library, f"threads_of_{entry}").value
        assert threads == kernel.THREADS, f"{entry} has {threads} threads, and is launched with {kernel.THREADS}"
        run(library, entry, parameters, count, schedule)

    choose.cache_clear()
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)  # torch.empty then fills with NaN, and with the largest integers
    try:
        here = {"launch": launch, "multiprocessors": lambda _: blocks, "why_not_here": lambda _: None}
        with mock.patch.multiple(hopper, **here), mock.patch.object(elementwise, "launch", launch):
            yield
    finally:
        choose.cache_clear()
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: AttentionPlan,
    variant: str,
    *,
    source: str | None = None,
    blocks: int = 3,
    schedule: Schedule = Schedule(),
) -> Tensor:
    """What sm90_attention.cu computes of operands that the emulator rounded; as `emulator.emulate`."""
    with on_this_machine(schedule, blocks, {"sm90_attention": source} if source else None):
        handed = {name: torch.tensor(x) for name, x in images(q, k, v, plan, variant).items()}
        return hopper.attention_over(handed | lists(q, k, plan), plan, variant, len(q))


def prologue(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    transform: QKTransform,
    plan: AttentionPlan,
    variant: str,
    *,
    source: str | None = None,
    schedule: Schedule = Schedule(),
) -> dict[str, np.ndarray]:
    """What sm90_prologue.cu makes of q, k and v before norm and RoPE; more than `images`."""
    with on_this_machine(schedule, edited={"sm90_prologue": source} if source else None):
        made = hopper.prologue(q, k, v, transform, plan, variant)
    return {name: x.numpy() for name, x in made.items()}


def chosen(
    pooled: Mapping[str, Tensor],
    plan: AttentionPlan,
    batch: int,
    *,
    source: str | None = None,
    schedule: Schedule = Schedule(),
) -> dict[str, Tensor]:
    """What sm90_select.cu makes of q_pooled and k_pooled."""
    with on_this_machine(schedule, edited={"sm90_select": source} if source else None):
        return hopper.choose(pooled, plan, batch)


def lists(q: Tensor, k: Tensor, plan: AttentionPlan) -> dict[str, Tensor]:
    """The lists that the emulator chooses, and a summary's addends, as the kernel takes them. What nobody should read
    is nowhere, or NaN."""
    seen_by, tiles = plan.heads or (0,) * q.shape[2], plan.tiles
    logs, summaries = tiles.valid.float().log2(), -(-len(tiles.valid) // SLOTS)
    addends = torch.full((len(q), q.shape[2], len(logs), summaries * SLOTS), torch.nan)
    chosen = [torch.zeros(0, dtype=torch.int32)]
    for entry, (head, index) in product(range(len(q)), enumerate(seen_by)):
        own = plan.key_tiles[index]
        given = (x[entry : entry + 1, :, head : head + 1] for x in (q, k))
        listed = reference.key_tiles(*given, own, tiles)[0, 0]
        if own.top is not None:
            chosen.append(listed.flatten().int())
        if own.rest == "summary":
            addends[entry, head] = -torch.inf
            addends[entry, head, :, : len(logs)] = logs
            addends[entry, head].scatter_(1, listed, -torch.inf)
    return {"chosen": torch.cat(chosen), "addends": addends}


def emulated(q: Tensor, k: Tensor, v: Tensor, transform: QKTransform, plan: AttentionPlan) -> Tensor:
    """As `hopper.attention`, by the emulator."""
    v_dtype = v.dtype
    q, k, v = (x.bfloat16() for x in (q, k, v))
    q, k = prepare(q, transform.norm_q, transform), prepare(k, transform.norm_k, transform)
    return emulate(q, k, v, plan, VARIANTS[hopper.FASTEST[plan.qk]]).to(v_dtype)


def trailers(raw: np.ndarray) -> np.ndarray:
    """Bytes [streams, tiles, 16] by field."""
    return raw.view(TRAILER)[..., 0]


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


def slots(x: Tensor, tiles: TileGrid, repeat: bool = False) -> np.ndarray:
    """[batch, heads, tokens, …] to [streams, tiles, 128, …]; behind a tile's tokens zeros, or its last one repeated."""
    x = x.flatten(0, 1)
    padded = np.zeros((x.shape[0], len(tiles.valid), SLOTS, *x.shape[2:]), np.float32)
    for tile, (first, count) in enumerate(zip(tiles.offsets.tolist(), tiles.valid.tolist(), strict=False)):
        padded[:, tile, :count] = x[:, first : first + count].numpy()
        if repeat:
            padded[:, tile, count:] = padded[:, tile, count - 1 : count]
    return padded


def codes(x: np.ndarray, kind: str) -> np.ndarray:
    numbers = torch.from_numpy(np.ascontiguousarray(x))
    return numbers.to(torch.int8 if kind == "int8" else torch.float8_e4m3fn).view(torch.uint8).numpy()


def images(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, variant: str) -> dict[str, np.ndarray]:
    """What the prologue hands over, made from the emulator's operands."""
    tiles, kind = plan.tiles, VARIANTS[variant]
    queries, keys, values = operands(q, k, v, plan, kind)
    per_score = queries.scale * (q.shape[3] ** -0.5 * np.log2(np.e))
    made = {
        "q": swizzled(codes(slots(queries.numbers, tiles, repeat=True), kind.qk)),
        **dict(zip(("k", "trailers"), images_of_k(keys.numbers, keys.scale, tiles, kind), strict=True)),
        "v": image_of_v(values.numbers, tiles, kind),
        "q_scale": slots(per_score[..., 0], tiles, repeat=True),
        "v_scale": values.scale.flatten(0, 2).numpy(),
    }
    if plan.has_summary:  # rows are tiles, and 128 of them a tile
        runs = TileGrid((1, 1, len(tiles.valid)), (1, 1, SLOTS))
        numbers, scale, means = summary(k, v, values.scale, plan, kind)
        made |= dict(zip(("summary_k", "summary_trailers"), images_of_k(numbers, scale, runs, kind), strict=True))
        made["summary_v"] = image_of_v(means, runs, kind)
    return {name: np.ascontiguousarray(x) for name, x in made.items()}


def images_of_k(numbers: Tensor, scale: Tensor, tiles: TileGrid, kind: Variant) -> tuple[np.ndarray, np.ndarray]:
    """Tiles of keys, and their trailers."""
    image = swizzled(codes(slots(numbers, tiles, repeat=True), kind.qk))
    own = np.zeros((*image.shape[:2], 1), TRAILER)
    own["scale"][..., 0] = scale.flatten(0, 1)[:, tiles.offsets[:-1], 0].numpy()
    own["valid"][..., 0] = tiles.valid.numpy()
    return image, own.view(np.uint8)


def image_of_v(numbers: Tensor, tiles: TileGrid, kind: Variant) -> np.ndarray:
    """Tiles of values, with rows of ones below tokens where the variant has them."""
    transposed = np.swapaxes(codes(slots(numbers, tiles), "fp8"), -1, -2)[..., token_at()]
    if kind.sum_codes:
        ones = (np.arange(SLOTS) < tiles.valid.numpy()[:, None]).astype(np.float32)[:, None, token_at()]
        ones = np.broadcast_to(codes(ones, "fp8"), (*transposed.shape[:2], 8, SLOTS))
        transposed = np.concatenate([transposed, ones], -2)
    return swizzled(transposed)
