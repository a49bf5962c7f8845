"""`fpsgen generate --dry-run`: what the videos would take, and nothing is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fpsgen import choices
from fpsgen.cli import chosen, preferences
from fpsgen.cli.output import Output, in_flags
from fpsgen.errors import ModelError
from fpsgen.printable import readable
from fpsgen.report.words import counted
from fpsgen.tables import Cell, Column, Table
from fpsgen.timing import Timings
from fpsgen.weights.known import Given

if TYPE_CHECKING:
    import torch

    from fpsgen.forecast import Forecast
    from fpsgen.request import Request
    from fpsgen.settings import Offload
    from fpsgen.target import Target
    from fpsgen.weights.models import Model


def find_model(name: str | None, parts: Given) -> Model | None:
    """As `chosen.find_model`; one that `fpsgen models` lists may be absent."""
    from fpsgen.weights import hub
    from fpsgen.weights.known import MODELS

    try:
        return chosen.find_model(name, parts)
    except ModelError:
        with preferences.using("model", name) as wanted:
            known = MODELS.get((wanted or "").lower())
        if known is None or not (known.files or hub.nearest(str(wanted).lower()).state in ("not here", "incomplete")):
            raise
        return chosen.find_model(name, parts, may_be_absent=True)


def choose_model(size: choices.Size | None, device: torch.device, out: Output, timings: Timings, parts: Given) -> Model:
    """As `chosen.choose_model`, but nothing is fetched."""
    from fpsgen.weights import models

    try:
        return choices.default_model(size, device, out, parts)
    except models.NoWeightsError as absent:
        return models.absent(absent.key)


def tell(
    requests: Sequence[Request], model: Model, target: Target, offload: Offload, gpus: int | None, out: Output
) -> None:
    """A table, or an object, of what the videos would take."""
    from fpsgen.forecast import forecast
    from fpsgen.request import resolve

    plans = [resolve(request, model, target) for request in requests]
    found = forecast(plans, offload, gpus or 1)
    absent = not model.checkpoint.transformer and not model.pocket
    download = to_download(model.name) if absent else ""
    sizes = sorted({(own.request.settings.size, own.request.settings.frames) for own in plans})
    presets = sorted({own.preset.name for own in plans})
    shown = Table(heads=False, columns=[Column(""), Column("", prose=True)])
    for name, text in rows(found, model, target, download):
        shown.row(Cell(name, "dim"), text)
    videos = "; ".join(f"{size}, {frames} frames" for size, frames in sizes)
    before = [("videos", f"{found.videos} of {videos}" if found.videos > 1 else videos), ("preset", ", ".join(presets))]
    shown.rows[:0] = [[Cell(name, "dim"), Cell(text)] for name, text in before]
    if not out.json:
        out.show(shown)
        return
    out.result("", as_dict(found, model, target, download) | {"sizes": sizes, "presets": presets})


def to_download(name: str) -> str:
    """What is to be fetched of a known model, and of the parts that a transformer in a file of its own lacks."""
    from fpsgen.weights import hub, shared
    from fpsgen.weights.known import MODELS, PIECES

    known, cached = MODELS[name], hub.nearest(name)
    told = [] if cached.state == "here" else [hub.to_fetch(cached)]
    lacking = shared.lacking(known.kind) if known.files else []
    return ", ".join([*told, *(f"{piece} about {PIECES[piece].gb:g} GB" for piece in lacking)])


def rows(found: Forecast, model: Model, target: Target, download: str) -> list[tuple[str, str]]:
    """Each line's name and text."""
    model_words = "by the cost model, of attention and linear layers"
    if found.residence.home != "device":
        model_words += "; copies of blocks are not in it"
    seconds = found.denoise_seconds
    tile = found.vae_tile
    shared = seconds / found.shared.speedup if found.shared and seconds is not None else None
    return [
        ("model", f"{model.full_name}, {target.dtype_name} on {target.device}"),
        ("download", download or "nothing"),
        ("steps", f"{counted(found.steps, 'step')}, {found.tokens:,} tokens, density {found.density:.3g}"),
        ("attention", flop(found.attention_flops)),
        ("linear layers", flop(found.linear_flops)),
        *((name, readable(size)) for name, size in found.memory.items()),
        ("peak memory", f"{readable(found.peak_memory)}, one part at a time; an estimate"),
        ("placement", in_flags(f"{found.residence}")),
        ("VAE", f"decodes in tiles of {tile[1]}x{tile[0]} latents" if tile else "decodes whole frames"),
        ("denoise", "no time is known for this device" if seconds is None else f"{seconds:,.1f} s {model_words}"),
        ("other stages", "no time is known for text, VAE and file"),
        *([("GPUs", f"{found.shared}, and the cost model's H100s")] if found.shared else []),
        *([("denoise, shared", f"{shared:,.1f} s, by both models")] if shared is not None else []),
    ]


def flop(number: float) -> str:
    """Floating-point operations, in words."""
    power = next((power for power in (15, 12) if number >= 10**power), 9)
    return f"{number / 10**power:,.1f} {({15: 'P', 12: 'T', 9: 'G'})[power]}FLOP"


def as_dict(found: Forecast, model: Model, target: Target, download: str) -> dict[str, Any]:
    """For --json: numbers in FLOP, bytes and seconds; null for what is not known."""
    own = found.residence
    shared = found.shared and {
        "bytes_per_step": found.shared.sent, "speedup": found.shared.speedup, "layout": str(found.shared.layout)
    }  # fmt: skip
    return {
        "dry_run": True,
        "model": model.full_name,
        **target.as_dict(),
        "download": download or None,
        "videos": found.videos,
        "steps": found.steps,
        "tokens": found.tokens,
        "density": found.density,
        "attention_flops": found.attention_flops,
        "linear_flops": found.linear_flops,
        "memory_bytes": found.memory,
        "peak_memory_bytes": found.peak_memory,
        "offload": {"blocks_in": own.home, "needed_bytes": own.needed, "held_bytes": own.held, "free_bytes": own.free},
        "vae_tile": found.vae_tile,
        "denoise_seconds_modelled": found.denoise_seconds,
        "gpus": shared,
    }
