"""The one drawer of progress: the events of any command, as a bar on a terminal, as a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fpsgen.cli import signals
from fpsgen.cli.output import Output, hush
from fpsgen.errors import Stopped
from fpsgen.events import Branches, Done, Event, Frames, Notice, Run, Stage, Step, TrainingStep, Work

_AT_ONCE = 0.005  # seconds for one step's work, which no model is quick enough for: it was found, not made
_LONG = 60  # seconds of a run's steps, of which a log says how far they are, also where it has a line for each run


@contextmanager
def drawn(out: Output, log_details: bool = False, stopped: Stopped | None = None, run: str = "run") -> Iterator[Drawer]:
    """A drawer of events, shown until the block ends. log_details: a log gets stages and details, because the work
    takes hours. stopped: what a signal ends the block with, instead of KeyboardInterrupt. run: what one of several
    runs is called."""
    hush()
    columns = (
        TextColumn("{task.description:8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
    )
    bar = _Stoppable(
        *columns,
        console=out.console,
        speed_estimate_period=24 * 3600,  # a step may take minutes, and time left wants two of them
        disable=not out.shows_progress,
        transient=True,
    )
    try:
        with bar:
            yield Drawer(bar, out, log_details, run)
    except KeyboardInterrupt:
        if stopped is None:
            raise
        raise stopped from None


class _Stoppable(Progress):
    """A signal whose exception was lost ends the work at the next step."""

    def update(self, task_id: TaskID, **what: Any) -> None:
        signals.check()
        super().update(task_id, **what)


class Drawer:
    """Draws events. The bar is of a stage's steps; once it is told the whole work, of that."""

    def __init__(self, bar: Progress, out: Output, log_details: bool, noun: str):
        self._bar, self._out, self._log_details, self._noun = bar, out, log_details, noun
        self._run = ""
        self._tenth = 0
        self._work: _Work | None = None
        self._task = bar.add_task("load", total=None, rate="")

    def __call__(self, event: Event) -> None:
        match event:
            case Run(title, number, total) if total > 1 or self._log_details:
                self._run, self._work = f"{self._noun} {number} of {total}: {title}" if total > 1 else title, None
                self._begin(self._run)
            case Stage(name, what) if self._work is None:
                self._begin(", ".join(filter(None, (self._run, f"{name} {what}".strip()))), log=self._log_details)
            case Stage(name):
                self._bar.update(self._task, description=name)
                self._out.milestone(name)
            case Step(done, total, seconds):
                self._bar.update(self._task, completed=done, total=total, rate=f"{seconds:.2f} s/step")
                if not self._run or total * seconds >= _LONG:  # else the log has a line for each run
                    self._tell(done / total, f"step {done} of {total}, {seconds:.2f} s each", (total - done) * seconds)
            case TrainingStep(done, total, seconds, loss, tokens, skipped):
                rate = f"loss {loss:.3g}, {tokens / seconds:,.0f} tokens/s"
                self._bar.update(self._task, completed=done, total=total, rate=rate)
                if skipped:
                    self._out.detail(f"step {done} was skipped: its loss is {loss:.4g}")
                self._tell(done / total, f"step {done} of {total}, {rate}", (total - done) * seconds)
            case Frames(done, total):
                self._bar.update(self._task, completed=done, total=total, rate="frames")
            case Work(total, unit):
                self._work = self._work or _Work(unit)
                self._work.total = total
                self._bar.update(self._task, total=round(total))
            case Done(work) if self._work is not None:
                self._advance(self._work, work)
            case Branches(together):
                self._out.detail(f"guidance branches run {'in one batch' if together else 'one after the other'}")
            case Notice(text, detail):
                in_log = self._log_details and not self._out.shows_progress
                (self._out.note if not detail else self._out.milestone if in_log else self._out.detail)(text)

    def _begin(self, title: str, log: bool = True) -> None:
        self._bar.refresh()  # the last step may be a moment ago
        self._bar.remove_task(self._task)
        self._task, self._tenth = self._bar.add_task(escape(title), total=None, rate=""), 0
        if log:
            self._out.milestone(title)

    def _advance(self, work: _Work, steps: float) -> None:
        if work.advance(steps):  # the bar's speed is of what is made
            self._bar.reset(self._task, total=round(work.total), completed=round(work.done))
        self._bar.update(self._task, completed=round(work.done), rate=work.unit)
        share = work.done / work.total
        if share < 1:
            self._tell(share, f"{10 * int(10 * share)} % done", work.left)

    def _tell(self, share: float, how_far: str, left: float) -> None:
        """A line for a log at every tenth of the way."""
        tenth, before = int(10 * share), self._tenth
        self._tenth = max(tenth, before)
        if before < tenth:
            self._out.milestone(f"{how_far}, about {f'{left / 60:.0f} min' if left >= 90 else f'{left:.0f} s'} left")


class _Work:
    """Work of which a part may be found where an earlier run has kept it, which tells nothing of the time left."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.total = self.done = self._found = 0.0
        self._begun = self._last = time.monotonic()

    def advance(self, steps: float) -> bool:
        """So much more is done; whether it was found."""
        now = time.monotonic()
        found = now - self._last < _AT_ONCE * steps
        self._last = now
        self.done += steps
        self._found += steps if found else 0
        return found

    @property
    def left(self) -> float:
        """Seconds, as fast as what was made so far."""
        return (time.monotonic() - self._begun) * (self.total - self.done) / max(self.done - self._found, 1.0)
