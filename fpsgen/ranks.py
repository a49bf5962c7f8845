"""The processes of a run that torchrun or `launch` started, and what they do together: by torch.distributed, nothing
else.

One process needs none of it, and imports none of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from fpsgen.errors import FpsgenError, Stopped, UsageError

if TYPE_CHECKING:
    from torch.distributed import Store

_CPU = torch.device("cpu")
_PATIENCE = timedelta(minutes=10)  # with a process that is there and says nothing; one that died is noticed at once
_FAULT = "fault"  # where a process leaves what ended it, for the first to say
_SAID = "said"  # where the first leaves that it has said why the run ends
_LOST = "a process of this run was ended, and so the others end, too"


@dataclass(frozen=True)
class Ranks:
    """This process, `rank` of `world`. device: of what they exchange; store: where they leave words for each other."""

    rank: int = 0
    world: int = 1
    device: torch.device = _CPU
    store: Store | None = field(default=None, repr=False, compare=False)

    @property
    def is_first(self) -> bool:
        """Whether this process reports and writes."""
        return self.rank == 0

    def sums(self, values: Tensor) -> Tensor:
        """The sums over all processes; `values` is changed."""
        return self._together(values, "SUM")

    def most(self, value: int, device: torch.device) -> int:
        """The largest of all processes."""
        return value if self.world == 1 else int(self._together(torch.tensor(value, device=device), "MAX"))

    def told(self, key: str, value: Any) -> Any:
        """What the first process has as `value`, plain JSON, for all; a key is used once."""
        if self.store is None:
            return value
        if self.is_first:
            self.store.set(f"told/{key}", json.dumps(value))
        return json.loads(self.store.get(f"told/{key}"))

    def handed(self, key: str, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The first process's tensors, for all, on the CPU, because texts of thousands of videos would fill a GPU; what
        others pass is not looked at. key: as `told`."""
        if self.world == 1:
            return [*tensors]
        from torch import distributed

        forms = [None if each is None else ([*each.shape], str(each.dtype)[len("torch.") :]) for each in tensors]
        found: list[Tensor | None] = []
        for number, form in enumerate(self.told(key, forms)):
            if form is None:
                found.append(None)
                continue
            own = tensors[number] if self.is_first else torch.empty(form[0], dtype=getattr(torch, form[1]))
            assert own is not None
            own = own.to(self.device).contiguous()
            distributed.broadcast(own, 0)
            found.append(own.cpu())
        return found

    def _together(self, values: Tensor, how: str) -> Tensor:
        if self.world > 1:
            from torch import distributed

            distributed.all_reduce(values, getattr(distributed.ReduceOp, how))
        return values


def own_device(device: torch.device) -> torch.device:
    """The device of this process, of those that are like `device`; UsageError where there are too few."""
    if device.type == "cpu" or "LOCAL_RANK" not in os.environ:
        return device
    wanted, there = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if wanted > there:
        raise UsageError(f"{wanted} processes need a GPU each, and {there} can be seen here", hint="start fewer")
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


@contextlib.contextmanager
def joined(device: torch.device, again: str | None = None) -> Iterator[Ranks]:
    """The processes that torchrun has started, while they work together; one, if it has not. again: the hint of what
    ends them, how the work is taken up.

    What ends one of them ends all: the first process raises it, the others leave without a word. The second speaks
    where the first was lost.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, world = next(rendezvous("env://", timeout=_PATIENCE))
    group = distributed.PrefixStore("group", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=group, rank=rank, world_size=world, timeout=_PATIENCE)
    try:
        yield Ranks(rank, world, device, store)
    except BaseException as error:  # the group is left as it is: to end it would wait for processes that are gone
        lost = _is_lost(error) or _is_lost(error.__context__)
        if lost:  # torchrun ends the others by a signal, which may have come; one has something to say first
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if rank:
            _leave(error, store, rank, world, lost, again)
        if isinstance(error, FpsgenError):
            raise
        with contextlib.suppress(RuntimeError):
            store.set(_SAID, "")
        if (fault := _fault(store, wait=lost)) is not None:
            raise FpsgenError(fault, again) from None
        if lost:
            raise FpsgenError(_LOST, again) from None
        raise
    distributed.destroy_process_group()
    if rank:
        _exit(0)


def _is_lost(error: BaseException | None) -> bool:
    """Whether it says that another process is gone; gloo has no type of its own for that."""
    from torch import distributed

    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _leave(error: BaseException, store: Store, rank: int, world: int, lost: bool, again: str | None) -> None:
    """End this process without a word, and leave its fault where the first one looks. lost: whether another is gone; if
    the first one is, the second says so."""
    if isinstance(error, Exception) and not isinstance(error, Stopped) and not lost:
        line = f"{error}" if isinstance(error, FpsgenError) else f"{type(error).__name__}: {error}".partition("\n")[0]
        with contextlib.suppress(RuntimeError):
            store.set(_FAULT, f"process {rank} of {world} ended: {line}")
    elif rank == 1 and lost and not _comes(store, _SAID):
        hint = f"  {again}\n" if again else ""
        os.write(2, f"error: {_LOST}\n{hint}".encode())  # sys.stderr is closed in all processes but the first
    _exit(getattr(error, "exit_code", 1))


def _exit(code: int) -> NoReturn:
    """Python's own way out waits for the group's threads, and what is left of them may abort it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _fault(store: Store, wait: bool) -> str | None:
    """What another process has left; it may be about to, where one was lost."""
    return store.get(_FAULT).decode() if _comes(store, _FAULT, 20 if wait else 1) else None


def _comes(store: Store, key: str, tries: int = 20) -> bool:
    """Whether a process leaves something there, within so many tenths of a second."""
    for _ in range(tries):
        with contextlib.suppress(RuntimeError):
            if store.check([key]):
                return True
        time.sleep(0.1)
    return False
