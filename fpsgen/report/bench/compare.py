"""The page of an end-to-end comparison: how fast, how true, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fpsgen.metrics import Pair
from fpsgen.report import html, words
from fpsgen.report.bench import pictures, provenance
from fpsgen.report.bench.common import clips, draw_clips, lpips_told, others, settings, who
from fpsgen.report.words import DASH
from fpsgen.timing import PHASES

WHOLE = (*PHASES, "total")
MARK = '<abbr class="mark" title="extrapolated">≈</abbr>'
_CLEAR, _SMALL = 5, 0.1  # pairs of runs that tell a small difference, and what is one
_EXTRAPOLATED = frozenset({"denoise", "decode", "total"})  # where anything is
_PARTS = {"attention": "Attention", "linear": "Linear layers", "rest": "Rest"}


def compose(record: dict[str, Any], pairs: Sequence[Pair]) -> tuple[str, dict[str, bytes]]:
    """The page, and its pictures by name: phases, frames-1, frames-2 …, steps."""
    drawn = {
        "phases": pictures.bars(panels(record), guessed(record)),
        **draw_clips(pairs),
        "steps": pictures.split(steps_of(record)),
    }
    parts = [
        _headline(record),
        "<h2>How fast</h2>\n",
        _speed(record),
        _bars(record, drawn["phases"]),
        _runs(record),
        _fidelity(record),
        clips(pairs, drawn, "Same prompt and noise in each pair of rows"),
        _steps(record, drawn["steps"]),
        _tried(record),
        _measured(record),
    ]
    return html.page("bench", _title(record), parts), drawn


def guessed(record: dict[str, Any]) -> frozenset[str]:
    """Of phases and total, those whose seconds were extrapolated."""
    return _EXTRAPOLATED if record["extrapolated"] else frozenset()


def panels(record: dict[str, Any]) -> list[pictures.Bars]:
    """The warm runs' medians, and the cold runs, for the picture."""
    found: list[pictures.Bars] = []
    contenders = record["contenders"]
    if is_warm(record):
        each = [(one["name"], one["median"], one["spread"]["total"]) for one in contenders]
        found.append((_warm_told(record), each))
    if all(one["cold"] for one in contenders):
        found.append(("Cold: one run of each", [(one["name"], one["cold"], None) for one in contenders]))
    return found


def is_warm(record: dict[str, Any]) -> bool:
    return all(one["warm"] for one in record["contenders"])


