"""The command line. Importing it imports no torch: each command fetches what it needs when it runs."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from fpsgen import __version__
from fpsgen.cli import bench, calibrate, doctor, errors, generate, kernels, models, presets

app = typer.Typer(
    name="fpsgen",
    help="Wan2.1 videos from a prompt: fast, and true to the model.",
    epilog='Start with:  [bold]fpsgen generate "a cat surfing"[/bold]',
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate", epilog=generate.EXAMPLES, no_args_is_help=True)(generate.generate)
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


def main() -> None:
    """Entry point of the `fpsgen` script. A polite kill and a closed terminal clean up like Ctrl-C."""
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP; nohup has it ignored, and so it stays
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    app()
