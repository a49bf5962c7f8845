"""What a bench of many clips says, on a terminal and on its page: fidelity, and whether they show their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fpsgen.bench.record import ClipMean, QualityContender, QualityRecord
from fpsgen.report import words
from fpsgen.report.contenders import compared, cosine, sided
from fpsgen.seeds import next_seed
from fpsgen.tables import Cell, Table

_MOST_CLIPS = 40  # in the table, or the worst of them

Hits = dict[str, tuple[int, ...]]  # for each aspect, clips that show it, of how many


def facts(record: QualityRecord) -> dict[str, Any]:
    """For templates/quality.html.j2."""
    contenders, judged = record.others, adherence_of(record)
    count = len(contenders[0].clips)
    return {
        "title": f"{compared(record)} on {words.counted(count, 'clip')}: {record.model}",
        "count": count,
        "asked": words.asked(len(record.prompts), record.seeds),
        "last_seed": next_seed(record.seed, len(record.prompts) * record.seeds - 1),
        "shares": [_share(aspects) for _, aspects in judged],
        "judged": judged,
        "values_of": values_of,
        "fidelity": of_fidelity(record),
        "vbench": of_vbench(record),
        "most_clips": _MOST_CLIPS,
        "clips": _clips(contenders),
    }


def tables(record: QualityRecord) -> list[Table]:
    """Fidelity, and what else was judged; a column for each contender."""
    return [table for table in (of_fidelity(record), _adherence(record), of_vbench(record)) if table and table.rows]


def of_fidelity(record: QualityRecord) -> Table:
    """Means over the clips, of all contenders but the reference."""
    contenders = record.others
    spread = "mean ± 95 % interval, and the worst clip" if len(contenders[0].clips) > 1 else "one clip"
    near = [one.fidelity for one in contenders if one.fidelity]
    rows: dict[str, Sequence[str | Cell]] = {
        "latent cosine": list(map(cosine, near)),
        "PSNR, dB": [_mean(one.psnr, 3, "∞") for one in near],
        "SSIM": [_mean(one.ssim, 4) for one in near],
        "LPIPS": [_mean(one.lpips, 3) for one in near] if any(one.lpips for one in near) else [],
        "identical clips": [str(one.identical) for one in contenders],
        "clips with NaN, Inf": [str(one.nonfinite) for one in contenders],
    }
    return sided(f"Fidelity to {record.base.label}: {spread}", contenders, rows)


def _mean(of: ClipMean | None, digits: int, none: str = words.DASH) -> Cell:
    """none: what to say where no clip had a finite value, or where it was not measured."""
    if of is None:
        return Cell(none)
    return Cell(words.number(of.mean, digits, of.ci95), notes=(f"worst {words.number(of.worst, digits)}",))


def adherence_of(record: QualityRecord) -> list[tuple[str, Hits]]:
    """Hits and clips for each aspect that any prompt names, by contender; the reference is last. Empty where nothing
    was judged."""
    judged = []
    for one in (*record.others, record.base):
        if named := {aspect: hits for aspect, hits in (one.adherence or {}).items() if hits[1]}:
            judged.append((one.label, named))
    return judged


def _share(aspects: Hits) -> str:
    return words.percent(sum(hits for hits, _ in aspects.values()) / sum(clips for _, clips in aspects.values()))


def _adherence(record: QualityRecord) -> Table:
    judged = adherence_of(record)
    aspects = judged[0][1] if judged else ()
    rows = ((aspect, *("{} of {}".format(*hits[aspect]) for _, hits in judged)) for aspect in aspects)
    return Table.of_numbers("Clips as prompted", ["", *(label for label, _ in judged)], rows=rows)


def of_vbench(record: QualityRecord) -> Table:
    scored = [one for one in record.contenders if one.vbench]
    scores = [one.vbench or {} for one in scored]
    rows = {name.replace("_", " "): [words.number(own.get(name), 4) for own in scores] for name in (*scores, {})[0]}
    return sided("VBench: higher is better", scored, rows)


def values_of(contender: QualityContender) -> list[float]:
    """The PSNR of each clip of a contender, infinite where its frames are the reference's."""
    return [clip.fidelity.psnr_or_inf for clip in contender.clips if clip.fidelity]


def _clips(contenders: Sequence[QualityContender]) -> Table:
    """The PSNR of each clip by each contender; where there are very many, the first contender's worst."""
    psnr = [values_of(one) for one in contenders]
    clips, order = contenders[0].clips, list(range(len(contenders[0].clips)))
    if len(order) > _MOST_CLIPS:
        order = sorted(order, key=lambda number: psnr[0][number])[:_MOST_CLIPS]
    table = Table.of_numbers("", ["Prompt", "Seed", *(f"{one.label}, PSNR" for one in contenders)])
    for number in order:
        cells = (words.decibels(values[number]) for values in psnr)
        table.row(clips[number].prompt, str(clips[number].seed), *cells)
    return table
