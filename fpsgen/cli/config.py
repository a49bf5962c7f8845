"""`fpsgen config`: standing choices of model, preset and output folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from fpsgen.cli import complete, preferences
from fpsgen.cli.errors import explained
from fpsgen.cli.help import App, argument
from fpsgen.cli.options import Json, alone, expand
from fpsgen.cli.output import Output
from fpsgen.printable import meant, typed

EXAMPLES = """
fpsgen config
fpsgen config set output_dir ~/Videos
fpsgen config unset output_dir
"""
_DEFAULTS = {
    "model": "chosen by size and by what is on this disk",
    "preset": "chosen by model and GPU",
    "output_dir": "the current folder",
}
# Values that are names, not paths.
_NAMES: dict[str, Callable[[], Sequence[str]]] = {
    "model": lambda: complete.MODELS,
    "preset": complete.preset_names,
    "output_dir": tuple,
}

Key = Annotated[str, argument("KEY", f"The setting: {', '.join(preferences.KEYS)}.", offers=complete.settings)]

app = App(epilog=EXAMPLES)


@app.callback(invoke_without_command=True)
@explained
def show(context: typer.Context, json: Json = False) -> None:
    """Show and change your defaults: model, preset, output folder.

    Without a command: show the settings, and where each comes from. The command line wins over the environment
    variables FPSGEN_MODEL, FPSGEN_PRESET and FPSGEN_OUTPUT_DIR, and these win over the settings file.
    """
    if not alone(context, json):
        return
    out, place = Output(json), preferences.path()
    found = {key: preferences.choice(key) for key in preferences.KEYS}
    out.line(f"settings file: {place}{'' if place.exists() else ' (not there yet)'}", copied=True)
    lines = [
        f"{key} = {one.value or f'({_DEFAULTS[key]})'}  [{one.where}]\n    {preferences.KEYS[key]}"
        for key, one in found.items()
    ]
    told = {
        key: {"value": one.value, "source": one.source, "where": one.where, "variable": preferences.variable(key)}
        for key, one in found.items()
    }
    hint = 'to change one: fpsgen config set model 14b, or a line in that file: model = "14b"'
    out.result("\n".join([*lines, hint]), {"path": str(place), "exists": place.exists(), "settings": told})


@app.command("set", epilog="fpsgen config set model 14b\nfpsgen config set output_dir ~/Videos")
@explained
def set_value(
    key: Key,
    value: Annotated[str, argument("VALUE", "The value, as the option takes it.")],
    json: Json = False,
) -> None:
    """Write a setting into the settings file."""
    out, value = Output(json), whole(preferences.known(key), value)
    preferences.change(key, value)
    names = _NAMES[preferences.known(key)]()
    is_name = names and "/" not in value  # neither a path nor a hub id
    if is_name and value not in names and not Path(value).exists():
        near = meant(value, names, "; ")
        out.note(f"there is no {key} {typed(value)} here{near}")
    tell(out, key)


@app.command("unset", epilog="fpsgen config unset model")
@explained
def unset(key: Key, json: Json = False) -> None:
    """Take a setting out of the settings file."""
    preferences.change(key, None)
    tell(Output(json), key)


def whole(key: str, value: str) -> str:
    """A value that names a file or folder, so that it does not depend on where fpsgen is started."""
    if value in _NAMES[key]() or value.startswith("~") or not value:
        return value
    path = expand(Path(value))
    return str(path.absolute()) if key == "output_dir" or path.exists() else value


def tell(out: Output, key: str) -> None:
    """What is in force now."""
    now = preferences.choice(key := preferences.known(key))
    text = f"{key} = {now.value or f'({_DEFAULTS[key]})'}  [{now.where}]"
    out.result(text, {"key": key, "value": now.value, "source": now.source, "path": str(preferences.path())})
