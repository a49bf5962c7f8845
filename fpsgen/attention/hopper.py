"""Sparse attention in 8 bits by our own kernels, on Hopper: the prologue, the choice of key tiles where they are chosen
by their content, then tile-sparse attention.

Unlike the other backends, this one takes q and k before norm and RoPE: its prologue does both, and smoothing and
rounding. The result is that of `emulator`, rounding by rounding. It differs from the reference's in two points: q has a
scale for each token, which costs the kernel nothing, instead of one for each tile; and v's scales come from a sample of
its rows, so that v is read once.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, chain
from math import ceil

import torch
from torch import Tensor

from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.attention.qk import QKTransform
from fpsgen.attention.select import SUMMARY_KEYS
from fpsgen.attention.tiles import TileGrid, kept, key_lists
from fpsgen.kernels import cache, nvrtc
from fpsgen.kernels import sm90_attention as attention_kernels
from fpsgen.kernels import sm90_prologue as prologue_kernels
from fpsgen.kernels import sm90_select as select_kernels
from fpsgen.kernels.launch import launch, packed
from fpsgen.kernels.sm90_attention import HEAD_DIM, SLOTS, TRAILER_BYTES, AttentionKernel
from fpsgen.kernels.sm90_prologue import MOST_HEADS, PrologueKernel
from fpsgen.kernels.sm90_select import MOST_TILES, SelectKernel

# The variant of the kernel that runs a plan, by the plan's qk; `emulator.VARIANTS` says what each computes.
FASTEST = {"fp8": "fp8-fp16", "int8": "int8-int32"}


def why_not(device: torch.device, plan: AttentionPlan, head_dim: int) -> str | None:
    """Why this backend cannot run `plan` on `device`."""
    if (count := len(plan.tiles.valid)) > MOST_TILES and not plan.has_windows_only:
        return f"it chooses among {MOST_TILES} tiles at most, not {count}"
    if plan.qk not in FASTEST or plan.pv != "fp8":
        return "it rounds q, k, v and P to 8 bits, and the plan does not"
    if head_dim != HEAD_DIM:
        return f"it is for heads of {HEAD_DIM} channels, not {head_dim}"
    if (largest := int(plan.tiles.valid.max())) > SLOTS:
        return f"its tiles hold {SLOTS} tokens at most, not {largest}"
    return why_not_here(device)


@functools.cache
def why_not_here(device: torch.device) -> str | None:
    """Why it cannot run anything on `device`."""
    if device.type != "cuda":
        return "it is for CUDA GPUs"
    if torch.version.hip is not None:  # AMD's, which torch calls cuda, too
        return "it is for NVIDIA GPUs"
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU"
    wanted, found = cache.capability(AttentionKernel.architecture), torch.cuda.get_device_capability(device)
    if found != wanted:
        names = "Hopper ({}, compute capability {}.{})".format(AttentionKernel.architecture, *wanted)
        return f"it is for {names}, not {found[0]}.{found[1]}"
    try:
        import cupy  # noqa: F401  # here and not at the first launch, minutes later
    except ModuleNotFoundError:
        return 'it needs CuPy: pip install "fpsgen[cuda13]", or [cuda12]'
    except Exception as fault:  # CuPy looks for libraries while it is imported
        return f"CuPy cannot be used: {type(fault).__name__}: {fault}".splitlines()[0]
    try:
        compiler, driver = nvrtc.version(), nvrtc.driver_version()
    except nvrtc.NoCompilerError as missing:
        return f"{missing}: {missing.marked_hint}"
    if driver and compiler[0] > driver[0]:
        return f'NVRTC belongs to CUDA {compiler[0]}, the driver runs CUDA {driver[0]}: pip install "fpsgen[cuda12]"'
    return None


def kernels(plan: AttentionPlan, variant: str) -> tuple[PrologueKernel, AttentionKernel]:
    """What runs `plan`, in this order."""
    before, kernel = prologue_kernels.VARIANTS[variant], attention_kernels.VARIANTS[variant]
    if kernel.SCORES != "INT32" and int(plan.tiles.valid.max()) <= 120:
        kernel = replace(kernel, KEYS=120)
    return replace(before, SMOOTH_K=plan.smooth_k, SUMMARY=plan.has_summary), kernel


def selection(plan: AttentionPlan) -> SelectKernel | None:
    """What chooses tiles by their content, and makes a summary's addends; None where windows are all there is."""
    return None if plan.has_windows_only else select_kernels.fitting(len(plan.tiles.valid))


