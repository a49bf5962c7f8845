"""`fpsgen models`: which there are, fetching them, checking, converting and removing them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fpsgen.cli.command import App
from fpsgen.cli.options import alone, expand
from fpsgen.cli.output import Output, hush
from fpsgen.cli.progress import drawn
from fpsgen.errors import ModelError, Stopped, UsageError
from fpsgen.events import Stage
from fpsgen.printable import printable, readable
from fpsgen.tables import Column, Table
from fpsgen.weights.known import NOTHING, Format, Given, told_of

if TYPE_CHECKING:
    from fpsgen.weights.cached import Cached

EXAMPLES = """
fpsgen models
fpsgen models pull 1.3b --dry-run
fpsgen models check ~/Wan2.1-T2V-14B
fpsgen models rm 1.3b
fpsgen models convert ~/Wan2.1-T2V-1.3B diffusers-1.3b
"""


app = App(epilog=EXAMPLES)


@app.callback(invoke_without_command=True)
def show(context: typer.Context, json: bool = False) -> None:
    """List, fetch, check, convert and remove models.

    Without a command: list the models that fpsgen knows, and which of them are on this disk.
    """
    if alone(context, json):
        list_models(json=json)


@app.command("list", epilog="fpsgen models list --json")
def list_models(json: bool = False) -> None:
    """List the models that fpsgen knows, and which of them are on this disk."""
    out = Output(json)
    from fpsgen.weights import hub, models
    from fpsgen.weights.known import MODELS

    pocket = models.find(models.POCKET)
    built_in = hub.Cached("", "here", pocket.folder, pocket.checkpoint)
    found = [(pocket.name, pocket.checkpoint.format, built_in), *hub.known(), *hub.others()]
    if json:
        out.result("", {"models": [{"name": name, "format": form, **as_dict(cached)} for name, form, cached in found]})
        return
    state, size = Column("state", prose=True), Column("size", right=True)
    columns = [Column("model"), Column("format", spare=3), state, size, Column("makes", spare=2)]
    trouble = any(cached.why for _, _, cached in found)  # which the last column tells
    table = Table(columns=[*columns, Column("where", spare=1 if trouble else 4)])
    for name, form, cached in sorted(found, key=lambda row: row[2].state == "not here"):  # what is here comes first
        known = MODELS.get(name)
        if cached.state != "not here" or known is None or form == next(iter(known.sources)):
            makes = known.about if known else "text to video" if name == pocket.name else ""
            table.row(name, form, *state_and_size(cached), makes, where(cached))
    out.show(table)


def as_dict(cached: Cached) -> dict[str, Any]:
    """For JSON."""
    kept = {key: getattr(cached, key) for key in ("state", "files", "lacking", "absent_bytes", "why", "bytes")}
    return kept | {"repository": cached.repository or None, "folder": cached.folder and str(cached.folder)}


def state_and_size(cached: Cached) -> tuple[str, str]:
    """How much of a model is here, and its size on disk or on the way, each where it is known."""
    from fpsgen.weights import hub

    if cached.bytes is not None:
        return cached.state, readable(cached.bytes)
    if cached.state == "not here":
        return cached.state, hub.to_fetch(cached)
    if cached.lacking and cached.files:
        absent = readable(cached.absent_bytes or 0)
        return f"incomplete: {len(cached.lacking)} of {cached.files} files, {absent} missing", ""
    return cached.state, ""


def where(cached: Cached) -> str:
    """The folder or the hub id; where neither explains the state, what is wrong."""
    if cached.why and not cached.lacking:
        return cached.why
    return printable(cached.folder or cached.repository) if cached.repository else "comes with fpsgen"


@app.command(epilog="fpsgen models pull 1.3b --dry-run\nfpsgen models pull 14b")
def pull(
    name: str, format: Format | None = None, dry_run: bool = False, force: bool = False, json: bool = False
) -> None:
    """Fetch a model from the Hugging Face hub. An interrupted download continues where it ended."""
    from huggingface_hub.utils import disable_progress_bars

    from fpsgen.weights import hub

    out = Output(json)
    if json:
        disable_progress_bars()
    out.loading("asking the hub")
    downloads = hub.plans(name, format, force)
    first = downloads[0]
    files = {each.repository: each.files for each in downloads[1:]}
    size, absent = sum(sum(each.files.values()) for each in downloads), sum(each.absent_bytes for each in downloads)
    facts = {"repository": first.repository, "files": first.files, "bytes": size, "absent_bytes": absent}
    facts |= {"parts": files} if files else {}
    amount = f"{readable(absent)} of {readable(size)} from {' and '.join(each.repository for each in downloads)}"
    if dry_run:
        for file, bytes_of_file, here in ((f, n, f not in d.absent) for d in downloads for f, n in d.files.items()):
            mark = "  (here already)" if here else ""
            out.line(f"{readable(bytes_of_file):>10}  {printable(file)}{mark}", copied=True)
        out.result(f"{amount} would be fetched", facts)
        return
    out.note(f"fetching {amount}")
    hush()  # the hub draws bars of its own
    try:
        folder, *_ = [hub.pull(download) for download in downloads]
    except KeyboardInterrupt:
        hint = "run the same command again: it goes on from there"
        raise Stopped("stopped; what has arrived is kept", hint) from None
    out.result(str(folder), {**facts, "folder": str(folder)}, copied=True)


@app.command(epilog="fpsgen models rm 1.3b\nfpsgen models rm 14b --format diffusers --yes")
def rm(name: str, format: Format | None = None, yes: bool = False, json: bool = False) -> None:
    """Remove a downloaded model from the hub's cache. Files that other revisions use as well stay."""
    from fpsgen.weights import cached, hub
    from fpsgen.weights.known import MODELS, PIECES

    if name.lower() not in (*MODELS, *PIECES) and not hub.ID.fullmatch(name):
        hint = "give a name that `fpsgen models` lists or a hub id: fpsgen removes only downloads in the hub's cache"
        raise UsageError(f"{printable(name, 100)} is not a downloaded model", hint)
    out = Output(json)
    known = MODELS.get(name.lower())
    forms = [format] if format else list(known.sources) if known else [None]
    sources = [hub.source(name, each) for each in forms]
    removals = list(filter(None, (cached.removal(each.repository, each.files) for each in sources)))
    if not removals:
        raise UsageError(
            f"{name} is not in the hub's cache", hint="`fpsgen models` shows which models are on this disk"
        )
    doomed = " and ".join(f"{each.repository} ({readable(each.bytes)})" for each in removals)
    if not yes:
        if not out.may_ask:
            hint = "add --yes to remove it without a question"
            raise UsageError(f"this would remove {doomed}, and there is no terminal to ask on", hint)
        if not typer.confirm(f"Remove {doomed}?", err=True):
            raise Stopped("nothing was removed")
    freed = 0
    for each in removals:
        freed += each.execute()
        if each.others:
            out.note(f"{each.repository}: {each.others} other revisions stay; `hf cache ls --revisions` lists them")
    out.result(f"{readable(freed)} freed", {"removed": [each.repository for each in removals], "freed_bytes": freed})


