"""`--gpus`: one video on several GPUs, by as many processes of the same command."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from fpsgen.cli.many import Share
from fpsgen.errors import UsageError, option
from fpsgen.launch import follow, launch, ready

if TYPE_CHECKING:
    from fpsgen.ranks import Ranks
    from fpsgen.request import Request
    from fpsgen.target import Target
    from fpsgen.weights.models import Model

_AGAIN = f"with {option('resume')} it goes on from its last step"


def begin(gpus: int | None, device: str | None) -> None:
    """Before all else: start a process for each GPU, and exit as they do; or, in one of them, be silent unless it is
    the first. UsageError where torchrun has started another number of processes, or the device is one GPU alone."""
    if gpus is None or (gpus == 1 and "RANK" not in os.environ):
        return
    if device is not None and ":" in device and gpus > 1:
        told = f"{option('device', device)} is one GPU, and {option('gpus', gpus)} asks for several"
        raise UsageError(told, hint=f"use {option('device', device.partition(':')[0])}")
    if "RANK" not in os.environ:
        command = [sys.executable, "-m", "fpsgen", *sys.argv[1:]]
        if not {"-", "--prompts=-"} & {*sys.argv[1:]}:
            raise typer.Exit(launch(command, gpus, again=_AGAIN))
        with tempfile.NamedTemporaryFile() as given:  # each process reads what was given
            shutil.copyfileobj(sys.stdin.buffer, given)
            given.flush()
            raise typer.Exit(launch(command, gpus, given, again=_AGAIN))
    if (world := Share.of_process().world) != gpus:
        told = f"{option('gpus', gpus)}: torchrun has started {world} processes"
        raise UsageError(told, hint=f"use {option('gpus', world)}, or leave it out to share out videos")
    if not (os.environ.get("MASTER_ADDR") and os.environ.get("MASTER_PORT", "").isdecimal()):
        told = "the environment has RANK, but not where the processes meet: MASTER_ADDR and MASTER_PORT"
        raise UsageError(told, hint="start it by torchrun, or unset RANK and WORLD_SIZE")
    follow()
    if os.environ["RANK"] != "0":
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        for name in ("SIGINT", "SIGHUP"):  # the first one finishes its step, and needs the others for it
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def own_target(target: Target, gpus: int | None) -> Target:
    """With this process's device in it."""
    if gpus is None or gpus == 1:
        return target
    from fpsgen.ranks import own_device

    return replace(target, device=own_device(target.device))


def together(
    requests: Sequence[Request], model: Model, target: Target, gpus: int | None
) -> AbstractContextManager[Ranks]:
    """The processes that render one video, while they do; this one alone without `--gpus`. UsageError where so many
    cannot share a video."""
    from fpsgen.ranks import Ranks, joined
    from fpsgen.request import resolve
    from fpsgen.several_gpus import laid_out

    if gpus is None or gpus == 1:
        return nullcontext(Ranks())
    for request in {one.settings: one for one in requests}.values():  # of which thousands may be alike
        laid_out(resolve(request, model, target), Ranks(0, gpus))
    ready()
    return joined(target.device, _AGAIN)