def make_ready(plans: Sequence[AttentionPlan], heads: int, device: torch.device) -> list[cache.Built]:
    """Compile what `attention` launches for `plans`, unless it is compiled already, and bring their lists over."""
    for plan in plans:
        device_offsets(plan.tiles, device)
        device_lists(plan, heads, device)
    launched = ((*kernels(plan, FASTEST[plan.qk]), selection(plan)) for plan in plans)
    return [cache.build(kernel) for kernel in dict.fromkeys(chain.from_iterable(launched)) if kernel]


def attention(
    q: Tensor, k: Tensor, v: Tensor, qk_transform: QKTransform, plan: AttentionPlan, variant: str | None = None
) -> Tensor:
    """q, k (before norm and RoPE), v and the result [batch, tokens, heads, head_dim], rows in tile order.

    What is not bfloat16 is rounded to it first, which 8 bits do not notice. variant: a key of `emulator.VARIANTS`, by
    default the fastest that the plan's precision allows. NotImplementedError where gradients are wanted.
    """
    given = (q, k, v, qk_transform.norm_q, qk_transform.norm_k, qk_transform.rope)
    if torch.is_grad_enabled() and any(x.requires_grad for x in given):
        raise NotImplementedError("the Hopper kernel has no gradients: run it under torch.no_grad()")
    variant = variant or FASTEST[plan.qk]
    operands = prologue(q, k, v, qk_transform, plan, variant)
    operands |= choose(operands, plan, len(q))
    return attention_over(operands, plan, variant, len(q)).to(v.dtype)


