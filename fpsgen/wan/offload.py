"""Blocks of a transformer that is larger than free memory: each is on the device only while it computes.

A pass goes through the blocks in order. While one of them computes, a thread brings the next one: out of host memory,
which on a GPU is pinned, so that copies run beside the computation; or out of the weight files, which are read anew,
with all that loading does to them. Either way its tensors have the bits that they would have if they stayed.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from fpsgen.errors import UsageError, option
from fpsgen.printable import readable
from fpsgen.wan.linear import Linear

# Where blocks are while they do not compute.
Home = Literal["device", "host memory", "files"]
HELD = 2  # blocks on the device: one computes, one is on its way
Block = TypeVar("Block", bound=nn.Module)
_ALIGNED = 256  # bytes, of tensors in one buffer: more than any kernel asks for


class Streamed(Generic[Block]):
    """Blocks in order: whoever goes through them has each one in memory until the next one is asked for.

    read: gives the block of a number its values on the device, as loading does; note: called when a block has them for
    the first time. UsageError where the system does not pin so much memory.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        read: Callable[[int], object],
        note: Callable[[int], object],
        device: torch.device,
        home: Home,
    ):
        self.home = home
        self._blocks, self._read, self._device = blocks, read, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # Of each half of what is held: its values are there; and nothing computes with them any longer.
        self._ready, self._done = ([torch.cuda.Event() for _ in range(HELD)] if self._stream else [] for _ in range(2))
        self._host: list[Tensor] = []
        for number, block in enumerate(blocks):
            read(number)
            note(number)
            if home == "files":
                replace(block, _without_values)
            else:
                self._host.append(_gathered(block))
        if home == "files":
            return
        if self._stream:
            _pin(self, self._host)
        size = max(map(len, self._host))
        self._buffers = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(HELD)]
        for number, block in enumerate(blocks):
            replace(block, partial(_at_its_place, self._buffers[number % HELD]))

    def __iter__(self) -> Iterator[Block]:
        if self._stream:  # what lay in the buffers' memory before them may still be in use
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with ThreadPoolExecutor(1, "blocks") as pool:
            coming = pool.submit(self._bring, 0)
            for number, block in enumerate(self._blocks):
                coming.result()
                if number + 1 < len(self._blocks):
                    coming = pool.submit(self._bring, number + 1)
                if self._stream:
                    torch.cuda.current_stream(self._device).wait_event(self._ready[number % HELD])
                try:
                    yield block
                finally:
                    if self._stream:
                        self._done[number % HELD].record(torch.cuda.current_stream(self._device))
                    if self.home == "files":
                        replace(block, _without_values)

    @torch.inference_mode()  # in which whoever computes may have made the buffers
    def _bring(self, number: int) -> None:
        """Give a block its values, as soon as nothing computes with the one that was there before."""
        if self._stream is None:
            self._fill(number)
            return
        self._done[number % HELD].synchronize()
        with torch.cuda.stream(self._stream):
            self._fill(number)
            self._ready[number % HELD].record(self._stream)

    def _fill(self, number: int) -> None:
        if self.home == "files":
            self._read(number)
        else:
            own = self._host[number]
            self._buffers[number % HELD][: len(own)].copy_(own, non_blocking=True)


def replace(block: nn.Module, other: Callable[[Tensor], Tensor]) -> None:
    """Put others in the place of all tensors that a block computes with, in an order that stays; what has no values is
    left as it is."""
    made: dict[int, tuple[Tensor, Tensor]] = {}  # two products may share 8-bit numbers; what is kept has no other's id

    def once(tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            return tensor
        if id(tensor) not in made:
            made[id(tensor)] = tensor, other(tensor)
        return made[id(tensor)][1]

    for module in block.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(once(parameter.data), requires_grad=False))
        if isinstance(module, Linear):
            module.replace(once)


def _without_values(tensor: Tensor) -> Tensor:
    if tensor.is_cuda:  # the next block is read on another stream, into memory that this gives back while it computes
        tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return torch.empty_like(tensor, device="meta")


def _gathered(block: nn.Module) -> Tensor:
    """Host memory that holds all tensors of a block, which lie inside it from now on. It has pages of its own, because
    pages are what is pinned; torch's pinned memory would be rounded up to a power of two."""
    sizes: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        sizes.append(_room(tensor))
        return tensor

    replace(block, count)
    memory, offsets = torch.frombuffer(mmap.mmap(-1, sum(sizes)), dtype=torch.uint8), accumulate(sizes, initial=0)
    replace(block, lambda tensor: _view(memory, next(offsets), tensor).copy_(tensor))
    return memory


def _room(tensor: Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNED) * _ALIGNED


def _view(memory: Tensor, offset: int, like: Tensor) -> Tensor:
    return memory[offset : offset + like.nbytes].view(like.dtype).view(like.shape)


def _at_its_place(buffer: Tensor, tensor: Tensor) -> Tensor:
    """The tensor in a buffer that one in host memory is copied to with all others of its block."""
    return _view(buffer, int(tensor.storage_offset()) * tensor.itemsize, tensor)


def _pin(owner: object, memory: Sequence[Tensor]) -> None:
    """Keep pages where they are as long as their owner lives, so that a GPU reads them by itself."""
    for own in memory:
        if int(torch.cuda.cudart().cudaHostRegister(own.data_ptr(), len(own), 0)):
            told = f"the system does not pin {readable(sum(map(len, memory)))} of memory for the GPU"
            raise UsageError(told, hint=f"allow more locked memory (ulimit -l), or use {option('offload', 'none')}")
        weakref.finalize(owner, _unpin, own)  # which holds the memory until then


def _unpin(own: Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(own.data_ptr())
