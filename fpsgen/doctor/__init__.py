"""What this machine has and what it can run: the checks behind `fpsgen doctor`, and the verdict over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fpsgen.doctor import checks, trials
from fpsgen.doctor.checks import REQUIRED, Gpus, KernelCache, ModelCache, Versions, sentence
from fpsgen.doctor.trials import TrialCompile, TrialLaunch
from fpsgen.errors import option

T = TypeVar("T")

# By the names that JSON has for what each finds.
CHECKS: dict[str, Callable[[], Any]] = {
    "versions": checks.versions,
    "machine": checks.memory,
    "gpus": checks.gpus,
    "fits": checks.fits,
    "kernel_cache": checks.kernel_cache,
    "work_cache": checks.work_cache,
    "model_cache": checks.model_cache,
    "attention": checks.backends,
    "linear": checks.linear,
    "compile": trials.trial_compile,
    "launch": trials.trial_launch,
}


@dataclass(frozen=True)
class Failed:
    """What stands in the place of what a check finds, where the check itself failed."""

    fault: str


@dataclass(frozen=True)
class Verdict:
    """problems: what is broken, a sentence each; warnings: what is only worse; can: what runs; next: what to type."""

    works: bool
    problems: list[str]
    warnings: list[str]
    can: str
    next: str


def examine(strict: bool = False) -> dict[str, Any]:
    """What each check finds, by its name. One that fails ends no other; with `strict` its exception is raised."""
    report: dict[str, Any] = {}
    for name, check in CHECKS.items():
        try:
            report[name] = check()
        except Exception as fault:
            if strict:
                raise
            report[name] = Failed(sentence(fault))
    return report


def verdict(report: dict[str, Any]) -> Verdict:
    def finding(default: T) -> T:
        """What the check of this kind found, the default where it failed."""
        return next((each for each in report.values() if isinstance(each, type(default))), default)

    versions, kernels, models = finding(Versions()), finding(KernelCache()), finding(ModelCache())
    compiled, launched = finding(TrialCompile()), finding(TrialLaunch())
    problems = [f"{name} is not installed" for name in REQUIRED if name in versions.absent]
    problems += [f"{name} cannot be used: {versions.faults[name]}" for name in REQUIRED if name in versions.faults]
    if not problems:  # else these may follow from it
        failed = ((name, each.fault) for name, each in report.items() if isinstance(each, Failed))
        problems += [f"the check of {name} failed: {fault}" for name, fault in failed]
        problems += [] if models.pocket else ["the pocket model inside the package is damaged"]
    problems += [f"kernels do not compile: {compiled.why}"] if compiled.state == "failed" else []
    problems += [f"the Hopper kernels fail on this GPU: {launched.why}"] if launched.state == "failed" else []
    warnings = []
    if kernels.why_not:
        warnings = [f"{kernels.folder} cannot be used ({kernels.why_not}): every command compiles its kernels again"]
    can, following = ability(versions, finding(Gpus()), models, launched)
    if problems:
        following = f"fpsgen {option('debug')} doctor, and report what it says"
        if compiled.state == "failed":
            following = "fpsgen kernels build, which prints the compiler's log"
        following = next((versions.absent[name] for name in REQUIRED if name in versions.absent), following)
    return Verdict(not problems, problems, warnings, can, following)


def ability(versions: Versions, gpus: Gpus, models: ModelCache, launched: TrialLaunch) -> tuple[str, str]:
    """What this machine can run, and the next command to type if nothing is broken."""
    following = 'fpsgen generate "a cat surfing"'
    if not gpus.devices:
        return f"No CUDA GPU ({gpus.why_none}): fpsgen renders with the pocket model, on the CPU.", following
    gpu, absent = gpus.devices[0], versions.absent
    if locked := [model.name for model in models.models if model.state == "unreadable"]:
        following = f"fpsgen models check {locked[0]}"  # which says what cannot be read; it lies there
    elif not any(model.whole for model in models.models):
        following = "fpsgen models pull 1.3b"
    if launched.state == "ok":
        return f"{gpu.name}: Hopper kernels ready.", following
    if gpu.capability == "9.0" and (command := absent.get("cupy") or absent.get("nvrtc")):
        return f"{gpu.name}: Wan's models run. The hopper backend would run too, but {launched.why}.", command
    return f"{gpu.name}: Wan's models run, but without the hopper backend: {launched.why}.", following
