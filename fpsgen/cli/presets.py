"""`fpsgen presets`: which there are, what one does at each step and saves, whether a file is one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fpsgen.attention.plan import KeyTiles
from fpsgen.choices import fit
from fpsgen.cli import options
from fpsgen.cli.command import App
from fpsgen.cli.output import Output
from fpsgen.printable import printable
from fpsgen.report.words import counted
from fpsgen.settings import Settings, check_settings
from fpsgen.solvers import Sigmas, SolverName
from fpsgen.tables import Column, Table
from fpsgen.wan import sizes
from fpsgen.wan.plan import UNROUNDED

if TYPE_CHECKING:
    from fpsgen.attention.tiles import TileGrid
    from fpsgen.presets import Preset
    from fpsgen.presets.account import Account, LayersAccount, RunAccount, SeenHeads
    from fpsgen.weights.models import Model

EXAMPLES = """
fpsgen presets
fpsgen presets show fast --model 14b --res 720p
fpsgen presets check mine.toml
"""

_ANY = "14b"  # the model by which presets for any are shown
_MOST_ROWS = 4  # plans of one run of steps that are shown one by one

app = App(epilog=EXAMPLES)


def chosen(
    name: str | Preset, model: str | None, res: str | None, out: Output, **given: Any
) -> tuple[Preset, Model, Settings]:
    """A preset (or that of a name or grade), and what it is looked at for: a model, which need not be on disk, and the
    settings of a video. given: those that the user named."""
    from fpsgen.presets import shipped
    from fpsgen.weights import models

    size = sizes.parse_resolution(res) if res is not None else None
    preset = name if not isinstance(name, str) else None if name in shipped.GRADES else shipped.find(name)
    key = model if model is not None else (preset and preset.model) or _ANY
    subject = models.absent(key.lower()) if models.is_known(key) else models.find(key)
    wanted = size if size or subject.pocket or preset is None else shipped.size_of(preset)
    settings, _ = fit(subject, wanted, out, **given)
    return preset or shipped.of_grade(str(name), subject.family, settings.width, settings.height), subject, settings


@app.callback(invoke_without_command=True)
def bare(context: typer.Context, json: bool = False) -> None:
    """List presets, show what one does and saves, check a file.

    Without a command: list the presets that come with fpsgen.
    """
    if options.alone(context, json):
        list_presets(json=json)


@app.command("list", epilog="fpsgen presets list --json")
def list_presets(json: bool = False) -> None:
    """List the presets that come with fpsgen."""
    out = Output(json)
    from fpsgen.presets import BF16, shipped
    from fpsgen.presets.account import account

    found = [shipped.find(name) for name in (BF16.name, *shipped.names())]
    entries = [(preset, shipped.size_of(preset), account(*chosen(preset, None, None, out))) for preset in found]
    if json:
        told = []
        for preset, size, whole in entries:
            numbers = {"density": whole.total.density, "cost": whole.total.cost, "at": whole.video}
            told.append({**facts(preset), "size": size and times(size), **numbers})
        out.result("", {"presets": told})
        return
    columns = Column("phases", right=True, spare=3), Column("density", right=True, spare=1), Column("cost", right=True)
    words = Column("preset"), Column("model", spare=2), Column("size", spare=1)
    table = Table(columns=[*words, *columns, Column("quality")])
    for preset, size, whole in entries:
        cells = preset.name, preset.model or "any", times(size) if size else "any", str(len(preset.phases))
        table.row(*cells, f"{whole.total.density:.2f}", f"{whole.total.cost:.2f}", quality(preset))
    out.show(table)
    out.line(f"density, cost: averages over the model's default steps ({_ANY}'s if a preset is for any model)")
    out.line("cost: that of attention, modelled for an H100; dense bf16 attention has cost 1")
    out.line("--preset quality, balanced or fast takes the preset for the model and size")


def facts(preset: Preset) -> dict[str, Any]:
    """What does not depend on the video, for JSON."""
    return {
        "name": preset.name,
        "model": preset.model,
        "about": preset.about,
        "phases": len(preset.phases),
        "exact": preset.is_exact,
        "measured": preset.measured and preset.measured.as_dict(),
    }


def quality(preset: Preset) -> str:
    if preset.measured:
        return f"PSNR {preset.measured.psnr_told} dB"
    return "exact" if preset.is_exact else "not calibrated"


@app.command(
    epilog="fpsgen presets show fast --model 14b --res 720p\nfpsgen presets show mine.toml --verbose",
    no_args_is_help=True,
)
def show(
    name: str,
    model: str | None = None,
    res: str | None = None,
    frames: int | None = None,
    steps: int | None = None,
    shift: float | None = None,
    solver: SolverName | None = None,
    sigmas: Sigmas = "original",
    json: bool = False,
    verbose: bool = False,
) -> None:
    """Show what a preset does at each step, and what it saves. No weights are needed."""
    from fpsgen.presets.account import account

    out = Output(json, verbose)
    check_settings(frames, steps, None, shift, solver, sigmas)
    out.loading()
    given = {"frames": frames, "steps": steps, "shift": shift, "solver": solver, "sigmas": sigmas}
    preset, subject, settings = chosen(name, model, res, out, **given)
    whole = account(preset, subject, settings)
    if json:
        runs, dense_steps = [*map(asdict, whole.runs)], asdict(whole.dense_steps)
        told = {"at": whole.video, "runs": runs, **asdict(whole.total), "linear_cost": whole.linear_cost}
        told["dense_steps"] = dense_steps
        out.result("", {**facts(preset), **told})
    else:
        draw(out, preset, whole)


@app.command(epilog="fpsgen presets check mine.toml\nfpsgen presets check mine.toml --model 14b", no_args_is_help=True)
def check(
    file: str, model: str | None = None, res: str | None = None, frames: int | None = None, json: bool = False
) -> None:
    """Check a preset's file: say what is wrong and in which line, or that it fits the videos of its model."""
    from fpsgen.presets import file as files
    from fpsgen.presets.account import account

    out = Output(json)
    check_settings(frames, None, None, None)
    out.loading()
    preset = files.read(Path(file), file)
    fits, video = "--model NAME also checks windows, layers and heads", None
    if preset.model or model is not None or res is not None or frames is not None:
        _, subject, settings = chosen(preset, model, res, out, frames=frames)
        whole = account(preset, subject, settings)
        video = whole.video
        if larger := larger_than(whole.tiles):
            out.note(larger)
        every = sight(seen(own) for run in whole.runs for layers in run.layers for own in layers.windows)
        where = f"fits {whole.model} at {settings.size}, {settings.frames} frames"
        fits = f"{where}; attention: {every}; density {whole.total.density:.2f}"
    many = counted(len(preset.phases), "phase")
    line = f"{printable(file)} is a preset for {preset.model or 'any model'}, with {many}; {fits}"
    out.result(line, {**facts(preset), "file": file, "at": video})


