"""The one loop that trains a model, on any number of processes: steps, checkpoints, the log."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from fpsgen.errors import RenderError, Stopped, option
from fpsgen.events import Notice, Stage, TrainingStep, Watch
from fpsgen.presets import Preset, file
from fpsgen.printable import printable
from fpsgen.ranks import Ranks
from fpsgen.settings import Settings
from fpsgen.target import Target
from fpsgen.train import journal, optimizers, order, state
from fpsgen.train.data import Data
from fpsgen.train.fsdp import gathered, local, shard
from fpsgen.train.objective import Objective, VelocityModel
from fpsgen.train.settings import TrainSettings
from fpsgen.train.state import Best
from fpsgen.train.student import Student
from fpsgen.wan.config import WanConfig
from fpsgen.wan.plan import StepPlan
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights.load import load_transformer
from fpsgen.weights.models import Model

LOG = "log.jsonl"  # in the run's folder: a line for each step
_REMEMBERED = 50  # losses, whose median a spike is compared with
_ENOUGH = 10  # of them, to know what is usual
_NOTHING = 1e-5  # of a loss, where velocities are of order 1: what is below it, as in dense stages, is rounding
_MOST_SKIPPED = 20  # in a row
_PATIENCE = 3  # signals: the third one is not kept waiting


@dataclass(frozen=True)
class TrainJob:
    """What is trained, on what, and where the run is kept. video: whose steps and shift decide on noise levels.
    prompts: of the held-out clips, which may be none.

    check: renders the held-out clips by the averaged weights after a step, and returns their mean latent error; every
    process calls it.
    """

    model: Model
    data: Data
    preset: Preset
    video: Settings
    settings: TrainSettings
    target: Target
    folder: Path
    prompts: tuple[str, ...] = ()
    check: Callable[[VelocityModel, int], float] | None = None


@dataclass
class Guard:
    """Which steps are skipped: those that are not finite, and those with a loss far above what is usual in a stage of
    annealing. skipped: how many there were; in_row: of those, the last ones."""

    skipped: int = 0
    in_row: int = 0
    stage: int = -1
    recent: list[float] = field(default_factory=list)

    def refuses(self, loss: float, norm: float, stage: int, spike: float) -> bool:
        """Whether the step must be skipped; RenderError where it is one too many."""
        if stage != self.stage:
            self.stage, self.recent = stage, []
        usual = max(median(self.recent), _NOTHING) if len(self.recent) >= _ENOUGH else math.inf
        if math.isfinite(loss) and math.isfinite(norm) and loss <= spike * usual:
            self.in_row, self.recent = 0, [*self.recent, loss][-_REMEMBERED:]
            return False
        self.skipped, self.in_row = self.skipped + 1, self.in_row + 1
        if self.in_row > _MOST_SKIPPED:
            told = f"{self.in_row} steps in a row were skipped: their losses or gradients are not finite, or are spikes"
            raise RenderError(told, hint=f"try a smaller {option('lr')}, or a larger {option('spike', 2 * spike)}")
        return True


def rate(settings: TrainSettings, step: int) -> float:
    """The factor of the learning rate at a step: it rises, holds and, with "cosine", falls to the floor."""
    warm = min(1.0, (step + 1) / max(settings.warm_up_steps, 1))
    if settings.decay == "constant":
        return warm
    falling = max(0.0, step / settings.steps - settings.hold) / max(1 - settings.hold, 1e-9)
    return warm * (settings.floor + (1 - settings.floor) * (0.5 + 0.5 * math.cos(math.pi * falling)))


def fresh(config: WanConfig, seed: int) -> WanTransformer:
    """A transformer that has learned nothing: as the original's `init_weights`, in the main."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = WanTransformer(config)
        for module in transformer.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(transformer.head.head.weight)
    return transformer