def steps_of(record: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    return [(one["name"], one["phases"]) for one in record["contenders"]]


def _title(record: dict[str, Any]) -> str:
    own = ", ".join(one["name"] for one in others(record))
    return f"{own} against {record['reference']}: {record['model']}"


def _reference_told(record: dict[str, Any]) -> str:
    """Its name, and what it runs where that had to be found."""
    kernel = f" ({html.text(record['tried'][0]['name'])})" if record["tried"] else ""
    return f"<b>{html.prompt(record['reference'])}</b>{kernel}"


def _headline(record: dict[str, Any]) -> str:
    first = others(record)[0]
    mark = f"{MARK}&nbsp;" if record["extrapolated"] else ""
    name, base = f"<b>{html.prompt(first['name'])}</b>", _reference_told(record)
    if not (found := first["speedup"]):
        told = f"{name} beside {base}, in one cold run of each, whose times are not compared"
        return _lead(record, told, first)
    ratio, each = found["total"]["median"], found["total"]["each"]
    fast = f"<b>{mark}{words.ratio(ratio)} times as fast</b>"
    # Of a few pairs, as many lie on one side by chance.
    if (len(each) > 1 and min(each) <= 1 <= max(each)) or (len(each) < _CLEAR and abs(ratio - 1) < _SMALL):
        told = f"{name} is {fast} as {base}: these runs cannot tell that from 1"
    elif ratio >= 1:
        told = f"{name} renders in <b>{mark}{words.ratio(1 / ratio)}</b> of the time of {base}: {fast}"
    else:
        told = f"{name} takes <b>{mark}{words.ratio(1 / ratio)} times as long</b> as {base}"
    # What a single pair says of a small difference is next to nothing.
    alone = ", in a single pair of runs" if len(each) == 1 else ""
    return _lead(record, told + alone, first)


def _lead(record: dict[str, Any], told: str, first: dict[str, Any]) -> str:
    """Title, answer, and what it is about."""
    video = record["video"]
    size = f"{video['width']}{words.TIMES}{video['height']}"
    scope = f"{video['frames']} frames of {size} by {html.text(record['model'])} in {video['steps']} steps"
    return (
        f"<h1>{html.text(_title(record))}</h1>\n"
        f'<p class="lead">{told}{_true(first)}.</p>\n'
        f"<p>{scope}, on {provenance.measured_on(record)}. {_what_counts(record)}</p>\n{_warnings(record)}"
    )


def _true(one: dict[str, Any]) -> str:
    """The end of the headline: how near it is."""
    if not (found := one["fidelity"]):
        return ""
    if found["nonfinite"]:
        return ", but its latents are broken"
    if found["identical"]:
        return ", and makes the same frames (a PSNR of <b>∞ dB</b>)"
    return f", at a PSNR of <b>{words.decibels(found['psnr'])}</b>"


def _what_counts(record: dict[str, Any]) -> str:
    if record["extrapolated"]:
        return ""
    whole = "All counts, from reading weights to the last frame in the file, but Python&rsquo;s imports: "
    if not is_warm(record):
        return f"{whole}one cold run of each, in which kernels are compiled."
    many = len(record["contenders"][0]["warm"]) > 1
    return f"{whole}{_many(record)} of each{', there and back' if many else ''}."


def _many(record: dict[str, Any]) -> str:
    runs = len(record["contenders"][0]["warm"])
    return f"the median of {runs} warm runs" if runs > 1 else "one warm run"


def _warm_told(record: dict[str, Any]) -> str:
    return (
        "Extrapolated from single steps"
        if record["extrapolated"]
        else f"Warm: {_many(record).replace(' warm', '')} of each"
    )


def _warnings(record: dict[str, Any]) -> str:
    """What a reader must know before any figure."""
    told = []
    if record["extrapolated"]:
        told.append(
            f"{MARK} marks what was extrapolated. Measured were one step of each phase of the preset and a few latent "
            "frames of decoding, each of which stands for all others like it; neither weights were read nor a file "
            "written."
        )
    if record["random_weights"]:
        told.append("The weights are random: the speed is that of the true shapes, and there is no video to compare.")
    for one in record["contenders"]:
        broken = (one["fidelity"] or one).get("nonfinite")
        if broken:
            told.append(f"✗ {html.prompt(one['name'])}: {broken} values are NaN or infinite.")
    return "".join(f'<p class="verdict missed">{one}</p>\n' for one in told)


def _speed(record: dict[str, Any]) -> str:
    """Seconds of the whole, and speed-ups with those of each pair of runs."""
    mark = MARK if record["extrapolated"] else ""
    memory = any(peak(one) for one in record["contenders"])
    heads = ["", "Seconds", "Times as fast", "Denoising alone", *(["Peak memory"] if memory else [])]
    rows = []
    for one in record["contenders"]:
        row = [who(one, told=True), _spread(one["median"]["total"], one["spread"]["total"], mark)]
        for name in ("total", "denoise"):
            found = one["speedup"] and one["speedup"][name]
            own = _times(found["median"], found["each"], mark) if found else DASH
            row.append("1" if one["name"] == record["reference"] else own)
        rows.append([*row, *([words.gigabytes(peak(one))] if memory else [])])
    pairs = (
        f"<p>How many times as fast as {_reference_told(record)}; below 1 is slower. In small the least and the most "
        "of the runs, and the ratio of each pair of them.</p>\n"
    )
    return html.table("Speed-ups", heads, rows) + (pairs if any(len(one["warm"]) > 1 for one in others(record)) else "")


def peak(one: dict[str, Any]) -> int | None:
    """The most memory of a contender's runs, in bytes."""
    runs = [run["peak_memory_bytes"] for run in (*one["warm"], *([one["cold"]] if one["cold"] else []))]
    return max((found for found in runs if found), default=None)


def _spread(value: float | None, spread: list[float] | None, mark: str = "") -> str:
    if value is None:
        return DASH
    apart = spread is not None and spread[1] > spread[0]
    told = f"<small>{DASH.join(words.precise(x) for x in spread)}</small>" if apart and spread else ""
    return f"{mark}{'&nbsp;' if mark else ''}{words.precise(value)}{told}"


def _times(ratio: float, each: Sequence[float], mark: str) -> str:
    shown = [words.ratio(one) for one in each]
    if len(shown) > 4:
        shown = [f"{words.ratio(min(each))} to {words.ratio(max(each))}, {len(each)} pairs"]
    told = f"<small>{', '.join(shown)}</small>" if len(each) > 1 else ""
    return f"{mark}{'&nbsp;' if mark else ''}{words.ratio(ratio)}{told}"


def _bars(record: dict[str, Any], png: bytes) -> str:
    told = []
    for title, each in panels(record):
        for name, seconds, _ in each:
            shown = [f"{phase} {words.precise(value)}" for phase in WHOLE if (value := seconds[phase])]
            told.append(f"{title}, {name}: {', '.join(shown)} seconds")
    cold = "Each panel has a scale of its own." if len(set(pictures.scales(panels(record)))) > 1 else ""
    apart = any(len(one["warm"]) > 1 for one in record["contenders"])
    thin = "The thin line at a bar&rsquo;s end is the spread of its total, least to most. " if apart else ""
    bars = f"Seconds by phase, for each contender; a bar is the whole. {thin}{cold}".strip()
    return html.figure(png, f"Seconds by phase: {'. '.join(told)}.", bars)


def _runs(record: dict[str, Any]) -> str:
    """A table for warm and one for cold runs: contenders by phase."""
    heads = ["Seconds", *(name.capitalize() for name in WHOLE)]
    marks = dict.fromkeys(guessed(record), MARK)
    parts = []
    if is_warm(record):
        rows = [
            [who(one), *(_spread(one["median"][name], one["spread"][name], marks.get(name, "")) for name in WHOLE)]
            for one in record["contenders"]
        ]
        small = ", in small the least and the most" if len(record["contenders"][0]["warm"]) > 1 else ""
        parts.append(f"<h3>{_warm_told(record)}{small}</h3>\n{html.table('Seconds, warm runs', heads, rows)}")
    if all(one["cold"] for one in record["contenders"]):
        rows = [[who(one), *(_spread(one["cold"][name], None) for name in WHOLE)] for one in record["contenders"]]
        parts.append(f"<h3>Cold: one run of each</h3>\n{html.table('Seconds, cold runs', heads, rows)}")
    return "".join(parts)


def _fidelity(record: dict[str, Any]) -> str:
    told = [(one, one["fidelity"]) for one in record["contenders"] if one["fidelity"]]
    if not told:
        return ""
    rows = [
        [
            who(one),
            f"{found['latent_cosine']:.6f}<small>1 {words.DASH} {words.number(found['latent_error'])}</small>",
            "∞<small>identical</small>" if found["identical"] else words.decibels(found["psnr"]),
            f"{found['ssim']:.4f}",
            words.number(found["lpips"]),
            str(found["nonfinite"]),
        ]
        for one, found in told
    ]
    return (
        f"<h2>How true</h2>\n<p>Latents and frames against {_reference_told(record)}&rsquo;s, from the same prompt and "
        "noise. Cosine and SSIM are 1 and LPIPS is 0 where nothing differs; "
        f"∞ dB means that all frames are identical.{lpips_told([found for _, found in told])}</p>\n"
        + html.table("Fidelity", ["", "Latent cosine", "PSNR", "SSIM", "LPIPS", "NaN or Inf"], rows)
    )


def _steps(record: dict[str, Any], png: bytes) -> str:
    told = []
    for name, phases in steps_of(record):
        each = "; ".join(f"{_span(phase)} {_split_told(phase)}" for phase in phases)
        told.append(f"{name}: {each}")
    caption = (
        "One panel for each contender: steps to the right, the time that one takes upwards, so that areas are time. "
        "Numbers above are densities, the share of token pairs that attention computes. "
    )
    if any(phase["split"] for _, phases in steps_of(record) for phase in phases):
        whose = "one step of each phase" + ("" if record["extrapolated"] else ", apart from those runs")
        caption += "" if record["extrapolated"] else "Heights are medians over the runs. "
        caption += f"Attention (with its norms and rounding), linear layers and the rest were timed in {whose}."
    alt = f"Seconds of a step by phase: {'. '.join(told)}."
    return f"<h2>Why: what a step is made of</h2>\n{html.figure(png, alt, caption)}{_steps_table(record)}"


def _span(phase: dict[str, Any]) -> str:
    first, last = phase["first"], phase["last"]
    return f"step {first}" if first == last else f"steps {first}{DASH}{last}"


def _split_told(phase: dict[str, Any]) -> str:
    parts = pictures.heights(phase)
    inside = ", ".join(f"{part} {words.duration(value)}" for part, value in parts.items() if part)
    return f"{words.duration(phase['step'])}{f' ({inside})' if inside else ''}"


def _steps_table(record: dict[str, Any]) -> str:
    """A row for each phase of each contender."""
    rows = []
    for one in record["contenders"]:
        for phase in one["phases"]:
            parts = pictures.heights(phase)
            share = [
                f"{words.percent(parts[p] / phase['step'])}" if p in parts and phase["step"] else DASH for p in _PARTS
            ]
            density = DASH if phase["density"] is None else f"{phase['density']:.2f}"
            sigma = words.sigmas(phase)
            rows.append([who(one), _span(phase), sigma, density, words.precise(phase["step"]), *share])
    heads = ["", "Steps", "Sigma", "Density", "Seconds a step", *_PARTS.values()]
    return html.table("Steps by phase", heads, rows, left=(1, 2))


def _tried(record: dict[str, Any]) -> str:
    if not record["tried"]:
        return ""
    rows = [
        [
            html.text(one["name"]),
            DASH if one["milliseconds"] is None else f"{one['milliseconds']:.3g}",
            html.text(one["why_not"] or ("taken" if number == 0 else "")),
        ]
        for number, one in enumerate(record["tried"])
    ]
    return (
        f"<h2>What {html.text(record['reference'])} is here</h2>\n<p>Dense attention by the fastest kernel that this "
        "installation can run: each was tried at the video&rsquo;s own shape.</p>\n"
        + html.table("Kernels tried", ["Kernel", "Milliseconds", ""], rows, left=(2,))
    )


def _measured(record: dict[str, Any]) -> str:
    rows = {
        "Prompt": "" if record["random_weights"] else html.prompt(record["video"]["prompt"]),
        **settings(record, f"seed {record['video']['seed']}"),
        "Tokens": html.text(record["tokens"]),
        "Warm runs": html.text(", ".join(record["order"])) if is_warm(record) and not record["extrapolated"] else "",
    }
    names = [one["name"] for one in record["contenders"]]
    cold = [] if record["extrapolated"] else [f"{name}, cold" for name in names]
    warm = [f"{name}, warm" for name in record["order"]]
    how = (
        "One process, a monotonic clock that is read when the device has finished. Cold runs come first, in the order "
        "of the tables; the warm ones go there and back, so that a machine that slows down slows all. Figures are "
        "medians, each by itself, so that medians of phases do not quite add up to that of the total; speed-ups are "
        "medians of the ratios in each pass."
    )
    if record["extrapolated"]:
        how = "A monotonic clock or CUDA events; medians of a few steps, after one to warm up."
    return (
        f"{provenance.notes(record)}<h2>How it was measured</h2>\n<p>{how}</p>\n"
        f"{html.definitions(rows | provenance.facts(record))}{provenance.states([*cold, *warm], record['states'])}"
        f"{provenance.command(record)}"
    )
