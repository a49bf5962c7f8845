"""The page of an end-to-end comparison: how fast, how true, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fpsgen.metrics import Pair
from fpsgen.report import clips, html, words
from fpsgen.report.bench import pictures, provenance
from fpsgen.report.bench.common import bold, lpips_told, others, reference, settings, too_close, who
from fpsgen.report.words import DASH
from fpsgen.timing import STAGES

WHOLE = (*STAGES, "total")
MARK = '<abbr class="mark" title="extrapolated">≈</abbr>'
_EXTRAPOLATED = frozenset({"denoise", "decode", "total"})  # where anything is
_PARTS = {"attention": "Attention", "linear": "Linear layers", "rest": "Rest"}


def compose(record: dict[str, Any], pairs: Sequence[Pair]) -> tuple[str, dict[str, bytes]]:
    """The page, and its pictures by name: phases, frames-1, frames-2 …, steps."""
    drawn = {
        "phases": pictures.bars(panels(record), guessed(record)),
        **clips.draw(pairs),
        "steps": pictures.split(steps_of(record)),
    }
    parts = [
        _headline(record),
        "<h2>How fast</h2>\n",
        _speed(record),
        _bars(record, drawn["phases"]),
        _runs(record),
        _fidelity(record),
        clips.section(pairs, drawn, record["video"]["fps"]),
        _steps(record, drawn["steps"]),
        _tried(record),
        _measured(record),
    ]
    return html.page("bench", _title(record), parts), drawn


def guessed(record: dict[str, Any]) -> frozenset[str]:
    """The phases, the total among them, whose seconds were extrapolated."""
    return _EXTRAPOLATED if record["extrapolated"] else frozenset()


def panels(record: dict[str, Any]) -> list[pictures.Bars]:
    """The warm runs' medians, and the cold runs, for the picture."""
    found: list[pictures.Bars] = []
    contenders = record["contenders"]
    if is_warm(record):
        each = [(one["label"], one["median"], one["spread"]["total"]) for one in contenders]
        found.append((_warm_told(record), each))
    if all(one["cold"] for one in contenders):
        found.append(("Cold: one run of each", [(one["label"], one["cold"], None) for one in contenders]))
    return found


def is_warm(record: dict[str, Any]) -> bool:
    return all(one["warm"] for one in record["contenders"])


def steps_of(record: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    return [(one["label"], one["phases"]) for one in record["contenders"]]


def _title(record: dict[str, Any]) -> str:
    own = ", ".join(one["label"] for one in others(record))
    return f"{own} against {reference(record)['label']}: {record['model']}"


def _headline(record: dict[str, Any]) -> str:
    first, base = others(record)[0], reference(record)
    mark = f"{MARK}&nbsp;" if record["extrapolated"] else ""
    mine, theirs = (f"<b>{mark}{words.duration(one['median']['total'])}</b>" for one in (first, base))
    told = f"{bold(first)} takes {mine}, {bold(base)} takes {theirs}"
    if not (found := first["speedup"]):
        return _lead(record, f"{told}, in one cold run each: too few to compare", first)
    ratio = found["total"]["median"]
    if too_close(found["total"]):
        told += ": <b>too close to call</b>"
    elif ratio >= 1:
        told += f": <b>{mark}{words.ratio(ratio)} times as fast</b>, in {mark}{words.ratio(1 / ratio)} of the time"
    else:
        told += f": <b>{mark}{words.ratio(1 / ratio)} times as long</b>"
    alone = ", in a single pair of runs" if len(found["total"]["each"]) == 1 else ""
    return _lead(record, told + alone, first)


def _lead(record: dict[str, Any], told: str, first: dict[str, Any]) -> str:
    """Title, answer, and what it is about."""
    video = record["video"]
    size = f"{video['width']}{words.TIMES}{video['height']}"
    scope = (
        f"The video has {video['frames']} frames of {size}. {html.text(record['model'])} made it in {video['steps']} "
        f"steps on {provenance.measured_on(record)}"
    )
    return (
        f"<h1>{html.text(_title(record))}</h1>\n"
        f'<p class="lead">{told}{_true(first)}.</p>\n'
        f"<p>{scope}. {_what_counts(record)}</p>\n{_warnings(record)}"
    )


def _true(one: dict[str, Any]) -> str:
    """The end of the headline: how near it is."""
    if not (found := one["fidelity"]):
        return ""
    if found["nonfinite"]:
        return ". Its latents are broken"
    if found["identical"]:
        return ". The frames are the same (a PSNR of <b>∞ dB</b>)"
    return f". The PSNR between them is <b>{words.decibels(found['psnr'])}</b>"


def _what_counts(record: dict[str, Any]) -> str:
    if record["extrapolated"]:
        return ""
    whole = "A time runs from reading the weights to the last frame in the file, without Python&rsquo;s imports. "
    if not is_warm(record):
        return f"{whole}Each had one cold run, in which kernels are compiled."
    many = len(record["contenders"][0]["warm"]) > 1
    back = ", in the order A&nbsp;B&nbsp;B&nbsp;A" if many else ""
    return f"{whole}Each time is {_many(record)}{back}."


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
            f"{MARK} marks what was extrapolated. One step of each phase of the preset and the decoding of a few "
            "latent frames were measured; each stands for all others like it. No weights were read, and no file was "
            "written."
        )
    if record["random_weights"]:
        told.append("The weights are random. The speed is that of the true shapes; there is no video to compare.")
    for one in record["contenders"]:
        broken = (one["fidelity"] or one).get("nonfinite")
        if broken:
            told.append(f"✗ {html.prompt(one['label'])}: {broken} values are NaN or infinite.")
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
            own = _times(found, mark) if found else DASH
            row.append("1" if one["name"] == record["reference"] else own)
        rows.append([*row, *([words.gigabytes(peak(one))] if memory else [])])
    told = (
        f"<p>&ldquo;Times as fast&rdquo; is the time of {bold(reference(record))} divided by the contender&rsquo;s "
        "own: below 1 is slower."
    )
    if any(len(one["warm"]) > 1 for one in others(record)):
        told += " Small figures are the least and the most of the runs, and the ratio of each pair of runs."
    if any(
        one["speedup"] and too_close(one["speedup"][name]) for one in others(record) for name in ("total", "denoise")
    ):
        told += " A ratio is too close to call where these runs cannot tell it from 1."
    return f"{html.table('Speed-ups', heads, rows)}{told}</p>\n"


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


