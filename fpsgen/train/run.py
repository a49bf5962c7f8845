"""From a model, data and a preset to a trained model: the loop, what it does to held-out clips, the result and its
record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fpsgen import __version__, files, machine
from fpsgen.errors import option
from fpsgen.events import Notice, Stage, Watch
from fpsgen.metrics import Pair
from fpsgen.presets import Measured, Preset, file
from fpsgen.presets.account import account
from fpsgen.ranks import Ranks, joined, own_device
from fpsgen.train import journal, loop
from fpsgen.train.held_out import HeldOut
from fpsgen.train.loop import Training, TrainJob
from fpsgen.train.objective import VelocityModel
from fpsgen.train.record import Check, LossPoint, TrainRecord, sampled
from fpsgen.values import from_dict
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights import lora, models
from fpsgen.weights.convert import write_model
from fpsgen.weights.load import load_transformer
from fpsgen.weights.models import Model

_CHECKS = "checks.jsonl"
_AGAIN = f"with {option('resume')} it goes on from its last checkpoint"


@dataclass(frozen=True)
class TrainResult:
    """record, pairs: what `report.write` takes. weights: the model's folder or the LoRA's file; preset: its file, None
    where it is dense and exact."""

    record: TrainRecord
    pairs: list[Pair]
    weights: Path
    preset: Path | None


def run(job: TrainJob, command: list[str], watch: Watch) -> TrainResult | None:
    """Train, write the result to the job's folder, and look at it. None in all processes but the first.

    Errors as `loop.train`; RenderError where the result cannot be written: the last checkpoint is kept.
    """
    prompts = job.prompts
    job = replace(job, target=replace(job.target, device=own_device(job.target.device)))
    with joined(job.target.device, _AGAIN) as group:
        held = None
        if prompts:
            held = HeldOut(job.model, job.preset, job.video, prompts, job.settings.seed, job.target, watch)
            job = replace(job, check=_checker(held, job.folder, group, watch))
        done = loop.train(job, watch, group)
        learned = {name: tensor for name, tensor in done.result() if group.is_first}
        watch(Stage("write"))
        if not group.is_first:
            return None
        result = _written(job, done, learned)
        base, skipped, tokens, steps = done.student.base, done.guard.skipped, done.tokens, done.step
    del done, learned
    machine.release()
    trained = load_transformer(result.checkpoint, job.target.device, job.target.dtype)
    checks = _kept_checks(job, held)
    if held is not None:
        checks.append(held.check(trained, job.settings.steps))
    preset = _preset(job, checks, trained.fingerprint(), len(prompts))
    place = None
    if not preset.is_exact:
        place = job.folder / f"{files.safe_name(job.preset.name.removesuffix('.toml'))}.toml"
        with files.refused(place, f"make room there; {option('resume')} writes it again"):
            files.write_text(place, file.text(preset))
    lines, keys = loop.read_log(job.folder), [own.name for own in fields(LossPoint)]
    points = [
        LossPoint(*(line[key] for key in keys))
        for line in journal.read(job.folder / loop.LOG, keys)
        if not line["skipped"]
    ]
    weights = result.checkpoint.loras[0].file if job.settings.lora else result.folder
    record = TrainRecord(
        **machine.provenance(command),
        model=job.model.full_name,
        weights=base,
        trained=trained.fingerprint(),
        device=machine.device_name(job.target.device),
        dtype=job.target.dtype_name,
        processes=group.world,
        preset=job.preset.name,
        text=file.text(preset),
        settings=job.settings.as_dict(),
        data=str(job.data.folder),
        samples=len(job.data),
        video=asdict(job.video),
        prompts=list(prompts),
        losses=sampled(points),
        checks=checks,
        skipped=skipped,
        steps=steps,
        tokens=tokens * steps,
        seconds=sum(line["seconds"] for line in lines),
        result=str(weights),
    )
    return TrainResult(record, held.pairs() if held is not None else [], weights, place)


def _checker(held: HeldOut, folder: Path, group: Ranks, watch: Watch) -> Callable[[VelocityModel, int], float]:
    """What the loop calls after so many steps: the mean error of the held-out clips, which is also written down."""

    def check(model: VelocityModel, step: int) -> float:
        found = held.check(cast("WanTransformer", model), step)  # which it is to a `Denoiser`
        if group.is_first:
            journal.write(folder / _CHECKS, [*_read_checks(folder), asdict(found)])
        told = f"step {step}: the held-out clips have an error of {found.error:.3g} and a PSNR of {found.psnr:.1f} dB"
        watch(Notice(f"{told} (before training {held.before.error:.3g} and {held.before.psnr:.1f} dB)", detail=True))
        watch(Stage("train"))
        return found.error

    return check


def _written(job: TrainJob, done: Training, learned: Mapping[str, Tensor]) -> Model:
    """The result on disk, as the model that `generate` makes of it."""
    trained_for = {} if job.preset.is_exact else {"trained_for": job.preset.name}
    if not job.settings.lora:
        write_model(job.model, learned, job.folder / "model", **trained_for)
        return models.open_folder(job.folder / "model", "model")
    path = job.folder / "lora.safetensors"
    lora.write(path, learned, base=done.student.base, **trained_for)
    loras = (*job.model.checkpoint.loras, lora.find(str(path)))
    return replace(job.model, checkpoint=replace(job.model.checkpoint, loras=loras))


def _kept_checks(job: TrainJob, held: HeldOut | None) -> list[Check]:
    """The check before the first step, and those on the way, of all parts of the run."""
    found = {} if held is None else {0: held.before}
    for line in _read_checks(job.folder) if held else ():
        check = from_dict(Check, {"error_ci95": None, "psnr_ci95": None} | line)
        found[check.step] = check  # of a step that was done twice the last time counts
    return [found[step] for step in sorted(found) if step <= job.settings.steps]


def _read_checks(folder: Path) -> list[dict[str, Any]]:
    return journal.read(folder / _CHECKS, ("step", "error", "psnr", "psnr_worst"))


def _preset(job: TrainJob, checks: Sequence[Check], weights: str, clips: int) -> Preset:
    """The preset, with what its videos are like on the trained weights."""
    own, measured = job.settings, None
    if checks:
        last, total = checks[-1], account(job.preset, job.model, job.video).total
        where = {key: getattr(job.video, key) for key in ("size", "frames", "steps", "shift", "guidance")}
        measured = Measured.rounded(
            **{key: value for key, value in asdict(last).items() if key != "step"}, **where, clips=clips,
            weights=weights, density=total.density, cost=total.cost, device=machine.device_name(job.target.device),
            fpsgen=__version__, torch=torch.__version__,
        )  # fmt: skip
    distillation = "distillation of the guided velocity" if own.guided else "velocity distillation"
    losses = [name for name, weight in ((distillation, own.distil), ("flow matching", own.flow)) if weight]
    what = f"a LoRA of rank {own.lora}" if own.lora else "all weights"
    about = f"for the weights beside it: {what}, trained for {own.steps} steps by {' and '.join(losses)}"
    return replace(job.preset, model=job.model.family, about=about, measured=measured)
