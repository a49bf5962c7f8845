"""`fpsgen config`: standing choices of model, preset and output folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from fpsgen.cli import preferences
from fpsgen.cli.command import App
from fpsgen.cli.options import alone, expand
from fpsgen.cli.output import Output
from fpsgen.printable import meant, typed

EXAMPLES = """
fpsgen config
fpsgen config set output_dir ~/Videos
fpsgen config unset output_dir
"""

app = App(epilog=EXAMPLES)


@app.callback(invoke_without_command=True)
def show(context: typer.Context, json: bool = False) -> None:
    """Show and change your defaults: model, preset, output folder.

    Without a command: show the settings, and where each comes from. The command line wins over the environment
    variables FPSGEN_MODEL, FPSGEN_PRESET and FPSGEN_OUTPUT_DIR, and these win over the settings file.
    """
    if not alone(context, json):
        return
    out, place = Output(json), preferences.path()
    found = {key: preferences.standing(key) for key in preferences.KEYS}
    out.line(f"settings file: {place}{'' if place.exists() else ' (not there yet)'}", copied=True)
    lines = [f"{line(key, one)}\n    {preferences.KEYS[key].about}" for key, one in found.items()]
    hint = 'to change one: fpsgen config set model 14b, or a line in that file: model = "14b"'
    settings = {key: asdict(one) | {"variable": preferences.variable(key)} for key, one in found.items()}
    out.result("\n".join([*lines, hint]), {"path": str(place), "exists": place.exists(), "settings": settings})


@app.command("set", epilog="fpsgen config set model 14b\nfpsgen config set output_dir ~/Videos")
def set_value(key: str, value: str, json: bool = False) -> None:
    """Write a setting into the settings file."""
    key = preferences.known(key)
    names = preferences.KEYS[key].names()
    path = expand(Path(value))
    if value and value not in names and not value.startswith("~") and (key == "output_dir" or path.exists()):
        value = str(path.absolute())  # so that it does not depend on where fpsgen is started
    preferences.change(key, value)
    if names and value not in names and "/" not in value:  # neither a path nor a hub id
        Output(json).note(f"there is no {key} {typed(value)} here{meant(value, names, '; ')}")
    tell(key, json)


@app.command("unset", epilog="fpsgen config unset model")
def unset(key: str, json: bool = False) -> None:
    """Take a setting out of the settings file."""
    preferences.change(preferences.known(key), None)
    tell(preferences.known(key), json)


def tell(key: str, json: bool) -> None:
    """What is in force now."""
    now = preferences.standing(key)
    told = {"key": key, "value": now.value, "source": now.source, "path": str(preferences.path())}
    Output(json).result(line(key, now), told)


def line(key: str, choice: preferences.Standing) -> str:
    return f"{key} = {choice.value or f'({preferences.KEYS[key].default})'}  [{choice.where}]"
