"""What a bench of many clips says, on a terminal and on its page: fidelity, and whether they show their prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fpsgen.report import words
from fpsgen.report.contenders import compared, cosine, others, reference, sided
from fpsgen.seeds import next_seed
from fpsgen.tables import Cell, Table

_MOST_CLIPS = 40  # in the table, or the worst of them


def facts(record: dict[str, Any]) -> dict[str, Any]:
    """For templates/quality.html.j2. record: of "kind" quality, as its JSON has it."""
    contenders, judged = others(record), adherence_of(record)
    count = len(contenders[0]["clips"])
    return {
        "title": f"{compared(record)} on {words.counted(count, 'clip')}: {record['model']}",
        "first": contenders[0],
        "base": reference(record),
        "count": count,
        "others": contenders,
        "asked": words.asked(len(record["prompts"]), record["seeds"]),
        "last_seed": next_seed(record["seed"], len(record["prompts"]) * record["seeds"] - 1),
        "shares": [_share(aspects) for _, aspects in judged],
        "judged": judged,
        "values_of": values_of,
        "fidelity": of_fidelity(record),
        "vbench": of_vbench(record),
        "most_clips": _MOST_CLIPS,
        "clips": _clips(contenders),
    }


def tables(record: dict[str, Any]) -> list[Table]:
    """Fidelity, and what else was judged; a column for each contender."""
    return [table for table in (of_fidelity(record), _adherence(record), of_vbench(record)) if table and table.rows]


def of_fidelity(record: dict[str, Any]) -> Table:
    """Means over the clips, of all contenders but the reference."""
    contenders = others(record)
    spread = "mean ± 95 % interval, and the worst clip" if len(contenders[0]["clips"]) > 1 else "one clip"
    near = [one["fidelity"] for one in contenders]
    rows: dict[str, Sequence[str | Cell]] = {
        "latent cosine": [cosine(one["latent_cosine"], one["latent_error"]) for one in near],
        "PSNR, dB": [_mean(one["psnr"], 3, "∞") for one in near],
        "SSIM": [_mean(one["ssim"], 4) for one in near],
        "LPIPS": [_mean(one["lpips"], 3) for one in near] if any(one["lpips"] for one in near) else [],
        "identical clips": [str(one["identical"]) for one in contenders],
        "clips with NaN, Inf": [str(one["nonfinite"]) for one in contenders],
    }
    return sided(f"Fidelity to {reference(record)['label']}: {spread}", contenders, rows)


def _mean(mean: dict[str, Any] | None, digits: int, none: str = words.DASH) -> Cell:
    """none: what to say where no clip had a finite value, or where it was not measured."""
    if mean is None:
        return Cell(none)
    return Cell(
        words.number(mean["mean"], digits, mean.get("ci95")), notes=(f"worst {words.number(mean['worst'], digits)}",)
    )


def adherence_of(record: dict[str, Any]) -> list[tuple[str, dict[str, list[int]]]]:
    """Hits and clips for each aspect that any prompt names, by contender; the reference is last. Empty where nothing
    was judged."""
    judged = []
    for one in (*others(record), reference(record)):
        if named := {aspect: hits for aspect, hits in (one["adherence"] or {}).items() if hits[1]}:
            judged.append((one["label"], named))
    return judged


def _share(aspects: dict[str, list[int]]) -> str:
    return words.percent(sum(hits for hits, _ in aspects.values()) / sum(clips for _, clips in aspects.values()))


def _adherence(record: dict[str, Any]) -> Table:
    judged = adherence_of(record)
    aspects = judged[0][1] if judged else ()
    rows = ((aspect, *("{} of {}".format(*hits[aspect]) for _, hits in judged)) for aspect in aspects)
    return Table.of_numbers("Clips as prompted", ["", *(label for label, _ in judged)], rows=rows)


def of_vbench(record: dict[str, Any]) -> Table:
    scored = [one for one in record["contenders"] if one["vbench"]]
    names = scored[0]["vbench"] if scored else ()
    scores = {name: [words.number(one["vbench"].get(name), 4) for one in scored] for name in names}
    return sided("VBench: higher is better", scored, {name.replace("_", " "): cells for name, cells in scores.items()})


def values_of(contender: dict[str, Any]) -> list[float]:
    """The PSNR of each clip of a contender, infinite where its frames are the reference's."""
    near = [clip["fidelity"] for clip in contender["clips"] if clip["fidelity"]]
    return [math.inf if one["identical"] else one["psnr"] for one in near]


def _clips(contenders: list[dict[str, Any]]) -> Table:
    """The PSNR of each clip by each contender; where there are very many, the first contender's worst."""
    psnr = [values_of(one) for one in contenders]
    order = list(range(len(contenders[0]["clips"])))
    if len(order) > _MOST_CLIPS:
        order = sorted(order, key=lambda number: psnr[0][number])[:_MOST_CLIPS]
    shown = ((contenders[0]["clips"][number], [words.decibels(values[number]) for values in psnr]) for number in order)
    rows = ((clip["prompt"], str(clip["seed"]), *cells) for clip, cells in shown)
    return Table.of_numbers("", ["Prompt", "Seed", *(f"{one['label']}, PSNR" for one in contenders)], rows=rows)
