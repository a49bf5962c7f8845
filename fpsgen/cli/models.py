"""`fpsgen models`: which there are, fetching them, checking, converting and removing them."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fpsgen.cli import complete
from fpsgen.cli.errors import explained
from fpsgen.cli.help import App, argument, option
from fpsgen.cli.options import Json, Verbose, alone, expand
from fpsgen.cli.output import Output, hush, readable
from fpsgen.errors import ModelError, Stopped, UsageError
from fpsgen.printable import printable
from fpsgen.tables import Table

if TYPE_CHECKING:
    from fpsgen.weights.cached import Cached
    from fpsgen.weights.hub import Download
    from fpsgen.weights.models import Model

EXAMPLES = """
fpsgen models
fpsgen models pull 1.3b --dry-run
fpsgen models check ~/Wan2.1-T2V-14B
fpsgen models rm 1.3b
fpsgen models convert ~/Wan2.1-T2V-1.3B diffusers-1.3b
"""


class FormatName(StrEnum):
    ORIGINAL = "original"
    DIFFUSERS = "diffusers"


CheckedModel = Annotated[
    str, argument("MODEL", "The model: a folder, a name, a .safetensors file or a hub id.", offers=complete.models)
]

app = App(epilog=EXAMPLES)


@app.callback(invoke_without_command=True)
@explained
def show(context: typer.Context, json: Json = False) -> None:
    """List, fetch, check, convert and remove models.

    Without a command: list the models that fpsgen knows, and which of them are on this disk.
    """
    if alone(context, json):
        list_models(json=json)


@app.command("list", epilog="fpsgen models list --json")
@explained
def list_models(json: Json = False) -> None:
    """List the models that fpsgen knows, and which of them are on this disk."""
    out = Output(json)
    known = list(listed())
    if json:
        out.result("", {"models": known})
        return
    table = Table()
    table.column("model")
    table.column("format", spare=2)
    table.column("state", prose=True)
    table.column("size", right=True)
    table.column("where", spare=1)
    for entry in known:
        row = (entry["name"], entry["format"] or "", state_told(entry), size_told(entry), where_told(entry))
        table.row(*row)
    out.show(table)


def state_told(entry: dict) -> str:
    """The state, and what lacks where that is known."""
    if not entry["lacking"]:
        return entry["state"]
    return f"incomplete: {len(entry['lacking'])} of {entry['files']} files, {readable(entry['absent_bytes'])} missing"


def size_told(entry: dict) -> str:
    from fpsgen.weights import hub

    if entry["bytes"] is not None:
        return readable(entry["bytes"])
    absent = entry["state"] == "not here"
    return f"about {hub.DOWNLOAD_GB[entry['name']][entry['format']]} GB" if absent else ""


def where_told(entry: dict) -> str:
    if entry["state"] == "unreadable" or (entry["why"] and not entry["lacking"]):
        return entry["why"]
    return printable(entry["folder"] or entry["repository"]) if entry["repository"] else "comes with fpsgen"


def listed() -> Iterator[dict]:
    """The pocket, the known models in both formats, and other Wan2.1 checkpoints in the download cache."""
    from fpsgen.weights import hub, models

    pocket = models.find(models.POCKET)
    own = hub.Cached(pocket.name, "here", pocket.folder, pocket.checkpoint)
    yield {**entry(pocket.name, own), "repository": None}
    for name, repositories in hub.REPOSITORIES.items():
        for form, repository in repositories.items():
            yield {**entry(name, hub.look(repository)), "format": form}
    for cached in hub.downloaded():
        yield entry(cached.repository, cached)


def entry(name: str, cached: Cached) -> dict:
    """What the list says of a model. bytes: on disk, where it is whole; absent_bytes: to be fetched, where known."""
    checkpoint = cached.checkpoint
    return {
        "name": name,
        "repository": cached.repository,
        "folder": str(cached.folder) if cached.folder else None,
        "format": checkpoint.format if checkpoint else None,
        "bytes": checkpoint.bytes if checkpoint else None,
        "state": cached.state,
        "why": cached.why,
        "files": len(cached.files) or None,
        "lacking": list(cached.lacking),
        "absent_bytes": cached.lacking_bytes if cached.lacking else None,
    }


@app.command(epilog="fpsgen models pull 1.3b --dry-run\nfpsgen models pull 14b")
@explained
def pull(
    name: Annotated[
        str,
        argument(
            "MODEL", "The model: 1.3b, 14b or a hub id such as Wan-AI/Wan2.1-T2V-1.3B.", offers=complete.wan_models
        ),
    ],
    form: Annotated[
        FormatName, option("--format FORMAT", "The format of the files of 1.3b or 14b: original or diffusers.")
    ] = FormatName.ORIGINAL,
    dry_run: Annotated[bool, option("--dry-run", "Only say what would be fetched.")] = False,
    force: Annotated[bool, option("--force", "Fetch also the files that are on this disk.")] = False,
    json: Json = False,
) -> None:
    """Fetch a model from the Hugging Face hub. An interrupted download continues where it ended."""
    from huggingface_hub.utils import disable_progress_bars

    from fpsgen.weights import hub

    out = Output(json)
    if json:
        disable_progress_bars()
    out.loading("asking the hub")
    download = hub.plan(hub.repository_of(name, form.value), force)
    told = told_of(download)
    amount = f"{readable(download.absent_bytes)} of {readable(download.bytes)} from {download.repository}"
    if dry_run:
        for file, size in download.files.items():
            out.line(
                f"{readable(size):>10}  {printable(file)}{'' if file in download.absent else '  (here already)'}",
                copied=True,
            )
        out.result(
            f"{amount} would be fetched",
            told,
        )
        return
    out.note(f"fetching {amount}")
    hush()  # the hub draws bars of its own
    try:
        folder = hub.pull(download)
    except KeyboardInterrupt:
        hint = "run the same command again: it goes on from there"
        raise Stopped("stopped; what has arrived is kept", hint) from None
    out.result(str(folder), {**told, "folder": str(folder)}, copied=True)


@app.command(epilog="fpsgen models rm 1.3b\nfpsgen models rm 14b --format diffusers --yes")
@explained
def rm(
    name: Annotated[str, argument("MODEL", "The model: 1.3b, 14b or a hub id.", offers=complete.wan_models)],
    form: Annotated[
        FormatName | None,
        option(
            "--format FORMAT", "The format of the files of 1.3b or 14b to remove: original or diffusers.", shown="both"
        ),
    ] = None,
    yes: Annotated[bool, option("-y, --yes", "Remove without asking.")] = False,
    json: Json = False,
) -> None:
    """Remove a downloaded model from the hub's cache. What other revisions of it share stays."""
    from fpsgen.weights import cached, hub

    if name.lower() not in hub.REPOSITORIES and not hub.ID.fullmatch(name):
        hint = "give 1.3b, 14b or a hub id: fpsgen removes nothing but downloads in the hub's cache"
        raise UsageError(f"{printable(name, 100)} is no downloaded model", hint)
    out = Output(json)
    names = list(dict.fromkeys(hub.repository_of(name, each.value) for each in ([form] if form else FormatName)))
    removals = [cached.removal(each) for each in names if len(names) == 1 or cached.is_there(each)]
    if not removals:
        raise UsageError(f"Wan2.1 {name} is not in the hub's cache", hint="fpsgen models lists what is here")
    told = " and ".join(f"{removal.repository} ({readable(removal.bytes)})" for removal in removals)
    if not yes:
        if not out.may_ask:
            raise UsageError(
                f"this would remove {told}, and nobody is here to be asked",
                hint="add --yes to remove it without a question",
            )
        if not typer.confirm(f"Remove {told}?", err=True):
            raise Stopped("nothing was removed")
    freed = 0
    for removal in removals:
        freed += removal.execute()
        if removal.others:
            out.note(
                f"{removal.repository}: {removal.others} other revisions stay; `hf cache ls --revisions` lists them"
            )
    out.result(f"{readable(freed)} freed", {"removed": [each.repository for each in removals], "freed_bytes": freed})


