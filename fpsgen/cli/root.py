"""All commands under one root."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fpsgen import __version__
from fpsgen.cli import bench, calibrate, doctor, errors, generate, kernels, models, presets
from fpsgen.cli.prompts import DashCommand


class Root(TyperGroup):
    """What goes wrong outside of a command, above all while options are read, ends as it does inside of one."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        json = "--json" in (args[: args.index("--")] if "--" in args else args)
        with errors.told(json):
            context = super().make_context(self.name, args, *rest, **extra)
        context.meta[__name__] = json
        return context

    def invoke(self, ctx: Any) -> Any:
        with errors.told(ctx.meta[__name__]):
            return super().invoke(ctx)


app = typer.Typer(
    name="fpsgen",
    cls=Root,
    help="Wan2.1 videos from a prompt: fast, and true to the model.",
    epilog='Start with:  [bold]fpsgen generate "a cat surfing"[/bold]',
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate", cls=DashCommand, epilog=generate.EXAMPLES, no_args_is_help=True)(generate.generate)
app.command("calibrate", epilog=calibrate.EXAMPLES)(calibrate.calibrate)
app.add_typer(bench.app, name="bench")
app.add_typer(models.app, name="models")
app.add_typer(presets.app, name="presets")
app.add_typer(kernels.app, name="kernels")
app.command("doctor")(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fpsgen {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    errors.show_tracebacks = debug