class Training:
    """A run between two steps: at its beginning, or where its last checkpoint left it.

    model: what learns; step: how many are behind it; average: of what is trained, by name, none without EMA; best: of
    the checks.
    """

    def __init__(self, job: TrainJob, watch: Watch, group: Ranks):
        self.job, self.group, self.device = job, group, job.target.device
        self.folder, settings, data = job.folder / "checkpoints", job.settings, job.data
        watch(Stage("load", "transformer"))
        transformer = self._begin()
        tiles = job.model.tiles(data.index.latent_shape, job.preset.tile)
        self.tokens = settings.batch * tiles.tokens
        self.objective = Objective(settings, job.preset, job.video, tiles, job.model.config, data, self.device)
        self._teacher = None
        if settings.distil and not settings.lora and data.sample(0).taught is None:
            self._teacher = VelocityModel(copy.deepcopy(transformer), job.target.dtype)
            shard(self._teacher, self.device, group)
        self.student = Student(transformer, settings.lora, settings.seed)
        self._on = _identities(job, self.student.base)
        self.model = VelocityModel(transformer, job.target.dtype, settings.recompute)
        shard(self.model, self.device, group)
        self.named = self.student.parameters_to_train()
        self.average = {name: p.detach().clone() for name, p in self.named.items()} if settings.ema else {}
        self.optimizers, self.guard = optimizers.of(settings, self.named), Guard()
        self.step = 0
        self.best: Best | None = None
        if path := state.latest(self.folder):
            self._resume(path)
            watch(Notice(f"the run goes on after step {self.step}"))

    def _begin(self) -> WanTransformer:
        """The transformer before the first step; what several processes share out goes to the device block by block."""
        job, place = self.job, self.device if self.group.world == 1 else torch.device("cpu")
        if job.settings.from_scratch:
            return fresh(job.model.config, job.settings.seed).to(place)
        dtype = job.target.dtype if job.settings.lora else torch.float32
        return load_transformer(job.model.checkpoint, place, dtype, trains=True)

    def learn(self) -> dict[str, Any]:
        """One step; what the log says of it."""
        begin, settings, group, step = time.perf_counter(), self.job.settings, self.group, self.step
        numbers = order.batch_of(len(self.job.data), settings.batch, settings.seed, step)
        places = range(group.rank, settings.batch, group.world)
        passes = self.objective.passes(self.objective.example(step, place, numbers[place]) for place in places)
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        for number in range(group.most(len(passes), self.device)):
            # FSDP needs as many passes in every process: one that has no more runs one that counts nothing.
            counts = number < len(passes)
            some = passes[number] if counts else [self.objective.example(step, 0, numbers[0])]
            losses = self.objective.losses(some, self.model, self._teach)
            (losses[0] * counts * group.world / settings.batch).backward()  # FSDP takes the mean over the processes
            sums += counts * losses.detach()
        loss, distil, flow = (group.sums(sums) / settings.batch).tolist()
        norm = float(gathered(nn.utils.clip_grad_norm_(self.named.values(), settings.clip)))
        factor = rate(settings, step)
        skipped = self.guard.refuses(loss, norm, self.objective.stage(step), settings.spike)
        if skipped:
            self.model.zero_grad(set_to_none=True)
        else:
            self.optimizers.step(factor)
            self._update_average()
        self.step += 1
        seconds = time.perf_counter() - begin
        return {
            "step": self.step,
            "loss": loss,
            "distil": distil,
            "flow": flow,
            "norm": norm,
            "lr": settings.learning_rate * factor,
            "skipped": skipped,
            "seconds": round(seconds, 4),
            "tokens_per_second": round(self.tokens / seconds, 1),
        }

    @torch.no_grad()
    def _teach(self, latents: Tensor, timestep: Tensor, text: Tensor, plan: StepPlan) -> Tensor:
        if self._teacher is not None:
            return self._teacher(latents, timestep, text, plan)
        with self.student.teaching():
            return self.model(latents, timestep, text, plan)

    def _update_average(self) -> None:
        if self.average:
            decay = min(self.job.settings.ema, (self.step + 1) / (self.step + 10))  # short at first
            averages, weights = ([local(t) for t in own.values()] for own in (self.average, self.named))
            torch._foreach_lerp_(averages, weights, 1 - decay)

    def _swap(self) -> None:
        """The averaged weights take the place of the others, or back."""
        for name, average in self.average.items():
            mine, other = local(self.named[name]), local(average)
            held = mine.clone()
            mine.copy_(other)
            other.copy_(held)

    def result(self) -> Iterator[tuple[str, Tensor]]:
        """What was learned, by name: each averaged parameter whole, on the CPU. Every process must ask for all."""
        for name, parameter in (self.average or self.named).items():
            yield name, gathered(parameter).cpu()

    def check(self) -> bool:
        """Render the held-out clips; whether they are the best yet."""
        assert self.job.check is not None
        self._swap()
        try:
            error = self.job.check(self.model, self.step)
        finally:
            self._swap()
        # The first process's word: all must decide alike.
        mine = torch.tensor(error if self.group.is_first else 0.0, dtype=torch.float64, device=self.device)
        error = float(self.group.sums(mine))
        if self.best is not None and error >= self.best.error:
            return False
        self.best = Best(self.step, error)
        return True

    def save(self) -> None:
        """A checkpoint of this step, and no more of the others than are wanted."""
        about: dict[str, Any] = {"settings": self.job.settings.as_dict(), "on": self._on, "guard": asdict(self.guard)}
        about |= {"best": self.best, "updates": self.optimizers.updates}
        state.save(self.folder, self.step, self._tensors(), about, self.group)
        if self.group.is_first:
            state.prune(self.folder, self.job.settings.keep, self.best)

    def _tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {f"weights/{name}": p for name, p in self.named.items()}
        found |= {f"average/{name}": own for name, own in self.average.items()}
        return found | dict(self.optimizers.tensors(self.named))

    def _resume(self, path: Path) -> None:
        told = state.about(path)
        state.check_same(told, {"settings": self.job.settings.as_dict(), "on": self._on})
        self.optimizers.updates = told["updates"]
        state.load(path, self._tensors())
        self.step, self.guard = told["step"], Guard(**told["guard"])
        self.best = told["best"] and Best(*told["best"])


