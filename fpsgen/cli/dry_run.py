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
    requests: Sequence[Request],
    model: Model,
    target: Target,
    offload: Offload,
    gpus: int | None,
    there: int,
    out: Output,
) -> None:
    """A table, or an object, of what the videos would take. there: how many others were made before."""
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
    videos = f"{found.videos} of {videos}" if found.videos > 1 else videos
    videos += f"; {there} more {'are' if there > 1 else 'is'} there already" if there else ""
    before = [("videos", videos), ("preset", ", ".join(presets))]
    shown.rows[:0] = [[Cell(name, "dim"), Cell(text)] for name, text in before]
    if not out.json:
        out.show(shown)
        return
    beside = {"sizes": sizes, "presets": presets, "skipped": there}
    out.result("", as_dict(found, model, target, download) | beside)


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
    tile, more = found.vae_tile, "" if found.fits else "; more than is free"
    parts = "one part at a time" + (", or the VAE beside the transformer where both fit" if found.videos > 1 else "")
    return [
        ("model", f"{model.full_name}, {target.dtype_name} on {target.device}"),
        ("download", download or "nothing"),
        ("steps", f"{counted(found.steps, 'step')}, {found.tokens:,} tokens, density {found.density:.3g}"),
        ("attention", flop(found.attention_flops)),
        ("linear layers", flop(found.linear_flops)),
        *((name, readable(size)) for name, size in found.memory.items()),
        ("peak memory", f"{readable(found.peak_memory)}, {parts}; an estimate{more}"),
        ("placement", in_flags(f"{found.residence}")),
        ("VAE", f"decodes in tiles of {tile[1]}x{tile[0]} latents" if tile else "decodes whole frames"),
        *times(found),
    ]


def times(found: Forecast) -> list[tuple[str, str]]:
    """What is known of time: by the last such video, by the cost model, and of several GPUs."""
    told, denoise, shared = [], found.modelled, found.shared
    if found.modelled is not None:
        words = "by the cost model, of attention and linear layers alone"
        words += "; copies of blocks are not in it" if found.residence.home != "device" else ""
        told = [("denoise", f"{found.modelled:,.1f} s {words}")]
    if found.expected is not None:
        denoise, total = found.expected["denoise"], sum(found.expected.values())
        stages = ", ".join(f"{stage} {seconds:,.1f} s" for stage, seconds in found.expected.items())
        told.append(("time", f"{total:,.1f} s, by the last video of this model and preset here: {stages}"))
    else:
        first = "no time" if found.modelled is None else "no time of other stages"
        told.append(("time", f"{first} is known: no video of this model and preset was made on this device yet"))
    if shared:
        told.append(("GPUs", f"{shared} between H100s"))
    if shared and denoise is not None:
        told.append(("denoise, shared", f"{denoise / shared.speedup:,.1f} s, by that model"))
    return told


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
        "seconds_expected": found.expected,
        "denoise_seconds_modelled": found.modelled,
        "gpus": shared,
    }