@app.command(epilog="fpsgen models check 1.3b\nfpsgen models check ~/Wan2.1-T2V-14B")
def check(model: str, json: bool = False, verbose: bool = False, parts: Given = NOTHING) -> None:
    """Compare a model's files with what fpsgen needs, and say what they are.

    It reads only their headers, which takes seconds."""
    from fpsgen.weights import models

    out = Output(json, verbose)
    out.loading()
    chosen = models.find(model, parts)
    checkpoint, config = chosen.checkpoint, chosen.config
    from fpsgen.weights import load  # imports torch, which `models` does without

    try:
        load.check(checkpoint)
    except ModelError as error:
        raise ModelError(f"model {printable(model)} cannot be used: {error}", hint=error.marked_hint) from None
    parameters = sum(each.numel() for each in load.empty_transformer(checkpoint).parameters())
    facts = {
        "model": chosen.name,
        "format": checkpoint.format,
        "folder": str(chosen.folder),
        **{key: getattr(config, key) for key in ("dim", "num_layers", "num_heads", "ffn_dim")},
        "parameters": parameters,
        "solver": chosen.defaults.solver,
        "steps": chosen.defaults.steps,
        "dtypes": load.dtypes(checkpoint),
        "bytes": checkpoint.bytes,
        "kind": checkpoint.kind,
        "files": {part: [str(file) for file in getattr(checkpoint, part)] for part in checkpoint.parts},
    }
    for key, value in facts.items():
        out.detail(f"{key}: {value}")
    count = f"{parameters / 1e9:.3f} billion" if parameters >= 1e9 else f"{parameters / 1e6:.1f} million"
    few = f"; made for {chosen.defaults.steps} steps of {chosen.defaults.solver}" if chosen.is_for_few_steps else ""
    numbers = ", ".join(facts["dtypes"]["transformer"])
    experts = ("of two experts ", "each expert") if checkpoint.transformer_2 else ("", "the transformer")
    out.result(
        f"{printable(model)}: a whole {told_of(checkpoint.kind)} checkpoint {experts[0]}in {checkpoint.format} format, "
        f"{count} parameters in {experts[1]} ({numbers}), {readable(checkpoint.bytes)}{few}",
        facts,
    )


@app.command(epilog="fpsgen models convert ~/Wan2.1-T2V-1.3B diffusers-1.3b")
def convert(model: str, out_folder: Path, to: Format | None = None, json: bool = False, parts: Given = NOTHING) -> None:
    """Write a model in the other format, every tensor bit for bit."""
    from fpsgen.weights import models

    out = Output(json)
    out.loading()
    chosen = models.find(model, parts)
    checkpoint = chosen.checkpoint
    from fpsgen.weights.convert import convert as write  # imports torch

    target: Format = to or ("diffusers" if checkpoint.format == "original" else "original")
    with drawn(out, log_details=True) as watch:
        for part in write(checkpoint, target, expand(out_folder), **chosen.few_steps_metadata):
            watch(Stage(part))
    out.result(str(out_folder), {"output": str(out_folder), "format": target}, copied=True)
