"""The page of what a card said, made of the files that `python -m benchmarks.card` leaves in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.card.steps import RECORD
from benchmarks.markdown import page
from fpsgen.tables import Table


def document(folder: Path) -> str:
    """Markdown; `folder` has at least steps.json."""
    record = read(folder / RECORD)
    about = (
        f"`python -m benchmarks.card` left the files beside this page on {record['date']}, commit {record['commit']}."
    )
    return page("What a card said", about) + "\n\n".join(sections(folder, record)) + "\n"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def sections(folder: Path, record: dict[str, Any]) -> Iterator[str]:
    """Each has a title and a table; one whose file is not there is left out."""
    rows = [[one["name"], one["outcome"], str(one.get("took_s", "")), last_line(one)] for one in record["steps"]]
    yield titled("Steps", ["step", "outcome", "seconds", "its last line"], rows)
    if (folder / "sums.json").exists():
        shares = read(folder / "sums.json")["shares"]
        rows = [[kind, rule, f"{share:.4%}"] for kind, own in shares.items() for rule, share in own.items()]
        yield titled("FP8 sums: results that a rule gives", ["sums", "rule", "equal"], rows)
    if (folder / "pipes.json").exists():
        found = read(folder / "pipes.json")
        rows = [
            [name, f"{found['intervals'].get(name, '')}", str(clocks)] for name, clocks in found["latencies"].items()
        ]
        yield titled(f"Clocks of instructions, {found['device']}", ["instruction", "interval", "latency"], rows)
    if (folder / "ablations.json").exists():
        found = read(folder / "ablations.json")
        whole = {one["variant"]: one["median_ms"] for one in found["rows"] if one["name"] == "as it is"}
        rows = []
        for one in found["rows"]:
            took, of = one["median_ms"], whole.get(one["variant"])
            numbers = [f"{took:.2f} ms" if took else one["fault"], f"{took / of:.3f}" if took and of else ""]
            rows.append([one["name"], one["variant"], *numbers])
        title = f"The kernel without a part, {' '.join(found['shape'])}, density {found['density']}"
        yield titled(title, ["left out or changed", "variant", "took", "of the whole"], rows)


def titled(title: str, head: list[str], rows: list[list[str]]) -> str:
    table = Table.of_numbers("", head, ("outcome", "its last line", "rule", "variant"), rows)
    return f"## {title}\n\n{table.markdown().rstrip()}"


def last_line(step: dict[str, Any]) -> str:
    """Of what a step said, without bars, which would end a cell."""
    return (step.get("tail", "").strip().splitlines() or [""])[-1].strip("= ").replace("|", "/")[:100]