def _identities(job: TrainJob, weights: str) -> dict[str, str]:
    """What a run must go on with, by what sentences call it."""
    on = {
        "model": weights,
        "training data": job.data.index.as_dict(),
        "preset": file.as_dict(replace(job.preset, measured=None)),
        "video": asdict(job.video),
        "precision": job.target.dtype_name,
        "set of held-out clips": job.prompts,
    }
    return {name: hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16] for name, own in on.items()}


def read_log(folder: Path) -> list[dict[str, Any]]:
    """What the log in a run's folder says of each step."""
    return journal.read(folder / LOG, ("step", "skipped", "seconds"))


def train(job: TrainJob, watch: Watch, group: Ranks | None = None) -> Training:
    """Learn until all steps are done, and return the run. Stopped where a signal came: its step is finished and saved.

    UsageError where the folder has a run that this one cannot go on from, or cannot be written; RenderError where the
    model learns nothing any more.
    """
    group = group or Ranks()
    run, settings = Training(job, watch, group), job.settings
    watch(Stage("train"))
    stop, log = False, job.folder / LOG
    if group.is_first:  # without what a run that was killed wrote of later steps
        journal.write(log, {line["step"]: line for line in read_log(job.folder) if line["step"] <= run.step}.values())
    with _kept_waiting() as late:
        while run.step < settings.steps and not stop:
            line = run.learn()
            if group.is_first:
                journal.add(log, line)
            step, loss, skipped = run.step, line["loss"], line["skipped"]
            watch(TrainingStep(step, settings.steps, line["seconds"], loss, run.tokens, skipped))
            is_best = False
            if job.check is not None and step % settings.check_every == 0:
                late.patience = 1 if group.world == 1 else _PATIENCE  # a rendering leaves nothing half done
                with contextlib.suppress(KeyboardInterrupt):
                    is_best = run.check()
                late.patience = _PATIENCE
            stop = bool(group.most(len(late.came), run.device))
            if stop or is_best or step % settings.save_every == 0 or step == settings.steps:
                run.save()
    if stop:
        with contextlib.suppress(KeyboardInterrupt):
            for deliver in late.came[:1]:
                deliver()  # whose exit code the command line knows then
        told = f"stopped after step {run.step} of {settings.steps}, which is saved in {printable(run.folder)}"
        raise Stopped(told, hint=f"with {option('resume')} it goes on from there")
    return run


@dataclass
class _Late:
    """came: what each signal that came would have called; patience: which of them is called at once."""

    came: list[Callable[[], Any]] = field(default_factory=list)
    patience: int = _PATIENCE


@contextlib.contextmanager
def _kept_waiting() -> Iterator[_Late]:
    """Inside, signals that would stop the program wait, so that no step is left half done."""
    late = _Late()
    before: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def keep(number: int, frame: FrameType | None) -> None:
        late.came.append(partial(before[number], number, frame))
        if len(late.came) >= late.patience:
            late.came[-1]()

    if threading.current_thread() is threading.main_thread():  # no other may set handlers, nor runs them
        for number in (getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)):
            handler = signal.getsignal(number)
            if callable(handler):
                before[number] = handler
                signal.signal(number, keep)
    try:
        yield late
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
