"""The page of a calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fpsgen.report import html, words


def compose(record: dict[str, Any], clips: Sequence[tuple[str, float | None]], drawn: Mapping[str, bytes]) -> str:
    """The page. clips: prompt and PSNR of each pair of videos drawn as frames-1, frames-2 …; drawn: PNG by name."""
    parts = [
        _headline(record),
        _heat_maps(record, drawn),
        _frontier(record, drawn["frontier"]),
        _frames(clips, drawn),
        _clips(record),
        f"<h2>The preset</h2>\n<p>The file that was written: give it to <code>fpsgen generate --preset</code>.</p>\n"
        f'<pre tabindex="0">{html.text(record["preset"])}</pre>\n',
        _making(record),
    ]
    return html.page("calibrate", f"Calibration of {record['model']}", parts)


def _headline(record: dict[str, Any]) -> str:
    summary, count = record["summary"], len(record["clips"])
    alone = count == 1  # of one clip there is no interval
    error = words.plus_minus(summary["error"], summary.get("error_ci95"))
    found = (
        f"Asked for <code>{html.text(record['budget'])}</code>, fpsgen chose a schedule whose attention costs "
        f"<b>{record['cost']:.2f}</b> of dense BF16 and computes <b>{words.percent(record['mean_density'])}</b> of all "
        f"pairs of tokens; on {'one clip' if alone else f'{count} clips'}{_unseen(record)} its final latents are "
        f"off by <b>{error}</b> (1 &minus; cosine to BF16&rsquo;s)"
    )
    if summary["psnr"] is not None:
        psnr = words.plus_minus(summary["psnr"], summary.get("psnr_ci95"))
        found += f", its videos at a PSNR of <b>{psnr} dB</b>"
        if not alone:
            found += f", the worst of them at <b>{words.decibels(summary['psnr_worst'])}</b>"
    holds = record["holds"]
    verdict = "The budget holds" if holds else "The budget does not hold"
    interval = " What follows ± is half of the 95 % confidence interval of the mean." if not alone else ""
    return (
        f"<h1>Calibration of {html.text(record['model'])}</h1>\n"
        f'<p class="lead">{found}.</p>\n'
        f'<p class="verdict {"holds" if holds else "missed"}">{"✓" if holds else "✗"} {verdict}: '
        f"<code>{html.text(record['budget'])}</code></p>\n"
        f"<p>Means over verified clips, against the same seeds in dense BF16.{interval}</p>\n"
    )


def _unseen(record: dict[str, Any]) -> str:
    """Said only where it is so."""
    measured = set(record["prompts"])
    if any(clip["prompt"] in measured for clip in record["clips"]):
        return ""
    return f" of {'a prompt' if len(record['clips']) == 1 else 'prompts'} it was not measured on"


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
        + html.figure(
            drawn["error"],
            f"Error by phase and layer: heat map of {size}; {peak}",
            f"Each cell is the error (1 &minus; cosine) that the probe plan ({html.text(record['probe'])}), in that "
            f"layer alone and in all steps of that phase, is estimated to leave in the final latents; darker is worse, "
            f"{html.text(peak)}.",
        )
        + "<h2>What was chosen there</h2>\n"
        + html.figure(
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
    return "<h2>Error against cost</h2>\n" + html.figure(
        png,
        f"Error against cost: {len(points)} schedules ({counts})",
        "Each mark is a schedule: lower is closer to BF16, further left is cheaper, and the line joins what "
        "calibration offers; filled marks were measured, hollow ones are predictions, and the ring is "
        "what was chosen.",
    )


def _frames(clips: Sequence[tuple[str, float | None]], drawn: Mapping[str, bytes]) -> str:
    shown = [
        (drawn[f"frames-{number}"], "BF16, this schedule", prompt, psnr)
        for number, (prompt, psnr) in enumerate(clips, 1)
    ]
    return html.frames("Frames beside BF16", "Same prompt and seed in each pair of rows", shown)


def _clips(record: dict[str, Any]) -> str:
    rows = "".join(
        f'<tr><td class="prompt">{html.prompt(clip["prompt"])}</td><td class="figure">{html.text(clip["seed"])}</td>'
        f'<td class="figure">{words.number(clip["error"])}</td>'
        f'<td class="figure">{words.decibels(clip["psnr"])}</td></tr>\n'
        for clip in record["clips"]
    )
    return (
        '<h2>Verified clips</h2>\n<table class="stacked">\n<thead><tr><th class="prompt">Prompt</th>'
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
    told = {name: html.text(value) for name, value in rows.items()}
    told["Measured on"] = html.listed(html.prompt(prompt) for prompt in record["prompts"])
    return f"<h2>How it was made</h2>\n{html.definitions(told)}{html.command(record['command'])}"