def prologue(
    q: Tensor, k: Tensor, v: Tensor, qk_transform: QKTransform, plan: AttentionPlan, variant: str
) -> dict[str, Tensor]:
    """What `attention_over` reads, and q_pooled and k_pooled: each tile's mean, float32 [streams, tiles, head_dim].

    A stream is one head of one batch entry. q, k, v: tile images, uint8 [streams, tiles, rows, 128]; trailers: of k's;
    q_scale [streams, tiles, 128] and v_scale [streams, head_dim]: float32. Where the plan has a summary, also tiles of
    128 mean keys and values: summary_k, summary_v and summary_trailers, as k, v and trailers, [streams, summaries, …].
    """
    check(q, k, v, qk_transform, plan)
    (batch, tokens, heads, dim), count, device = q.shape, len(plan.tiles.valid), q.device
    streams = batch * heads
    kernel, _ = kernels(plan, variant)
    summaries = ceil(count / SUMMARY_KEYS) if kernel.SUMMARY else 0

    def room(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    image = (streams, count, SLOTS, dim)
    made = {
        "q": room(*image, dtype=torch.uint8),
        "k": room(*image, dtype=torch.uint8),
        "v": room(streams, count, dim + kernel.V_ONES, SLOTS, dtype=torch.uint8),
        "trailers": room(streams, count, TRAILER_BYTES, dtype=torch.uint8),
        "q_scale": room(streams, count, SLOTS),
        "v_scale": room(streams, dim),
        "q_pooled": room(streams, count, dim),
        "k_pooled": room(streams, count, dim),
        "summary_k": room(streams, summaries, SLOTS, dim, dtype=torch.uint8),
        "summary_v": room(streams, summaries, dim + kernel.V_ONES, SLOTS, dtype=torch.uint8),
        "summary_trailers": room(streams, summaries, TRAILER_BYTES, dtype=torch.uint8),
    }
    given: dict[str, Tensor | float] = {
        **{name: x.bfloat16().contiguous() for name, x in (("q", q), ("k", k), ("v", v))},
        "norm_q": qk_transform.norm_q.float().contiguous(),
        "norm_k": qk_transform.norm_k.float().contiguous(),
        "rope": qk_transform.rope.float().contiguous(),
        "offsets": device_offsets(plan.tiles, device),
        "eps": qk_transform.eps,
    }
    between = {
        "k_rms": room(batch, tokens),
        "k_mean": room(streams, dim),
        "v_beyond": room(streams, dim, dtype=torch.int32),
        "v_means": room(streams, count if kernel.SUMMARY else 0, dim),
    }
    images = {f"{name}_image": made[name] for name in ("q", "k", "v")}
    counts = {"batch": batch, "heads": heads, "tiles": count, "tokens": tokens}
    parameters = packed(prologue_kernels.PARAMETERS, {**made, **given, **between, **images, **counts})
    for function, blocks in (
        ("fps_rows", 2 * batch * count),  # for q, for k
        ("fps_channels", streams),
        ("fps_tiles", 2 * streams * count),  # for k, for v
        ("fps_v_again", streams * min(count, 8)),  # few, since there is hardly ever anything to do
        ("fps_summary", 2 * streams * summaries),  # for k, for v
    ):
        if blocks:
            launch(kernel, function, blocks, parameters, device)
    return made


def check(q: Tensor, k: Tensor, v: Tensor, qk_transform: QKTransform, plan: AttentionPlan) -> None:
    """ValueError for what a kernel would read beyond its end."""
    batch, _, heads, _ = q.shape
    tokens = plan.tiles.tokens
    wanted: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        **{name: (x, (batch, tokens, heads, HEAD_DIM)) for name, x in (("q", q), ("k", k), ("v", v))},
        **{name: (getattr(qk_transform, name), (heads * HEAD_DIM,)) for name in ("norm_q", "norm_k")},
        "rope": (qk_transform.rope, (tokens, HEAD_DIM // 2, 2)),
    }
    for name, (x, shape) in wanted.items():
        if tuple(x.shape) != shape or x.device != q.device:
            raise ValueError(f"{name} is {list(x.shape)} on {x.device}; {list(shape)} on {q.device} is wanted")
    if heads > MOST_HEADS:
        raise ValueError(f"{heads} heads; the prologue's blocks have room for {MOST_HEADS}")


def choose(operands: Mapping[str, Tensor], plan: AttentionPlan, batch: int) -> dict[str, Tensor]:
    """Key tiles by their content, and a summary's addends, from q_pooled and k_pooled of `prologue`.

    chosen: int32, the lists of each query tile of each stream that chooses, ascending. chosen_of: int32 [streams],
    where those of a stream begin; -1 where it has a window, or all tiles. addends: float32 [streams, tiles, summaries ·
    128], log2 of the tokens of each key tile, or minus infinity where the query tile sees it; none without a summary.
    """
    streams, count, _ = operands["q_pooled"].shape
    device, heads = operands["q_pooled"].device, streams // batch
    summaries = ceil(count / SUMMARY_KEYS) if plan.has_summary else 0
    made = {
        "chosen": torch.empty(batch * count * sum(chosen_lengths(plan, heads)), dtype=torch.int32, device=device),
        "chosen_of": device_chosen_of(plan, heads, batch, device),
        "addends": torch.empty(streams, count, summaries * SUMMARY_KEYS, device=device),
    }
    if kernel := selection(plan):
        given = {**operands, **device_lists(plan, heads, device), "log_valid": device_logs(plan.tiles, device)}
        counts = {"streams": streams, "heads": heads, "tiles": count}
        parameters = packed(select_kernels.PARAMETERS, {**given, **made, **counts})
        launch(kernel, "fps_select", streams * ceil(count / kernel.QUERIES), parameters, device)
    return made


def attention_over(operands: Mapping[str, Tensor], plan: AttentionPlan, variant: str, batch: int) -> Tensor:
    """Attention over what `prologue` and `choose` made; bfloat16 [batch, tokens, heads, head_dim].

    What the plan has no use for may be missing: chosen, of one that chooses by content; addends, summary_k, summary_v
    and summary_trailers, of one with a summary.
    """
    streams, count, _, dim = operands["q"].shape
    device, heads, tokens = operands["q"].device, streams // batch, plan.tiles.tokens
    _, kernel = kernels(plan, variant)
    out = torch.empty(batch, tokens, heads, dim, dtype=torch.bfloat16, device=device)
    counts = {"streams": streams, "heads": heads, "tiles": count, "tokens": tokens}
    of_summary = () if plan.has_summary else ("addends", "summary_k", "summary_v", "summary_trailers")
    absent = (*of_summary, "chosen") if plan.has_windows_only else of_summary
    given: dict[str, Tensor | float] = {
        **dict.fromkeys(absent, 0),
        **operands,
        **device_lists(plan, heads, device),
        "chosen_of": device_chosen_of(plan, heads, batch, device),
        "offsets": device_offsets(plan.tiles, device),
    }
    parameters = packed(attention_kernels.PARAMETERS, {**given, **counts, "out": out})
    clusters = min(ceil(multiprocessors(device) / kernel.CLUSTER), streams * ceil(count / kernel.CLUSTER))
    launch(kernel, "fps_attention", kernel.CLUSTER * clusters, parameters, device)
    return out


@kept(1024)  # a plan for each layer of each phase
def device_lists(plan: AttentionPlan, heads: int, device: torch.device) -> dict[str, Tensor]:
    """What the kernels read of a plan, int32.

    row_ptr, cols: the key lists of all windows in one CSR structure; list_of [heads, tiles]: the list of each query
    tile there, -1 for a head without a window. By head, counts: how many key tiles each of its lists has; summaries:
    its summary tiles, or 0. order: the heads, those with most key tiles first, so that all blocks end together.
    """
    lengths, cols = [torch.zeros(1, dtype=torch.int32)], [torch.zeros(0, dtype=torch.int32)]
    list_of = torch.full((heads, len(plan.tiles.valid)), -1, dtype=torch.int32)
    lists = 0
    for index, seen in enumerate(plan.key_tiles):
        if seen.window is None:
            continue
        own = key_lists(plan.tiles, seen.window)
        list_of[plan.heads_of(index)] = own.list_of + lists
        lengths.append(own.row_ptr.diff())
        cols.append(own.cols)
        lists += len(own.row_ptr) - 1
    tiles, by_head = plan.tiles, seen_by_head(plan, heads)
    summaries = [ceil(len(tiles.valid) / SUMMARY_KEYS) if seen.rest == "summary" else 0 for seen in by_head]
    counts = [seen.count(tiles) for seen in by_head]
    order = sorted(range(heads), key=lambda head: -counts[head] - summaries[head])
    made = {
        "row_ptr": torch.cat(lengths).cumsum(0).int(),
        "cols": torch.cat(cols),
        "list_of": list_of,
        "counts": torch.tensor(counts, dtype=torch.int32),
        "summaries": torch.tensor(summaries, dtype=torch.int32),
        "order": torch.tensor(order, dtype=torch.int32),
    }
    return {name: x.to(device) for name, x in made.items()}


@kept(1024)
def device_chosen_of(plan: AttentionPlan, heads: int, batch: int, device: torch.device) -> Tensor:
    """int32 [streams]: where the lists of each stream begin in all that are chosen, -1 where it has none."""
    lengths = chosen_lengths(plan, heads) * batch
    begins = accumulate((len(plan.tiles.valid) * length for length in lengths), initial=0)
    pairs = zip(begins, lengths, strict=False)
    return torch.tensor([begin if length else -1 for begin, length in pairs], dtype=torch.int32).to(device)


def chosen_lengths(plan: AttentionPlan, heads: int) -> list[int]:
    """By head, how many tiles each of its lists chooses by content; 0 where it has a window, or all tiles."""
    return [seen.count(plan.tiles) if seen.top is not None else 0 for seen in seen_by_head(plan, heads)]


def seen_by_head(plan: AttentionPlan, heads: int) -> list[KeyTiles]:
    return [plan.key_tiles[index] for index in plan.heads or (0,) * heads]


@kept(64)
def device_offsets(tiles: TileGrid, device: torch.device) -> Tensor:
    """int32 [tiles + 1]: the first row of each tile."""
    return tiles.offsets.int().to(device)


@kept(64)
def device_logs(tiles: TileGrid, device: torch.device) -> Tensor:
    """float32 [tiles]: log2 of each tile's tokens."""
    return tiles.valid.float().log2().to(device)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
