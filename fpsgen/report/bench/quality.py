"""The page of `fpsgen bench quality`: fidelity over many clips, and whether they show what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fpsgen.metrics import Pair
from fpsgen.report import clips, html, words
from fpsgen.report.bench import dots, provenance
from fpsgen.report.bench.common import bold, lpips_told, others, reference, settings, who
from fpsgen.report.words import DASH
from fpsgen.seeds import next_seed

_MOST_CLIPS = 40  # in the table, or the worst of them
_MEASURES = {"latent_cosine": "Latent cosine", "psnr": "PSNR, dB", "ssim": "SSIM", "lpips": "LPIPS"}


def compose(record: dict[str, Any], pairs: Sequence[Pair]) -> tuple[str, dict[str, bytes]]:
    """The page, and its pictures by name: psnr, adherence where it was judged, frames-1, frames-2 …"""
    drawn = {"psnr": dots.psnr(rows_of(record), reference(record)["label"])}
    if judged := adherence_of(record):
        drawn["adherence"] = dots.adherence(judged)
    drawn |= clips.draw(pairs)
    parts = [
        _headline(record),
        _fidelity(record, drawn["psnr"]),
        _adherence(judged, drawn),
        _vbench(record),
        clips.section(pairs, drawn, record["video"]["fps"]),
        _clips(record),
        _measured(record),
    ]
    return html.page("bench quality", _title(record), parts), drawn


def rows_of(record: dict[str, Any]) -> list[tuple[str, list[float], tuple[float, float | None] | None]]:
    """For each contender but the reference: label, PSNR of its clips, mean and interval."""
    found = []
    for one in others(record):
        told = one["fidelity"]["psnr"]
        found.append((one["label"], dots.values_of(one), told and (told["mean"], told.get("ci95"))))
    return found


def adherence_of(record: dict[str, Any]) -> list[tuple[str, dict[str, list[int]]]]:
    """What was judged, for each aspect that any prompt names; the reference is last. Empty where nothing was judged."""
    found = []
    for one in (*others(record), reference(record)):
        if named := {aspect: told for aspect, told in (one["adherence"] or {}).items() if told[1]}:
            found.append((one["label"], named))
    return found


def _title(record: dict[str, Any]) -> str:
    own = others(record)
    told = f"{', '.join(one['label'] for one in own)} against {reference(record)['label']}"
    return f"{told} on {words.counted(len(own[0]['clips']), 'clip')}: {record['model']}"


def _mean(told: dict[str, Any] | None, digits: int = 3) -> str:
    return DASH if told is None else words.plus_minus(told["mean"], told.get("ci95"), digits)


def _headline(record: dict[str, Any]) -> str:
    first = others(record)[0]
    count, same, broken = len(first["clips"]), first["identical"], first["nonfinite"]
    psnr = first["fidelity"]["psnr"]
    name, base = bold(first), bold(reference(record))
    many = f"On {count} clips" if count > 1 else "On one clip"
    if psnr is None:
        told = f"{many}, {name} makes the same frames as {base}: a PSNR of <b>∞ dB</b>"
    else:
        told = f"{many}, {name} has a PSNR of <b>{_mean(psnr)} dB</b> against {base}"
        told += f"; the worst clip has {words.decibels(psnr['worst'])}" if count - same > 1 else ""
        told += f"; {words.counted(same, 'clip')} had the same frames and no part in the mean" if same else ""
    if judged := adherence_of(record):
        mine, theirs = (_hits(told) for _, told in (judged[0], judged[-1]))
        told += (
            f". The judge finds <b>{mine}</b> of what the prompts name in its clips, and {theirs} in those of {base}"
        )
    video = record["video"]
    asked = words.asked(len(record["prompts"]), record["seeds"])
    size = f"{video['frames']} frames of {video['width']}{words.TIMES}{video['height']}, {video['steps']} steps"
    interval = " The number after ± is half of the 95 % confidence interval of the mean." if count > 1 else ""
    warning = (
        f'<p class="verdict missed">✗ {broken} of {count} clips have NaN or infinite latents.</p>\n' if broken else ""
    )
    return (
        f'<h1>{html.text(_title(record))}</h1>\n<p class="lead">{told}.</p>\n{warning}'
        f"<p>{html.text(record['model'])} made the clips ({asked}; {size}) on {provenance.measured_on(record)}."
        f"{interval}</p>\n"
    )


def _hits(told: dict[str, list[int]]) -> str:
    return words.percent(sum(hits for hits, _ in told.values()) / sum(of for _, of in told.values()))


def _fidelity(record: dict[str, Any], png: bytes) -> str:
    rows = []
    for one in others(record):
        told = one["fidelity"]
        rows.append([
            who(one, told=True),
            *(_cell(name, told) for name in _MEASURES),
            str(one["identical"]),
            str(one["nonfinite"]),
        ])  # fmt: skip
    each = "; ".join(
        f"{name}: mean {_alt(mean)}, clips {', '.join(words.decibels(value) for value in values)}"
        for name, values, mean in rows_of(record)
    )
    heads = ["", *_MEASURES.values(), "Clips identical", "With NaN or Inf"]
    return (
        f"<h2>How close</h2>\n<p>Each clip is compared with the one by {bold(reference(record))} of the same prompt "
        "and noise. The table has means over the clips; small figures are the worst clip&rsquo;s. Where nothing "
        "differs, cosine and SSIM are 1 and LPIPS is 0. A clip whose frames are all the same has an infinite PSNR, "
        f"and no part in the mean of it.{lpips_told([one['fidelity'] for one in others(record)])}</p>\n"
        + html.table("Fidelity over clips", heads, rows)
        + html.figure(
            png,
            f"PSNR of each clip: {each}.",
            f"Each dot is one clip. The further right it lies, the closer it is to {bold(reference(record))}.",
        )
    )


def _cell(name: str, told: dict[str, Any]) -> str:
    """Mean, interval and worst; for the cosine also its distance from 1, which keeps its digits."""
    found = told[name]
    if found is None:
        return DASH if name == "lpips" else "∞"
    if name == "latent_cosine":
        error = told["latent_error"]
        return f"{found['mean']:.6f}<small>1 {DASH} {_mean(error)}<br>worst {found['worst']:.6f}</small>"
    mean = words.plus_minus(found["mean"], found.get("ci95"), 4 if name == "ssim" else 3)
    return f"{mean}<small>worst {words.number(found['worst'], 4 if name == 'ssim' else 3)}</small>"


def _alt(mean: tuple[float, float | None] | None) -> str:
    return "∞ dB" if mean is None else f"{words.plus_minus(*mean)} dB"


def _adherence(judged: list[tuple[str, dict[str, list[int]]]], drawn: dict[str, bytes]) -> str:
    if not judged:
        return ""
    told = "; ".join(
        f"{name}: {', '.join(f'{aspect} {hits} of {of}' for aspect, (hits, of) in own.items())}" for name, own in judged
    )
    return "<h2>Does it show what was asked for?</h2>\n" + html.figure(
        drawn["adherence"],
        f"Adherence to prompts: {told}.",
        "The judge is a small network, trained on this model&rsquo;s world. Each bar is the share of clips in which "
        "it finds what the prompt names; the lines are 95 % intervals (Wilson). The model has limits of its own: the "
        f"share of {html.prompt(judged[-1][0])} shows them.",
    )


def _vbench(record: dict[str, Any]) -> str:
    scored = [one for one in record["contenders"] if one["vbench"]]
    if not scored:
        return ""
    dimensions = list(scored[0]["vbench"])
    rows = [[who(one), *(words.number(one["vbench"].get(dimension), 4) for dimension in dimensions)] for one in scored]
    heads = ["", *(html.text(dimension.replace("_", " ")) for dimension in dimensions)]
    return f"<h2>VBench</h2>\n<p>A higher score is better.</p>\n{html.table('VBench', heads, rows)}"


def _clips(record: dict[str, Any]) -> str:
    """The PSNR of each clip by each contender; where there are very many, the first contender's worst."""
    every = others(record)
    order = list(range(len(every[0]["clips"])))
    told = ""
    if len(order) > _MOST_CLIPS:
        worst = dots.values_of(every[0])
        order = sorted(order, key=lambda number: worst[number])[:_MOST_CLIPS]
        base = bold(reference(record))
        told = f"<p>These are the {_MOST_CLIPS} clips that are furthest from {base}. The record has all clips.</p>\n"
    psnr = [dots.values_of(one) for one in every]
    rows = [
        [
            f'<span class="prompt">{html.prompt(every[0]["clips"][number]["prompt"])}</span>',
            html.text(every[0]["clips"][number]["seed"]),
            *(words.decibels(values[number]) for values in psnr),
        ]
        for number in order
    ]
    heads = ["Prompt", "Seed", *(f"{html.prompt(one['label'])}, PSNR" for one in every)]
    return f"<h2>Clips</h2>\n{told}{html.table('Clips', heads, rows)}"


def _measured(record: dict[str, Any]) -> str:
    last = next_seed(record["seed"], len(record["prompts"]) * record["seeds"] - 1)
    rows = settings(record, f"seeds {record['seed']} to {last}") | provenance.facts(record)
    return (
        f"{provenance.notes(record)}<h2>How it was measured</h2>\n{html.definitions(rows)}{provenance.command(record)}"
    )
