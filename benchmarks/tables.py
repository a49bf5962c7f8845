"""The tables of measurements in docs/ are made of benchmarks/results/, so that no figure there is anyone's memory.

    python -m benchmarks.tables

Writes each table between its marks, and beside what a card said a page of it; `tests/unit/benchmarks/test_tables.py`
fails if a page and the results disagree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from benchmarks.card.page import document
from benchmarks.card.steps import RECORD
from benchmarks.record import RESULTS
from fpsgen.bench.attention.record import AttentionRecord
from fpsgen.bench.record import CompareContender, CompareRecord
from fpsgen.tables import Table
from fpsgen.values import from_dict

DOCS = RESULTS.parents[1] / "docs"
PAGES = [DOCS / "calibrate.md", DOCS / "bench.md"]
_END = "<!-- end of table -->"
_ATTENTION = "**/attention*.json"  # also in the folder of what a card said


def table(head: list[str], rows: list[list[str]]) -> str:
    """In Markdown; all columns but the first are numbers."""
    return Table.of_numbers("", head, rows=rows).markdown()


def read(pattern: str) -> list[dict[str, Any]]:
    """The results whose file names match, in the order of their names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob(pattern))]


CONTENDERS = {
    "calibrated": "calibrated",
    "without steps": "calibrated, all steps alike",
    "without layers": "calibrated, all layers alike",
    "without heads": "calibrated, all heads alike",
    "windows alone": "calibrated, windows alone",
    "dense start, then top": "dense start, then the best tiles",
    "dense start, then window": "dense start, then a window",
    "fewer steps": "dense, fewer steps",
    "calibrated, fewer steps": "calibrated, fewer steps",
}


def calibration() -> str:
    """Mean error of each contender at each cost, with 95 % intervals."""
    [record] = read("calibration.json")
    levels = list(record["levels"])
    cells = {(row["level"], row["name"].split(":")[0]): row for row in record["rows"]}
    return table(
        ["error of the final latents", *(f"at cost {record['levels'][level]:.2f}" for level in levels)],
        [[text, *(mean(cells.get((level, name))) for level in levels)] for name, text in CONTENDERS.items()],
    )


CHOICES = ("attention only", "+ linear layers", "+ guidance", "+ reused steps", "all")


def denoising() -> str:
    """Mean PSNR and error of what may be chosen at each cost of denoising, and of fewer dense steps."""
    [record] = read("denoising.json")
    cells = {(row["level"], row["name"].split(":")[0]): row for row in record["rows"]}
    names = [*CHOICES, "fewer steps, int8", "fewer steps, bf16"]
    return table(
        ["PSNR in dB; error", *(f"at cost {cost:.2f}" for cost in record["levels"].values())],
        [[name, *(near(cells.get((level, name))) for level in record["levels"])] for name in names],
    )


def near(row: dict[str, Any] | None) -> str:
    return f"{row['psnr']:.1f} ± {row['psnr_ci95']:.1f}; {row['error']:.4f}" if row else "-"


def mean(row: dict[str, Any] | None) -> str:
    return f"{row['error']:.4f} ± {row['error_ci95']:.4f}" if row else "-"


def bench() -> str:
    """End to end: median ratios, and how near the frames are."""
    records = [from_dict(CompareRecord, told) for told in read("bench-*.json")]
    rows = [row_of(record, one) for record in records for one in record.others]
    head = ["model, size, device", "contender", "reference", "speed-up", "denoising alone", "PSNR", "SSIM"]
    return table(head, rows)


def row_of(record: CompareRecord, one: CompareContender) -> list[str]:
    video, mark = record.video, ", extrapolated" if record.extrapolated else ""
    device = record.card.gpu if record.card else record.machine["cpu"]
    near, speedup = one.fidelity, one.speedup or {}
    return [
        f"{record.model}, {video.width}x{video.height}, {device}{mark}",
        one.name,
        record.reference,
        *(f"{speedup[part].median:.2f}" for part in ("total", "denoise")),
        "" if near is None else "∞" if near.identical else f"{near.psnr:.1f} dB",
        "" if near is None else f"{near.ssim:.3f}",
    ]


def attention() -> str:
    """The kernel with its prologue against the fastest dense attention in BF16, for each shape and density."""
    rows = []
    for record in (from_dict(AttentionRecord, told) for told in read(_ATTENTION)):
        for case in record.cases:
            for line in case.lines:
                if line.kind == "together" and line.speedup:
                    name, ratios = min(line.speedup.items(), key=lambda one: one[1]["alone"] or 0.0)
                    rows.append([
                        f"{case.model} {case.res}, {record.card.gpu}", str(line.variant), f"{line.density:.3f}",
                        f"{line.median_ms:.2f} ms", f"{line.tflops:.0f}", f"{ratios['alone']:.2f} ({name})",
                    ])  # fmt: skip
    return table(["shape, card", "variant", "density", "with prologue", "TFLOP/s", "speed-up over BF16"], rows)


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "calibration": ("calibration.json", calibration),
    "denoising": ("denoising.json", denoising),
    "bench": ("bench-*.json", bench),
    "attention": (_ATTENTION, attention),
}


def rendered(text: str) -> str:
    """A page with each of its tables made anew; ValueError for a mark that names no table."""

    def made(found: re.Match[str]) -> str:
        if found[2] not in TABLES:
            raise ValueError(f"a page has a table {found[2]!r}, and there is none: {', '.join(TABLES)}")
        return f"{found[1]}\n{TABLES[found[2]][1]()}{_END}"

    return re.sub(rf"(<!-- table of benchmarks\.tables: (\w+) -->)\n.*?{_END}", made, text, flags=re.DOTALL)


def main() -> None:
    for page in PAGES:
        page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")
    for record in RESULTS.glob(f"*/{RECORD}"):
        (record.parent / "README.md").write_text(document(record.parent), encoding="utf-8")


if __name__ == "__main__":
    main()