@app.command(epilog="fpsgen models check 1.3b\nfpsgen models check ~/Wan2.1-T2V-14B")
@explained
def check(
    model: CheckedModel,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compare a model's files with what Wan2.1 needs. It reads their headers alone, and takes seconds."""
    from fpsgen.weights import models

    out = Output(json, verbose)
    out.loading()
    found = models.find(model)
    from fpsgen.weights import load  # imports torch, which finding none does without

    try:
        load.check(found.checkpoint)
    except ModelError as error:
        raise ModelError(f"model {printable(model)} cannot be used: {error}", hint=error.hint) from None
    told = told_about(found)
    for key, value in told.items():
        out.detail(f"{key}: {value}")
    out.result(
        f"{printable(model)}: a whole Wan2.1 text-to-video checkpoint in {told['format']} format, "
        f"{in_words(told['parameters'])} parameters in the transformer, {readable(told['bytes'])}",
        told,
    )


@app.command(epilog="fpsgen models convert ~/Wan2.1-T2V-1.3B diffusers-1.3b")
@explained
def convert(
    model: CheckedModel,
    out_folder: Annotated[Path, argument("FOLDER", "The folder to make.")],
    to: Annotated[
        FormatName | None,
        option(
            "--to FORMAT", "The format to write: original or diffusers.", shown="the one that the model does not have"
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write a model in the other format, every tensor bit for bit."""
    from fpsgen.weights import models

    out = Output(json)
    out.loading()
    found = models.find(model)
    from fpsgen.weights.convert import convert as write  # imports torch

    other = FormatName.DIFFUSERS if found.checkpoint.format == "original" else FormatName.ORIGINAL
    with out.progress() as progress:
        task = progress.add_task("convert", total=None, rate="")
        for part in write(found.checkpoint, (to or other).value, expand(out_folder)):
            progress.update(task, description=part)
            out.milestone(part)
    out.result(str(out_folder), {"output": str(out_folder), "format": (to or other).value}, copied=True)


def told_of(download: Download) -> dict:
    return {
        "repository": download.repository,
        "files": download.files,
        "bytes": download.bytes,
        "absent_bytes": download.absent_bytes,
    }


def told_about(model: Model) -> dict:
    """What is known of a checked model."""
    from fpsgen.weights import load

    checkpoint = model.checkpoint
    config = checkpoint.config
    return {
        "model": model.name,
        "format": checkpoint.format,
        "folder": str(model.folder),
        "dim": config.dim,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "ffn_dim": config.ffn_dim,
        "parameters": sum(p.numel() for p in load.empty_transformer(checkpoint).parameters()),
        "dtypes": load.dtypes(checkpoint),
        "bytes": checkpoint.bytes,
    }


def in_words(count: int) -> str:
    return f"{count / 1e9:.3f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"
