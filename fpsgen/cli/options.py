"""Options and arguments, which the table `options.toml` describes; what commands make of their values."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import re
import tomllib
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_origin

import typer

from fpsgen import assets
from fpsgen.cli import complete
from fpsgen.cli.help import MACHINE, MEASURING, OUTPUT, SAMPLING, VIDEO, option
from fpsgen.errors import UsageError
from fpsgen.printable import typed
from fpsgen.settings import DEFAULTS

if TYPE_CHECKING:
    import torch

    from fpsgen.target import Target


class Dtype(StrEnum):
    BF16 = "bf16"
    FP32 = "fp32"


class SolverName(StrEnum):
    UNIPC = "unipc"
    DPM = "dpm++"
    EULER = "euler"


class SigmasName(StrEnum):
    ORIGINAL = "original"
    DIFFUSERS = "diffusers"


@functools.cache
def _table() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


INSTEAD: dict[str, str] = _table()["instead"]
OTHER_NAMES: dict[str, list[str]] = {
    name: entry["also"]
    for title, section in _table().items()
    if title != "instead"
    for name, entry in section.items()
    if "also" in entry
}


def described(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command, with the table's options and arguments for all parameters that have none yet."""
    scopes = ["shared", command.__module__.rpartition(".")[2], command.__name__]
    signature = inspect.signature(command, eval_str=True)
    parameters = []
    for one in signature.parameters.values():
        known = get_origin(one.annotation) is Annotated or one.annotation is typer.Context
        info = None if known else _parameter(one.name, *scopes)
        parameters.append(one if known else one.replace(annotation=Annotated[one.annotation, info]))
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


def _parameter(name: str, *scopes: str) -> Any:
    """An option or argument as typer has it."""
    shared, module, function = scopes
    section = _table().get(module, {})
    own = section.get(function, {}).get(name, {}) or section.get(name, {})
    entry = own if "argument" in own else _table()[shared].get(name, {}) | own
    shown = entry["default"].format_map(_Defaults()) if "default" in entry else True
    offers = getattr(complete, entry["offers"]) if "offers" in entry else None
    common: dict[str, Any] = {"help": entry["text"], "show_default": shown, "autocompletion": offers}
    if "argument" in entry:
        return typer.Argument(metavar=entry["argument"], **common)
    names = [*([entry["short"]] if "short" in entry else []), entry.get("name", f"--{name.replace('_', '-')}")]
    common |= {key: entry[key] for key in ("min", "max") if key in entry}
    return typer.Option(*names, metavar=entry.get("value"), rich_help_panel=entry.get("group"), **common)


class _Defaults(dict[str, str]):
    """Defaults that the models have, in words; looked up where a help needs them."""

    def __missing__(self, key: str) -> str:
        if key == "wan_sizes":
            return ", ".join(f"{own.width}x{own.height} for {name}" for name, own in DEFAULTS.items())
        return per_model(key)


GridName = SigmasName


def per_model(setting: str) -> str:
    """A default for the help screen, as the tables have it: "4 for pocket, 6 for 1.3b, 5 for 14b"."""
    values = {}
    with contextlib.suppress(OSError, ValueError, KeyError):  # an installation that is damaged is told when it is used
        card = json.loads((assets.folder("pocket") / "pocket.json").read_text(encoding="utf-8"))
        values["pocket"] = f"{card[setting]:g}"
    values |= {name: f"{getattr(defaults, setting):g}" for name, defaults in DEFAULTS.items()}
    if values["1.3b"] == values["14b"]:
        values["Wan2.1"] = values.pop("14b")
        del values["1.3b"]
    return ", ".join(f"{value} for {name}" for name, value in values.items())


ModelName = Annotated[
    str | None,
    option(
        "MODEL",
        "The model: pocket, 1.3b, 14b, a folder, a .safetensors file or a hub id.",
        VIDEO,
        shown="14b above 480p, else 1.3b; pocket if there is no GPU",
        offers=complete.models,
    ),
]


def size(pocket: str) -> Any:
    """The option --res. pocket: the size of the pocket model's videos where it is left out."""
    shown = ", ".join(
        [f"{pocket} for pocket", *(f"{own.width}x{own.height} for {name}" for name, own in DEFAULTS.items())]
    )
    return option("SIZE", "Width and height: 480p, 720p or WIDTHxHEIGHT.", VIDEO, shown=shown, offers=complete.sizes)