def larger_than(tiles: TileGrid) -> str | None:
    """What to know of a tile that the video does not fill."""
    axes = [axis for axis, size, whole in zip("THW", tiles.tile, tiles.grid, strict=True) if size > whole]
    if not axes:
        return None
    where = f"this video of {times(tiles.grid)}, along {' and '.join(axes)}"
    larger = f"its tile of {times(tiles.tile)} tokens is larger than {where}"
    return f"{larger}: there is only one tile along it, and no window saves anything there"


def draw(out: Output, preset: Preset, whole: Account) -> None:
    settings, tiles, total = whole.settings, whole.tiles, whole.total
    out.line(f"{preset.name}: {preset.about}" if preset.about else preset.name)
    tokens = f"{tiles.tokens} tokens in {times(tiles.counts)} tiles of {times(tiles.tile)}"
    steps = f"{settings.steps} steps, {settings.solver}, shift {settings.shift:g}"
    out.line(f"{whole.model} at {settings.size}, {settings.frames} frames, {tokens}; {steps}")
    texts = [Column(head, prose=True) for head in ("layers", "sees", "precision")]
    texts.insert(1, Column("heads", prose=True, spare=0 if out.verbose else 1))
    numbers = Column("density", right=True), Column("FLOPs saved", right=True, spare=3)
    ways = [way(run) for run in whole.runs]
    told = [Column("guidance")] if set(ways) != {"full"} else []
    table = Table(columns=[Column("steps"), Column("noise", spare=2), *told, *texts, *numbers])
    for run, own in zip(whole.runs, ways, strict=True):
        head = [span(*map(str, run.steps)), span(*(f"{sigma:.3f}" for sigma in run.sigma)), *([own] if told else [])]
        for row in rows(run, out.verbose):
            table.row(*head, *row)
            head = [""] * len(head)
    out.show(table)
    if not out.verbose and any(hidden(run) for run in whole.runs):
        out.line("--verbose shows what every layer and head sees")
    saves = f"{amount(total.saved_flops)} of the {amount(total.dense_flops)} FLOPs of attention in a guidance branch"
    out.line(f"density {total.density:.3f}; saves {saves}")
    out.line(f"cost    {100 * total.cost:.1f} % of dense bf16 attention's, as modelled for an H100")
    if whole.linear_cost < 1:
        out.line(f"linear  cost {100 * whole.linear_cost:.1f} % of 16-bit linear layers', as modelled for an H100")
    if not preset.is_exact:
        dense = whole.dense_steps
        like = f"{settings.steps} steps with dense attention (qk {dense.qk}, pv {dense.pv})"
        fewer = f"{dense.attention:.1f} of {like} cost the same; {dense.video:.1f} steps if linear layers count, too"
        out.line(f"steps   {fewer if dense.attention <= settings.steps else f'all {like} cost less'}")
    tail = "" if preset.is_exact else ": nobody has measured how close it is to bf16"
    if measured := preset.measured:
        clips = "1 clip" if measured.clips == 1 else f"{measured.clips} clips"
        where = f"{measured.size}, {measured.frames} frames, {measured.steps} steps, {clips}"
        tail = f" against bf16, measured at {where}"
    out.line(f"quality {quality(preset)}{tail}")


