"""The processes of a run that torchrun started, and what they do together: by torch.distributed, nothing else.

One process needs none of it, and imports none of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

from fpsgen.errors import FpsgenError, Stopped, option

if TYPE_CHECKING:
    from torch.distributed import Store

    from fpsgen.train.objective import VelocityModel

_PATIENCE = timedelta(minutes=10)  # with a process that is there and says nothing; one that died is noticed at once
_AGAIN = f"with {option('resume')} it goes on from its last checkpoint"
_FAULT = "fault"  # where a process leaves what ended it, for the first to say
_SAID = "said"  # where the first leaves that it has said why the run ends
_LOST = "a process of this run was ended, and so the others end, too"


@dataclass(frozen=True)
class Ranks:
    """This process, `rank` of `world`."""

    rank: int = 0
    world: int = 1

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

    def _together(self, values: Tensor, how: str) -> Tensor:
        if self.world > 1:
            from torch import distributed

            distributed.all_reduce(values, getattr(distributed.ReduceOp, how))
        return values

    def shard(self, model: VelocityModel, device: torch.device) -> None:
        """Move a model to the device; with several processes each parameter is shared out, and made whole where a
        forward or backward pass needs it: block by block."""
        if self.world == 1:
            model.to(device)
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (self.world,))
        for block in model.transformer.layers():
            cross = block.cross_attn
            # The text's keys and values are made before any block runs. The other two would be made whole for nothing.
            fully_shard([cross.k, cross.v, cross.norm_k], mesh=mesh, reshard_after_forward=True)
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
        # Not the default for the root, which would keep averaged weights from a rendering for the next step.
        fully_shard(model, mesh=mesh, reshard_after_forward=True)


def gathered(tensor: Tensor) -> Tensor:
    """All of a tensor that is shared out over the processes, each of which has to ask; others as they are."""
    own = tensor.detach()
    return own.full_tensor() if hasattr(own, "full_tensor") else own


def local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor, as a view."""
    own = tensor.detach()
    return own.to_local() if hasattr(own, "to_local") else own


def shared(whole: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process has, shared out as `like` is, on its device; a copy at most."""
    whole = whole.to(like.device)
    if not hasattr(like, "device_mesh"):
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def own_device(device: torch.device) -> torch.device:
    """The device of this process, of those that are like `device`."""
    if device.type == "cpu" or "LOCAL_RANK" not in os.environ:
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The processes that torchrun has started, while they work together; one, if it has not.

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
        yield Ranks(rank, world)
    except BaseException as error:  # the group is left as it is: to end it would wait for processes that are gone
        lost = _is_lost(error) or _is_lost(error.__context__)
        if lost:  # torchrun ends the others by a signal, which may have come; one has something to say first
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if rank:
            _leave(error, store, rank, world, lost)
        if isinstance(error, FpsgenError):
            raise
        with contextlib.suppress(RuntimeError):
            store.set(_SAID, "")
        if (fault := _fault(store, wait=lost)) is not None:
            raise FpsgenError(fault, _AGAIN) from None
        if lost:
            raise FpsgenError(_LOST, _AGAIN) from None
        raise
    distributed.destroy_process_group()
    if rank:
        _exit(0)


def _is_lost(error: BaseException | None) -> bool:
    """Whether it says that another process is gone; gloo has no type of its own for that."""
    from torch import distributed

    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _leave(error: BaseException, store: Store, rank: int, world: int, lost: bool) -> None:
    """End this process without a word, and leave its fault where the first one looks. lost: whether another is gone; if
    the first one is, the second says so."""
    if isinstance(error, Exception) and not isinstance(error, Stopped) and not lost:
        line = f"{error}" if isinstance(error, FpsgenError) else f"{type(error).__name__}: {error}".partition("\n")[0]
        with contextlib.suppress(RuntimeError):
            store.set(_FAULT, f"process {rank} of {world} ended: {line}")
    elif rank == 1 and lost and not _comes(store, _SAID):
        os.write(2, f"error: {_LOST}\n  {_AGAIN}\n".encode())  # sys.stderr is closed in all processes but the first
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
