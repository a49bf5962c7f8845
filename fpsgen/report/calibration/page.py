"""The page of a calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from fpsgen.kernels.sm90_attention import HEAD_DIM
from fpsgen.metrics import Pair
from fpsgen.presets import cost
from fpsgen.report import clips, html, words


def compose(record: dict[str, Any], pairs: Sequence[Pair], drawn: Mapping[str, bytes]) -> str:
    """The page. drawn: pictures by name, as `pictures.draw` makes them of the record and the pairs."""
    parts = [
        _headline(record),
        _cost(record),
        _heat_maps(record, drawn),
        _frontier(record, drawn["frontier"]),
        clips.section(pairs, drawn, record["fps"]),
        _clips(record),
        "<h2>The preset</h2>\n<p>This file was written. <code>fpsgen generate</code> takes it as its preset.</p>\n"
        f'<pre tabindex="0">{html.text(record["preset"])}</pre>\n',
        _making(record),
    ]
    return html.page("calibrate", f"Calibration of {record['model']}", parts)


def _headline(record: dict[str, Any]) -> str:
    summary, several = record["summary"], len(record["clips"]) > 1
    many = f"{len(record['clips'])} clips" if several else "one clip"
    base = f"<b>{html.text(record['baseline'])}</b>"
    found = (
        f"fpsgen was asked for <code>{html.text(record['budget'])}</code>. It chose a schedule whose attention has a "
        f"modelled cost of <b>{record['cost']:.2f}</b> (dense BF16 attention on an {cost.CARD} costs 1) and computes "
        f"<b>{words.percent(record['mean_density'])}</b> of all pairs of tokens. On {many}{_unseen(record)}, the error "
        f"of its final latents is <b>{words.plus_minus(summary['error'], summary.get('error_ci95'))}</b>"
    )
    if summary["psnr"] is not None:
        found += (
            f", and its videos have a PSNR of <b>{words.plus_minus(summary['psnr'], summary.get('psnr_ci95'))} dB</b>"
        )
        found += f"; the worst clip has <b>{words.decibels(summary['psnr_worst'])}</b>" if several else ""
    told = (
        f"Each clip is compared with the one by {base}: dense attention, from the same prompt and seed. An error is "
        "1 &minus; the cosine of both latents. "
    )
    if several:
        told += "The figures are means over the clips; the number after ± is half of the mean&rsquo;s 95 % interval."
    else:
        told += "One clip has no interval: other prompts may come out better or worse."
    holds = record["holds"]
    return (
        f"<h1>Calibration of {html.text(record['model'])}</h1>\n"
        f'<p class="lead">{found}.</p>\n'
        f'<p class="verdict {"holds" if holds else "missed"}">{"✓" if holds else "✗"} The budget '
        f"{'holds' if holds else 'does not hold'} on {many}: <code>{html.text(record['budget'])}</code></p>\n"
        f"<p>{told}</p>\n"
    )


def _cost(record: dict[str, Any]) -> str:
    """By which model the cost is worked out, and what runs each part of the schedule on which machine."""
    speeds, tokens, own = cost.TFLOPS, record["cost_tokens"], prod(record["grid"])
    told = (
        "The cost is modelled, not measured. It is the time of the schedule&rsquo;s attention over all steps and "
        f"layers, divided by that of dense BF16 attention, on one {cost.CARD}. The model takes speeds that were "
        f"published for this card: {speeds['bf16']} TFLOPS in BF16 and {speeds['fp8']} in FP8 (FlashAttention-3), "
        f"{speeds['int8']} in INT8 (SageAttention2). Pairs of tokens that are left out cost nothing; rounding q, k and "
        f"v to 8 bits adds {words.number(cost.of_pairs(0, 'int8', tokens), 2)}."
    )
    if tokens != own:
        told += f" The {own} tokens of this small model count as {tokens}, which is Wan2.1&rsquo;s number at 720p."
    cells = [name for row in record["precision"] for name in row]
    dense = cells.count("bf16")
    parts = (
        f"A part is one layer in one phase. {len(cells) - dense} of the {len(cells)} parts run in 8 bits; the other "
        f"{dense} stay dense and unrounded (BF16), by PyTorch&rsquo;s own attention on any machine. What runs an 8-bit "
        "part depends on the machine:"
    )
    slow = "the backend <code>reference</code>, plain PyTorch, which saves no time"
    ours = "the backend <code>hopper</code>, fpsgen&rsquo;s own kernels"
    if record["head_dim"] != HEAD_DIM:
        ours = f"{slow}: the kernels need heads of {HEAD_DIM} channels, and these have {record['head_dim']}"
    rows = {
        "Hopper GPU": ours,
        "Other CUDA GPU": f"{slow}; the backend <code>flex</code> (FlexAttention) does not round to 8 bits",
        "CPU": slow,
        "This calibration": html.text(f"the backend {record['backend']}, on {record['device']}"),
    }
    return f"<h2>What the cost is, and what runs where</h2>\n<p>{told}</p>\n<p>{parts}</p>\n{html.definitions(rows)}"


def _unseen(record: dict[str, Any]) -> str:
    """Said only where it is true."""
    measured = set(record["prompts"])
    if any(clip["prompt"] in measured for clip in record["clips"]):
        return ""
    return f" of {'a prompt' if len(record['clips']) == 1 else 'prompts'} it was not measured on"


def _heat_maps(record: dict[str, Any], drawn: Mapping[str, bytes]) -> str:
    phases, layers = record["phases"], record["layers"]
    size = f"{layers} layers by {len(phases)} phases"
    errors = [(e, p, n) for p, row in enumerate(record["error"]) for n, e in enumerate(row) if e > 0]
    peak = "no cell has any error"
    if errors:
        worst, phase, layer = max(errors)
        peak = f"the largest error is {words.number(worst)}, by layer {layer} in {words.steps(phases[phase])}"
    cells = [name for row in record["precision"] for name in row]
    kept = f"{cells.count('bf16')} of {len(cells)} cells in BF16"
    return (
        "<h2>Where approximation hurts</h2>\n"
        + html.figure(
            drawn["error"],
            f"Error by phase and layer: heat map of {size}; {peak}",
            f"The probe plan ({html.text(record['probe'])}) was put into one layer in all steps of one phase. Each "
            "cell is the error (1 &minus; cosine) that this is estimated to leave in the final latents. Darker is "
            f"worse: {html.text(peak)}.",
        )
        + "<h2>What was chosen there</h2>\n"
        + html.figure(
            drawn["density"],
            f"Chosen density by phase and layer: heat map of {size}; {kept}",
            "Each cell is the share of all pairs of tokens that the schedule computes there, a mean over the "
            "layer&rsquo;s heads, and the format of its attention. Framed cells stay in BF16; darker cells compute "
            "more.",
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
        "Each mark is a schedule. Lower is closer to dense attention; further left is cheaper, by the model. The line "
        "joins what calibration offers. The errors of filled marks were measured, those of hollow marks are predicted. "
        "The ring is what was chosen.",
    )


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
