"""All commands under one root."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fpsgen import __version__
from fpsgen.cli import bench, calibrate, config, doctor, errors, generate, info, kernels, models, presets, sheet, train
from fpsgen.cli.command import App, Group
from fpsgen.cli.prompts import DashCommand


class Root(Group):
    """What goes wrong outside of a command, above all while options are read, ends as it does inside of one."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        before = args[: args.index("--")] if "--" in args else args
        json = any(arg == "--json" or arg.startswith("--json=") for arg in before)  # which takes no value, and says so
        with errors.told(json):
            context = super().make_context(self.name, args, *rest, **extra)
        context.meta[__name__] = json
        return context

    def invoke(self, ctx: Any) -> Any:
        with errors.told(ctx.meta[__name__]):
            return super().invoke(ctx)


app = App(
    name="fpsgen",
    cls=Root,
    epilog='fpsgen generate "a cat surfing"',
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate", cls=DashCommand, epilog=generate.EXAMPLES, no_args_is_help=True)(generate.generate)
app.command("info", epilog=info.EXAMPLES)(info.info)
app.command("sheet", epilog=sheet.EXAMPLES)(sheet.sheet)
app.command("calibrate", epilog=calibrate.EXAMPLES)(calibrate.calibrate)
app.add_typer(bench.app, name="bench")
app.add_typer(train.app, name="train")
app.add_typer(models.app, name="models")
app.add_typer(presets.app, name="presets")
app.add_typer(kernels.app, name="kernels")
app.add_typer(config.app, name="config")
app.command("doctor", epilog="fpsgen doctor\nfpsgen doctor --json")(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fpsgen {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: bool = False,
) -> None:
    """Make videos from text and images with Wan2.1 and Wan2.2: fast, and true to the model."""
    errors.show_tracebacks = debug