Resolution = Annotated[str | None, size("160x96")]
Frames = Annotated[int | None, option("N", "How many frames: 1, 5, 9, … (4n + 1).", VIDEO, shown=per_model("frames"))]
Steps = Annotated[int | None, option("N", "How many denoising steps.", SAMPLING, shown=per_model("steps"))]
Guidance = Annotated[
    float | None,
    option(
        "X",
        "How closely the video follows the prompt (classifier-free guidance scale); 1 switches guidance off and "
        "halves the time.",
        SAMPLING,
        shown=per_model("guidance"),
    ),
]
Shift = Annotated[
    float | None,
    option(
        "X",
        "How many of the steps are spent at high noise (flow shift): above 1, more of them.",
        SAMPLING,
        shown=per_model("shift"),
    ),
]
Solver = Annotated[SolverName, option("NAME", "The solver: unipc, dpm++ or euler.", SAMPLING)]
Grid = Annotated[
    SigmasName, option("NAME", "Whose noise levels the steps are at: original (Wan2.1's) or diffusers.", SAMPLING)
]
ClipSeed = Annotated[
    int, option("N", "The seed of the first clip; the next clips use N + 1, N + 2 and so on.", SAMPLING)
]
DeviceName = Annotated[
    str | None,
    option(
        "DEVICE", "The device: cpu, cuda or cuda:N.", MACHINE, shown="cuda if there is a GPU", offers=complete.devices
    ),
]
Precision = Annotated[
    Dtype | None,
    option(
        "TYPE",
        "The precision of matrix products: bf16 or fp32.",
        MACHINE,
        shown="bf16; on a CPU fp32, but for the text encoder",
    ),
]
Measured = Annotated[
    str,
    option(
        "--preset PRESET",
        "The preset to measure: quality, balanced, fast, another that `fpsgen presets` lists, or a .toml file.",
        MEASURING,
        offers=complete.presets,
    ),
]
Report = Annotated[Path | None, option("FILE", "The report, an .html file.", OUTPUT, shown="beside the record")]
NoReport = Annotated[bool, option("--no-report", "Write no report.", OUTPUT)]
Json = Annotated[bool, option("--json", "Print the result as one JSON object.", OUTPUT)]
Verbose = Annotated[bool, option("-v, --verbose", "Say what was chosen, and why.", OUTPUT)]


def check_device(name: str | None) -> None:
    """UsageError where a device is none, without asking torch, which takes seconds to load."""
    if name is not None and not re.fullmatch(r"cpu|cuda(:(\d|[1-9]\d))?", name):
        known = name.partition(":")[0] in ("cpu", "cuda")
        told = "there is one CPU, without a number" if name.startswith("cpu:") else "that is no GPU's number"
        told = f"--device {typed(name)}: {told if known else 'fpsgen runs on cpu and cuda'}"
        raise UsageError(told, hint="use cpu, cuda or cuda:N, the first GPU being cuda:0")


def parse_device(name: str | None) -> torch.device:
    """The device called `name`, or the best one here; UsageError where it cannot be had."""
    check_device(name)
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            why = "this torch was built without CUDA" if torch.version.cuda is None else "torch sees no CUDA GPU"
            raise UsageError(f"--device {name}: {why}", hint="leave --device out, or use --device cpu")
        if (device.index or 0) >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise UsageError(f"--device {name}: the last GPU here is cuda:{count - 1}", hint="try --device cuda:0")
        if ":" not in name:  # tensors have one, and caches are keyed by it
            device = torch.device("cuda", torch.cuda.current_device())
    return device


def check_report(report: Path | None, no_report: bool) -> None:
    """UsageError where a report is asked for and forbidden."""
    if no_report and report is not None:
        raise UsageError("--report and --no-report contradict each other", hint="leave one out")


def alone(context: typer.Context, json: bool) -> bool:
    """Whether a group of commands is run without one; UsageError where --json stands before one."""
    command = context.invoked_subcommand
    if command is not None and json:
        raise UsageError("--json stands before the command", hint=f"{context.command_path} {command} … --json")
    return command is None


def several(option: str, given: Iterable[str] | None) -> list[str]:
    """The values of an option that is there again and again, or holds commas; each once."""
    found = [value.strip() for text in given or () for value in text.split(",")]
    if "" in found:
        raise UsageError(f"{option} has an empty value", hint="put one comma between two values")
    return list(dict.fromkeys(found))


def expand(path: Path) -> Path:
    """A path with the home folder it means."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise UsageError(f"{path}: there is no such user", hint="choose another place") from None


def choose_text_dtype(dtype: Dtype | None) -> torch.dtype:
    """bf16, as the original runs its text encoder, unless float32 was asked for in so many words."""
    import torch

    return torch.float32 if dtype is Dtype.FP32 else torch.bfloat16


def choose_dtype(dtype: Dtype | None, device: torch.device) -> torch.dtype:
    """What was asked for, or bf16 on a GPU and fp32 on a CPU, where bf16 is seldom faster."""
    import torch

    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {Dtype.BF16: torch.bfloat16, Dtype.FP32: torch.float32}[dtype]


def parse_target(device: str | None, dtype: Dtype | None) -> Target:
    """Device and precisions together; UsageError where the device cannot be had."""
    from fpsgen.target import Target

    chosen = parse_device(device)
    return Target(chosen, choose_dtype(dtype, chosen), choose_text_dtype(dtype))
