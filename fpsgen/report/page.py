"""The report's HTML: one page without scripts, its pictures inside it. All that comes from outside is escaped."""

from __future__ import annotations

import base64
import html
import shlex
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from fpsgen.report import words
from fpsgen.report.pictures import AMPLIFIED, SCALE

_LEAST_WIDTH = 0.8  # a picture shrinks so far on a narrow screen, then it scrolls: smaller words could not be read

# The policy lets the page load nothing, whatever a prompt managed to say.
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="fpsgen calibrate">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light; --ink: #1b1f24; --soft: #5b6470; --line: #dcdcd6; --wash: #f6f6f3;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: #fff; color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", Arial, sans-serif; }}
main {{ max-width: 61rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }}
h1 {{ font-size: 1.75rem; line-height: 1.2; margin: 0 0 1rem; font-weight: 650; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.2rem; line-height: 1.3; margin: 2.5rem 0 .5rem; font-weight: 650; }}
p, figcaption {{ max-width: 44rem; margin: 0 0 .75rem; }}
.lead {{ font-size: 1.15rem; }}
.lead b {{ white-space: nowrap; }}
.lead b, td, dd {{ font-variant-numeric: tabular-nums; }}
.verdict {{ border-left: .3rem solid; padding: .35rem .9rem; font-weight: 600; max-width: 44rem; }}
.holds {{ border-color: #0072b2; background: #eef5fa; }}
.missed {{ border-color: #d55e00; background: #fdf2ea; }}
figure {{ margin: 0 0 1.75rem; }}
figcaption {{ color: var(--soft); overflow-wrap: anywhere; }}
span.prompt {{ color: var(--ink); }}
.scroll {{ overflow-x: auto; }}
img {{ display: block; width: 100%; height: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: .95rem; }}
th, td {{ text-align: left; vertical-align: top; padding: .45rem 1rem .45rem 0; border-bottom: 1px solid var(--line); }}
th {{ font-weight: 600; color: var(--soft); }}
.figure {{ text-align: right; white-space: nowrap; }}
th:last-child, td:last-child {{ padding-right: 0; }}
td.prompt, bdi, dd {{ overflow-wrap: anywhere; }}
code {{ font-family: var(--mono); font-size: .9em; }}
pre {{ background: var(--wash); border: 1px solid var(--line); border-radius: .3rem; padding: .9rem 1rem;
  overflow: auto; max-height: 34rem; margin: 0 0 .75rem; }}
pre {{ font: .85rem/1.5 var(--mono); }}
pre.command {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
dl {{ display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .35rem 1.5rem; margin: 0 0 1.25rem;
  font-size: .95rem; }}
dt {{ color: var(--soft); }}
dd {{ margin: 0; }}
dd ul {{ margin: 0; padding: 0; list-style: none; }}
:focus-visible {{ outline: 2px solid #0072b2; outline-offset: 2px; }}
@media (max-width: 40rem) {{
  main {{ padding: 1.5rem 1rem 3rem; }}
  h1 {{ font-size: 1.45rem; }}
  .lead {{ font-size: 1.05rem; }}
  tr {{ display: grid; grid-template-columns: 3.5rem 1fr 1fr; padding: .3rem 0; border-bottom: 1px solid var(--line); }}
  th, td {{ border-bottom: none; padding: .2rem 0; }}
  .figure:nth-child(2) {{ text-align: left; }}
  th.prompt, td.prompt {{ grid-column: 1 / -1; }}
  dl {{ grid-template-columns: 1fr; gap: 0; }}
  dd {{ margin-bottom: .6rem; }}
}}
@media print {{ main {{ max-width: none; padding: 0; }} pre {{ max-height: none; white-space: pre-wrap; }}
  figure {{ break-inside: avoid; }} img {{ min-width: 0 !important; }} }}
</style>
</head>
<body>
<main>
"""
_FOOT = "</main>\n</body>\n</html>\n"


def compose(record: dict[str, Any], clips: Sequence[tuple[str, float | None]], drawn: Mapping[str, bytes]) -> str:
    """The page. clips: prompt and PSNR of each pair of videos drawn as frames-1, frames-2 …; drawn: PNG by name."""
    parts = [
        _HEAD.format(title=_text(f"Calibration of {record['model']}")),
        _headline(record),
        _heat_maps(record, drawn),
        _frontier(record, drawn["frontier"]),
        _frames(clips, drawn),
        _clips(record),
        f"<h2>The preset</h2>\n<p>The file that was written: give it to <code>fpsgen generate --preset</code>.</p>\n"
        f'<pre tabindex="0">{_text(record["preset"])}</pre>\n',
        _making(record),
        _FOOT,
    ]
    return "".join(parts)


def _text(value: object) -> str:
    return html.escape(str(value))


def _prompt(value: object) -> str:
    """Escaped, and kept from turning the direction of what stands around it."""
    return f"<bdi>{_text(value)}</bdi>"


def _headline(record: dict[str, Any]) -> str:
    summary, count = record["summary"], len(record["clips"])
    alone = count == 1  # of one clip there is no interval
    error = words.plus_minus(summary["error"], None if alone else summary["error_ci95"])
    found = (
        f"Asked for <code>{_text(record['budget'])}</code>, fpsgen chose a schedule whose attention costs "
        f"<b>{record['cost']:.2f}</b> of dense BF16 and computes <b>{words.percent(record['mean_density'])}</b> of all "
        f"pairs of tokens; on {'one clip' if alone else f'{count} clips'}{_unseen(record)} its final latents are "
        f"off by <b>{error}</b> (1 &minus; cosine to BF16&rsquo;s)"
    )
    if summary["psnr"] is not None:
        psnr = words.plus_minus(summary["psnr"], None if alone else summary["psnr_ci95"])
        found += f", its videos at a PSNR of <b>{psnr} dB</b>"
        if not alone:
            found += f", the worst of them at <b>{words.decibels(summary['psnr_worst'])}</b>"
    holds = record["holds"]
    verdict = "The budget holds" if holds else "The budget does not hold"
    interval = " What follows ± is half of the 95 % confidence interval of the mean." if not alone else ""
    return (
        f"<h1>Calibration of {_text(record['model'])}</h1>\n"
        f'<p class="lead">{found}.</p>\n'
        f'<p class="verdict {"holds" if holds else "missed"}">{"✓" if holds else "✗"} {verdict}: '
        f"<code>{_text(record['budget'])}</code></p>\n"
        f"<p>Means over verified clips, against the same seeds in dense BF16.{interval}</p>\n"
    )


def _unseen(record: dict[str, Any]) -> str:
    """Said only where it is so."""
    measured = set(record["prompts"])
    if any(clip["prompt"] in measured for clip in record["clips"]):
        return ""
    return f" of {'a prompt' if len(record['clips']) == 1 else 'prompts'} it was not measured on"


def _picture(png: bytes, alt: str) -> str:
    """An image at its own size, on narrow screens smaller and in a box that scrolls."""
    width, height = (side // SCALE for side in struct.unpack(">II", png[16:24]))  # where every PNG has its size
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(alt.split(":")[0])}">'
        f'<img src="data:image/png;base64,{data}" alt="{_text(alt)}" width="{width}" height="{height}" '
        f'style="max-width: {width}px; min-width: {int(width * _LEAST_WIDTH)}px"></div>\n'
    )


def _figure(png: bytes, alt: str, caption: str) -> str:
    return f"<figure>\n<figcaption>{caption}</figcaption>\n{_picture(png, alt)}</figure>\n"


def _heat_maps(record: dict[str, Any], drawn: Mapping[str, bytes]) -> str:
    phases, layers = record["phases"], record["layers"]
    size = f"{layers} layers by {len(phases)} phases"
    errors = [(e, p, n) for p, row in enumerate(record["error"]) for n, e in enumerate(row) if e > 0]
    peak = "no cell has any"
    if errors:
        worst, phase, layer = max(errors)
        peak = f"the most is {words.number(worst)}, by layer {layer} in {words.steps(phases[phase])}"
    cells = [name for row in record["precision"] for name in row]
    kept = f"{cells.count('bf16')} of {len(cells)} cells in BF16"
    return (
        "<h2>Where approximation hurts</h2>\n"
        + _figure(
            drawn["error"],
            f"Error by phase and layer: heat map of {size}; {peak}",
            f"Each cell is the error (1 &minus; cosine) that the probe plan ({_text(record['probe'])}), in that layer "
            f"alone and in all steps of that phase, is estimated to leave in the final latents; darker is worse, "
            f"{_text(peak)}.",
        )
        + "<h2>What was chosen there</h2>\n"
        + _figure(
            drawn["density"],
            f"Chosen density by phase and layer: heat map of {size}; {kept}",
            "Each cell is the share of all pairs of tokens that the schedule computes there (mean over the "
            "layer&rsquo;s heads), with the format of its attention; framed cells stay in BF16, "
            "darker ones compute more.",
        )
    )


def _frontier(record: dict[str, Any], png: bytes) -> str:
    points = record["frontier"]
    counts = ", ".join(
        f"{sum(point['kind'] == kind for point in points)} {kind}" for kind in ("calibrated", "preset", "uniform")
    )
    return "<h2>Error against cost</h2>\n" + _figure(
        png,
        f"Error against cost: {len(points)} schedules ({counts})",
        "Each mark is a schedule: lower is closer to BF16, further left is cheaper, and the line joins what "
        "calibration offers; filled marks were measured, hollow ones are predictions, and the ring is "
        "what was chosen.",
    )


def _frames(clips: Sequence[tuple[str, float | None]], drawn: Mapping[str, bytes]) -> str:
    if not clips:
        return ""
    parts = [
        "<h2>Frames beside BF16</h2>\n<p>Same prompt and seed in each pair of rows; the third row is their absolute "
        f"difference times {AMPLIFIED}, black where they agree.</p>\n"
    ]
    for number, (prompt, psnr) in enumerate(clips, 1):
        told = "" if psnr is None else f" — PSNR {words.decibels(psnr)}"
        alt = f"Frames {number}: BF16, this schedule and their difference, of “{prompt}”"
        parts.append(_figure(drawn[f"frames-{number}"], alt, f'<span class="prompt">{_prompt(prompt)}</span>{told}'))
    return "".join(parts)


def _clips(record: dict[str, Any]) -> str:
    rows = "".join(
        f'<tr><td class="prompt">{_prompt(clip["prompt"])}</td><td class="figure">{_text(clip["seed"])}</td>'
        f'<td class="figure">{words.number(clip["error"])}</td>'
        f'<td class="figure">{words.decibels(clip["psnr"])}</td></tr>\n'
        for clip in record["clips"]
    )
    return (
        '<h2>Verified clips</h2>\n<table>\n<thead><tr><th class="prompt">Prompt</th>'
        '<th class="figure">Seed</th><th class="figure">Error</th><th class="figure">PSNR</th></tr></thead>\n'
        f"<tbody>\n{rows}</tbody>\n</table>\n"
    )


def _making(record: dict[str, Any]) -> str:
    grid, tile, tiles = (words.TIMES.join(str(n) for n in record[key]) for key in ("grid", "tile", "tiles"))
    video = f"{record['size']}, {record['frames']} frames"
    sampling = (
        f"{record['steps']} steps of {record['solver']}, shift {record['shift']:g}, guidance {record['guidance']:g}"
    )
    tokens = f"{grid} along T, H, W, in tiles of {tile}: {tiles} tiles"
    rows = {
        "Model": f"{record['model']}, {record['layers']} layers of {record['heads']} heads",
        "Weights": record["weights"],
        "Device": record["device"],
        "Versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        "Video": video,
        "Sampling": sampling,
        "Latent grid": tokens,
        "Probe plan": record["probe"],
        "Time": ", ".join(f"{name} {words.seconds(value)}" for name, value in record["seconds"].items()),
    }
    entries = "".join(f"<dt>{name}</dt><dd>{_text(value)}</dd>\n" for name, value in rows.items())
    prompts = "".join(f"<li>{_prompt(prompt)}</li>" for prompt in record["prompts"])
    command = shlex.join(str(word) for word in record["command"])
    return (
        f"<h2>How it was made</h2>\n<dl>\n{entries}<dt>Measured on</dt><dd><ul>{prompts}</ul></dd>\n</dl>\n"
        f'<pre class="command">{_text(command)}</pre>\n'
    )
