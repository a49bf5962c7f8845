"""Option types that commands share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fpsgen.errors import UsageError
from fpsgen.printable import printable
from fpsgen.wan import sizes

if TYPE_CHECKING:
    import torch


class Dtype(StrEnum):
    BF16 = "bf16"
    FP32 = "fp32"


class SolverName(StrEnum):
    UNIPC = "unipc"
    DPM = "dpm++"
    EULER = "euler"


class GridName(StrEnum):
    ORIGINAL = "original"
    DIFFUSERS = "diffusers"


def per_model(setting: str) -> str:
    """A default for the help screen, as the table has it."""
    values = {name: f"{getattr(defaults, setting):g}" for name, defaults in sizes.DEFAULTS.items()}
    told = values["14b"] if values["1.3b"] == values["14b"] else f"{values['14b']}; 1.3b {values['1.3b']}"
    return f"{told}; pocket its own"


ModelName = Annotated[
    str | None,
    typer.Option(
        help="pocket, 1.3b, 14b, a folder, a .safetensors file or a hub id.", show_default="by size and what is on disk"
    ),
]
Resolution = Annotated[str | None, typer.Option(help="480p, 720p or WIDTHxHEIGHT.", show_default="the model's own")]
Frames = Annotated[int | None, typer.Option(help="Frames, 4n + 1.", show_default=per_model("frames"))]
Steps = Annotated[int | None, typer.Option(help="Denoising steps.", show_default=per_model("steps"))]
Guidance = Annotated[
    float | None, typer.Option(help="Guidance scale; 1 switches it off.", show_default=per_model("guidance"))
]
Shift = Annotated[
    float | None, typer.Option(help="Above 1, more steps at high noise.", show_default=per_model("shift"))
]
DeviceName = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.", show_default="cuda if there")]
Precision = Annotated[
    Dtype | None, typer.Option(help="Precision of matrix products.", show_default="bf16; DiT on CPU fp32")
]
Report = Annotated[Path | None, typer.Option(help="The report, FILE.html.", show_default="beside the record")]
NoReport = Annotated[bool, typer.Option("--no-report", help="Write no report.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say what was chosen, and why.")]


def check_device(name: str | None) -> None:
    """UsageError where a device is none, without asking torch, which takes seconds to load."""
    if name is not None and not re.fullmatch(r"cpu|cuda(:(\d|[1-9]\d))?", name):
        known = name.partition(":")[0] in ("cpu", "cuda")
        told = "there is one CPU, without a number" if name.startswith("cpu:") else "that is no GPU's number"
        told = f"--device {printable(name)}: {told if known else 'fpsgen runs on cpu and cuda'}"
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
            raise UsageError(f"--device {name}: GPUs here are counted 0 to {count - 1}", hint="try --device cuda:0")
        if ":" not in name:  # tensors have one, and caches are keyed by it
            device = torch.device("cuda", torch.cuda.current_device())
    return device


def check_report(report: Path | None, no_report: bool) -> None:
    """UsageError where a report is asked for and forbidden."""
    if no_report and report is not None:
        raise UsageError("--report and --no-report contradict each other", hint="leave one out")


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