def _times(found: dict[str, Any], mark: str) -> str:
    ratio, each = found["median"], found["each"]
    shown = [words.ratio(one) for one in each]
    if len(shown) > 4:
        shown = [f"{words.ratio(min(each))} to {words.ratio(max(each))}, {len(each)} pairs"]
    told = f"<small>{', '.join(shown)}</small>" if len(each) > 1 else ""
    told += "<small>too close to call</small>" if too_close(found) else ""
    return f"{mark}{'&nbsp;' if mark else ''}{words.ratio(ratio)}{told}"


def _bars(record: dict[str, Any], png: bytes) -> str:
    told = []
    for title, each in panels(record):
        for name, seconds, _ in each:
            shown = [f"{phase} {words.precise(value)}" for phase in WHOLE if (value := seconds[phase])]
            told.append(f"{title}, {name}: {', '.join(shown)} seconds")
    cold = "The panels have different scales." if len(set(pictures.scales(panels(record)))) > 1 else ""
    apart = any(len(one["warm"]) > 1 for one in record["contenders"])
    thin = "The thin line at the end of a bar goes from the least to the most of its totals. " if apart else ""
    bars = f"Each bar is one contender&rsquo;s total time in seconds, divided into phases. {thin}{cold}".strip()
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
        small = "; small: least and most" if len(record["contenders"][0]["warm"]) > 1 else ""
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
        "<h2>How close</h2>\n<p>The latents and frames of each contender are compared with those of "
        f"{bold(reference(record))}, made from the same prompt and noise. Where nothing differs, cosine and SSIM are "
        f"1, LPIPS is 0 and the PSNR is infinite.{lpips_told([found for _, found in told])}</p>\n"
        + html.table("Fidelity", ["", "Latent cosine", "PSNR", "SSIM", "LPIPS", "NaN or Inf"], rows)
    )


def _steps(record: dict[str, Any], png: bytes) -> str:
    told = []
    for name, phases in steps_of(record):
        each = "; ".join(f"{_span(phase)} {_split_told(phase)}" for phase in phases)
        told.append(f"{name}: {each}")
    caption = (
        "Each panel is one contender. A block is as wide as it has steps and as high as one step takes seconds, so its "
        "area is time. The number above a block is its density: the share of token pairs that attention computes. "
    )
    if any(phase["split"] for _, phases in steps_of(record) for phase in phases):
        whose = "one step of each phase" + ("" if record["extrapolated"] else ", apart from those runs")
        caption += "" if record["extrapolated"] else "Heights are medians over the runs. "
        caption += f"The parts of a step were timed in {whose}; attention includes its norms and rounding."
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
        f"<h2>What {html.prompt(reference(record)['label'])} is here</h2>\n<p>It is dense attention: every pair of "
        f"tokens is computed, and nothing is rounded to 8 bits. Its numbers are {html.text(record['dtype'])}. Each "
        f"kernel below was tried at the video&rsquo;s own shape; the fastest, {html.text(record['tried'][0]['name'])}, "
        "was taken.</p>\n" + html.table("Kernels tried", ["Kernel", "Milliseconds", ""], rows, left=(2,))
    )


def _measured(record: dict[str, Any]) -> str:
    labels = {one["name"]: one["label"] for one in record["contenders"]}
    order = [labels[name] for name in record["order"]]
    rows = {
        "Prompt": "" if record["random_weights"] else html.prompt(record["video"]["prompt"]),
        **settings(record, f"seed {record['video']['seed']}"),
        "Tokens": html.text(record["tokens"]),
        "Warm runs": html.text(", ".join(order)) if is_warm(record) and not record["extrapolated"] else "",
    }
    cold = [] if record["extrapolated"] else [f"{label}, cold" for label in labels.values()]
    warm = [f"{label}, warm" for label in order]
    how = (
        "All runs were made in one process. A monotonic clock was read after the device had finished. The cold runs "
        "came first, in the order of the tables. The warm runs went there and back (A B B A), so that a machine that "
        "slows down slows all contenders. Every figure is a median of its own, so the phases do not quite add up to "
        "the total. A speed-up is the median of the ratios of each pass."
    )
    if record["extrapolated"]:
        how = "A monotonic clock or CUDA events timed a few steps, after one to warm up. The figures are medians."
    return (
        f"{provenance.notes(record)}<h2>How it was measured</h2>\n<p>{how}</p>\n"
        f"{html.definitions(rows | provenance.facts(record))}{provenance.states([*cold, *warm], record['states'])}"
        f"{provenance.command(record)}"
    )
