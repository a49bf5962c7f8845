"""The page of `fpsgen bench quality`: fidelity over many clips, and whether they show what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fpsgen.metrics import Pair
from fpsgen.report import html, words
from fpsgen.report.bench import dots, provenance
from fpsgen.report.bench.common import clips, draw_clips, lpips_told, others, reference, settings, who
from fpsgen.report.words import DASH
from fpsgen.seeds import next_seed

_MOST_CLIPS = 40  # in the table, or the worst of them
_MEASURES = {"latent_cosine": "Latent cosine", "psnr": "PSNR, dB", "ssim": "SSIM", "lpips": "LPIPS"}


def compose(record: dict[str, Any], pairs: Sequence[Pair]) -> tuple[str, dict[str, bytes]]:
    """The page, and its pictures by name: psnr, adherence where it was judged, frames-1, frames-2 …"""
    drawn = {"psnr": dots.psnr(rows_of(record))}
    if judged := adherence_of(record):
        drawn["adherence"] = dots.adherence(judged)
    drawn |= draw_clips(pairs)
    parts = [
        _headline(record),
        _fidelity(record, drawn["psnr"]),
        _adherence(judged, drawn),
        _vbench(record),
        clips(pairs, drawn, "The first clips; same prompt and noise in each pair of rows"),
        _clips(record),
        _measured(record),
    ]
    return html.page("bench quality", _title(record), parts), drawn


def rows_of(record: dict[str, Any]) -> list[tuple[str, list[float], tuple[float, float | None] | None]]:
    """Of each but the reference: name, PSNR of its clips, mean and interval."""
    found = []
    for one in others(record):
        told = one["fidelity"]["psnr"]
        found.append((one["name"], dots.values_of(one), told and (told["mean"], told.get("ci95"))))
    return found


def adherence_of(record: dict[str, Any]) -> list[tuple[str, dict[str, list[int]]]]:
    """What was judged, the reference last: of each aspect that any prompt names. Nothing where nothing was judged."""
    found = []
    for one in (*others(record), reference(record)):
        if named := {aspect: told for aspect, told in (one["adherence"] or {}).items() if told[1]}:
            found.append((one["name"], named))
    return found


def _title(record: dict[str, Any]) -> str:
    own = others(record)
    told = f"{', '.join(one['name'] for one in own)} against {record['reference']}"
    return f"{told} on {words.counted(len(own[0]['clips']), 'clip')}: {record['model']}"


def _mean(told: dict[str, Any] | None, digits: int = 3) -> str:
    return DASH if told is None else words.plus_minus(told["mean"], told.get("ci95"), digits)


def _headline(record: dict[str, Any]) -> str:
    first = others(record)[0]
    count, same, broken = len(first["clips"]), first["identical"], first["nonfinite"]
    psnr = first["fidelity"]["psnr"]
    name, base = f"<b>{html.prompt(first['name'])}</b>", f"<b>{html.prompt(record['reference'])}</b>"
    clips = f"{count} clips" if count > 1 else "one clip"
    if psnr is None:
        told = f"On {clips} {name} makes the very frames of {base}: a PSNR of <b>∞ dB</b>"
    else:
        told = f"On {clips} {name} comes to a PSNR of <b>{_mean(psnr)} dB</b> against {base}"
        told += f", {words.decibels(psnr['worst'])} at worst" if count - same > 1 else ""
        told += f", and to the same frames on {same}" if same else ""
    if judged := adherence_of(record):
        mine, theirs = (_hits(told) for _, told in (judged[0], judged[-1]))
        told += f"; of what prompts name and the judge knows, it sees <b>{mine}</b> in its clips, "
        told += f"{theirs} in those of {base}"
    video = record["video"]
    many = words.asked(len(record["prompts"]), record["seeds"])
    size = f"{video['frames']} frames of {video['width']}{words.TIMES}{video['height']}, {video['steps']} steps"
    interval = " What follows ± is half of the 95 % confidence interval of the mean." if count > 1 else ""
    warning = (
        f'<p class="verdict missed">✗ {broken} of {count} clips have NaN or infinite latents.</p>\n' if broken else ""
    )
    return (
        f'<h1>{html.text(_title(record))}</h1>\n<p class="lead">{told}.</p>\n{warning}'
        f"<p>{many}; {size} by {html.text(record['model'])} on {provenance.measured_on(record)}.{interval}</p>\n"
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
        "<h2>How true</h2>\n<p>Means over clips, each against the reference&rsquo;s of the same prompt and noise; in "
        "small the worst clip. Cosine and SSIM are 1 and LPIPS is 0 where nothing differs; clips whose frames are all "
        f"identical have an infinite PSNR, and are in no mean of it."
        f"{lpips_told([one['fidelity'] for one in others(record)])}</p>\n"
        + html.table("Fidelity over clips", heads, rows)
        + html.figure(
            png, f"PSNR of each clip: {each}.", "A dot is one clip: further right is closer to the reference."
        )
    )


def _cell(name: str, told: dict[str, Any]) -> str:
    """Mean, interval and worst; of the cosine that far from 1 of which digits remain."""
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
        "The share of clips in which a small network, trained on this model&rsquo;s world, sees what the prompt names; "
        "lines are 95 % intervals (Wilson). The model has its own limits: the reference&rsquo;s share shows them.",
    )


def _vbench(record: dict[str, Any]) -> str:
    scored = [one for one in record["contenders"] if one["vbench"]]
    if not scored:
        return ""
    dimensions = list(scored[0]["vbench"])
    rows = [
        [html.text(one["name"]), *(words.number(one["vbench"].get(dimension), 4) for dimension in dimensions)]
        for one in scored
    ]
    heads = ["", *(html.text(dimension.replace("_", " ")) for dimension in dimensions)]
    return f"<h2>VBench</h2>\n<p>Higher is better.</p>\n{html.table('VBench', heads, rows)}"


def _clips(record: dict[str, Any]) -> str:
    """PSNR of each clip by each contender; of very many the worst for the first."""
    every = others(record)
    order = list(range(len(every[0]["clips"])))
    told = ""
    if len(order) > _MOST_CLIPS:
        worst = dots.values_of(every[0])
        order = sorted(order, key=lambda number: worst[number])[:_MOST_CLIPS]
        told = f"<p>The {_MOST_CLIPS} that are furthest from the reference&rsquo;s; the record has all.</p>\n"
    psnr = [dots.values_of(one) for one in every]
    rows = [
        [
            f'<span class="prompt">{html.prompt(every[0]["clips"][number]["prompt"])}</span>',
            html.text(every[0]["clips"][number]["seed"]),
            *(words.decibels(values[number]) for values in psnr),
        ]
        for number in order
    ]
    heads = ["Prompt", "Seed", *(f"{html.text(one['name'])}, PSNR" for one in every)]
    return f"<h2>Clips</h2>\n{told}{html.table('Clips', heads, rows)}"


def _measured(record: dict[str, Any]) -> str:
    last = next_seed(record["seed"], len(record["prompts"]) * record["seeds"] - 1)
    rows = settings(record, f"seeds {record['seed']} to {last}") | provenance.facts(record)
    return (
        f"{provenance.notes(record)}<h2>How it was measured</h2>\n{html.definitions(rows)}{provenance.command(record)}"
    )