def way(run: RunAccount) -> str:
    """How the guided velocity of a run's steps is had."""
    if run.compute == "reuse":
        return "step reused"
    return {"full": "full", "reuse": "difference reused", "off": "off"}[run.guidance]


def hidden(run: RunAccount) -> bool:
    """Whether layers or heads that differ stand in one row."""
    return len(run.layers) > _MOST_ROWS or any(len(own.windows) > 1 for own in run.layers)


def rows(run: RunAccount, verbose: bool) -> Iterator[tuple[str, ...]]:
    """A run of steps, from its layers on: a row for each plan and, with `verbose`, for each of the plan's windows."""
    layers = run.layers
    if len(layers) > _MOST_ROWS and not verbose:
        every = {seen(own) for plan in layers for own in plan.windows}
        kinds = {precision(plan) for plan in layers}
        kind = kinds.pop() if len(kinds) == 1 else f"{len(kinds)} kinds"
        yield "all", "all", f"{len(layers)} plans, {sight(every)}", kind, f"{run.density:.3f}", amount(run.saved_flops)
        return
    for plan in layers:
        at, saved = "all" if len(layers) == 1 else plan.at, amount(plan.saved_flops)
        if len(plan.windows) == 1 or not verbose:
            yield at, "all", sight(map(seen, plan.windows)), precision(plan), f"{plan.density:.3f}", saved
            continue
        for number, own in enumerate(plan.windows):
            first, last = number == 0, number == len(plan.windows) - 1
            tail = precision(plan), f"{own.density:.3f}", saved if last else ""
            yield at if first else "", own.heads, str(seen(own)), *tail


def seen(own: SeenHeads) -> KeyTiles:
    return KeyTiles(own.window, own.top, own.rest)


def sight(every: Iterable[KeyTiles]) -> str:
    """What is seen of all tiles: how many windows and from which share to which, or the one that there is."""
    kinds: dict[str, list[KeyTiles]] = {"dense": [], "window": [], "share": []}
    for own in set(every):
        kinds["share" if own.top is not None else "window" if own.window else "dense"].append(own)
    *head, last = [_of_kind(alike) for alike in kinds.values() if alike]
    return " and ".join(filter(None, (", ".join(head), last)))


def _of_kind(alike: list[KeyTiles]) -> str:
    if len(alike) == 1:
        return str(alike[0])
    summaries = sum(own.rest == "summary" for own in alike)
    rest = " with summary" if summaries == len(alike) else " (some with summary)" if summaries else ""
    shares = [f"{100 * own.top:.6g}" for own in sorted(alike, key=lambda own: own.top or 0) if own.top is not None]
    if not shares:
        return f"{len(alike)} windows{rest}"
    return f"top {' to '.join(dict.fromkeys((shares[0], shares[-1])))} %{rest}"


def precision(own: LayersAccount) -> str:
    rough = ", k not smoothed" if own.qk != "bf16" and not own.smooth_k else ""
    attention = "bf16" if own.qk == own.pv == "bf16" else f"qk {own.qk}, pv {own.pv}{rough}"
    return attention if own.linear == UNROUNDED else f"{attention}, linear {own.linear}"


def span(first: str, last: str) -> str:
    return first if first == last else f"{first}-{last}"


def times(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def amount(count: float) -> str:
    """A large number, with its prefix."""
    power = next((power for power in range(6) if count < 999.5 * 1000**power), 6)
    return f"{count / 1000**power:.3g} {' kMGTPE'[power]}".rstrip()
