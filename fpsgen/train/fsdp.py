"""Weights that are shared out over the processes of a run, by FSDP2."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fpsgen.ranks import Ranks

if TYPE_CHECKING:
    from fpsgen.train.objective import VelocityModel


def shard(model: VelocityModel, device: torch.device, group: Ranks) -> None:
    """Move a model to the device; with several processes each parameter is shared out, and made whole where a
    forward or backward pass needs it: block by block."""
    if group.world == 1:
        model.to(device)
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (group.world,))
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
