"""`fpsgen models`: which there are, fetching them, checking and converting them."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fpsgen.cli.errors import explained
from fpsgen.cli.options import Json, Verbose, expand
from fpsgen.cli.output import Output, readable
from fpsgen.errors import ModelError, UsageError

if TYPE_CHECKING:
    from fpsgen.wan.hub import Download
    from fpsgen.wan.models import Model

EXAMPLES = """[bold]Examples[/bold]

fpsgen models

fpsgen models pull 1.3b --dry-run

fpsgen models check ~/Wan2.1-T2V-14B

fpsgen models convert ~/Wan2.1-T2V-1.3B ~/Wan2.1-T2V-1.3B-Diffusers --to diffusers
"""


class FormatName(StrEnum):
    ORIGINAL = "original"
    DIFFUSERS = "diffusers"


app = typer.Typer(help="List, fetch, check and convert models.", epilog=EXAMPLES, rich_markup_mode="rich")


@app.callback(invoke_without_command=True, epilog=EXAMPLES)
@explained
def show(context: typer.Context, json: Json = False) -> None:
    """List the models that have a name, and those that are on disk."""
    if context.invoked_subcommand is not None:
        if json:
            raise UsageError(
                "--json stands before the command", hint=f"fpsgen models {context.invoked_subcommand} … --json"
            )
        return
    out = Output(json)
    known = list(listed())
    if json:
        out.result("", {"models": known})
        return
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("model", "format", "size", "state", "where"):
        table.add_column(column, justify="right" if column == "size" else "left", overflow="fold")
    for entry in known:
        where = entry["folder"] if entry["repository"] else "comes with fpsgen"
        size = readable(entry["bytes"]) if entry["bytes"] is not None else ""
        table.add_row(entry["name"], entry["format"], size, entry["state"], where or entry["repository"])
    out.show(table)


def listed() -> Iterator[dict]:
    """The pocket, the known models in both formats, and other Wan2.1 checkpoints in the download cache."""
    from fpsgen.wan import hub, models

    pocket = models.find(models.POCKET)
    yield entry(pocket.name, None, pocket.folder)
    for name, repositories in hub.REPOSITORIES.items():
        for form, repository in repositories.items():
            yield {**entry(name, repository, hub.snapshot(repository)), "format": form}
    for repository in hub.downloaded():
        yield entry(repository, repository, hub.snapshot(repository))


def entry(name: str, repository: str | None, folder: Path | None) -> dict:
    """What the list says of a model. bytes: on disk, where it is whole."""
    from fpsgen.wan import hub

    checkpoint = hub.whole(folder)
    return {
        "name": name,
        "repository": repository,
        "folder": str(folder) if folder else None,
        "format": checkpoint.format if checkpoint else None,
        "bytes": checkpoint.bytes if checkpoint else None,
        "state": "here" if checkpoint else "incomplete" if folder else "not here",
    }


@app.command(epilog=EXAMPLES)
@explained
def pull(
    name: Annotated[str, typer.Argument(help="1.3b, 14b or a hub id such as Wan-AI/Wan2.1-T2V-1.3B.")],
    form: Annotated[
        FormatName, typer.Option("--format", help="Which of a known model's two repositories.")
    ] = FormatName.ORIGINAL,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be fetched.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Fetch what is here already, too.")] = False,
    json: Json = False,
) -> None:
    """Fetch a model from the Hugging Face hub; an interrupted download goes on where it ended."""
    from fpsgen.wan import hub

    out = Output(json)
    download = hub.plan(hub.repository_of(name, form.value), force)
    told = told_of(download)
    amount = f"{readable(download.absent_bytes)} of {readable(download.bytes)} from {download.repository}"
    if dry_run:
        for file, size in download.files.items():
            out.line(f"{readable(size):>10}  {file}{'' if file in download.absent else '  (here already)'}")
        out.result(
            f"{amount} would be fetched",
            told,
        )
        return
    out.note(f"fetching {amount}")
    folder = hub.pull(download)
    out.result(str(folder), {**told, "folder": str(folder)})


@app.command(epilog=EXAMPLES)
@explained
def check(
    model: Annotated[str, typer.Argument(help="A folder, or what --model takes.")],
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compare a model's files with what Wan2.1 needs, by their headers: in seconds, nothing is loaded."""
    from fpsgen.wan import load, models

    out = Output(json, verbose)
    found = models.find(model)
    try:
        load.check(found.checkpoint)
    except ModelError as error:
        raise ModelError(f"model {model} cannot be used: {error}", hint=error.hint) from None
    told = told_about(found)
    for key, value in told.items():
        out.detail(f"{key}: {value}")
    out.result(
        f"{model}: a whole Wan2.1 text-to-video checkpoint in {told['format']} format, "
        f"{in_words(told['parameters'])} parameters in the transformer, {readable(told['bytes'])}",
        told,
    )


@app.command(epilog=EXAMPLES)
@explained
def convert(
    model: Annotated[str, typer.Argument(help="A folder, or what --model takes.")],
    out_folder: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    to: Annotated[
        FormatName | None, typer.Option("--to", help="The format to write.", show_default="the other one")
    ] = None,
    json: Json = False,
) -> None:
    """Write a model in the other format, every tensor bit for bit."""
    from fpsgen.wan import models
    from fpsgen.wan.convert import convert as write

    out = Output(json)
    found = models.find(model)
    other = FormatName.DIFFUSERS if found.checkpoint.format == "original" else FormatName.ORIGINAL
    with out.progress() as progress:
        task = progress.add_task("convert", total=None, rate="")
        for part in write(found.checkpoint, (to or other).value, expand(out_folder)):
            progress.update(task, description=part)
            out.milestone(part)
    out.result(str(out_folder), {"output": str(out_folder), "format": (to or other).value})


def told_of(download: Download) -> dict:
    return {
        "repository": download.repository,
        "files": download.files,
        "bytes": download.bytes,
        "absent_bytes": download.absent_bytes,
    }


def told_about(model: Model) -> dict:
    """What is known of a checked model."""
    from fpsgen.wan import load

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
