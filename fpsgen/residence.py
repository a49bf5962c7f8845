"""The memory policy: which parts of a model are in a device's memory together, by what is free and what each needs.

One after the other come the text encoder, the transformer and the VAE, and each is freed before the next one loads.
What remains to be decided: whether the blocks of the text encoder and of the transformer stay on the device, whether
the VAE fits beside it, and whether the VAE decodes a video's frames whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

import torch

from fpsgen import machine
from fpsgen.errors import option
from fpsgen.printable import readable
from fpsgen.request import VideoPlan
from fpsgen.settings import Offload
from fpsgen.target import Target
from fpsgen.wan.offload import Home
from fpsgen.wan.parallel import layout, shares
from fpsgen.wan.vae import OVERLAP
from fpsgen.weights import needs
from fpsgen.weights.layout import EXPERTS
from fpsgen.weights.models import Model

# Of free memory, as much as an estimate may take: allocators leave gaps.
SHARE = 0.8
_SHORTEST = 32  # latents: a side of the VAE's tiles that is cut no more


@dataclass(frozen=True)
class Residence:
    """Where a transformer's blocks are while they do not compute, and why. needed: what the transformer takes where
    they stay on the device, with one guidance branch at work; held: what it takes as they are, with both branches at
    once where these fit, as `sampling.both_fit` finds; free: what there is."""

    home: Home
    needed: int
    held: int
    free: int
    device: torch.device
    asked: bool

    @property
    def costs_time(self) -> bool:
        """Whether the user should know of it, who did not ask."""
        return self.home != "device" and not self.asked

    def __str__(self) -> str:
        sizes = f"of {readable(self.free)} free on {self.device}"
        if self.home == "device":
            return f"the transformer stays in memory: {readable(self.held)} at work {sizes}"
        told = f"the transformer's blocks come from {self.home} one by one: {readable(self.held)} at work {sizes}"
        if self.asked:
            return told
        return f"{told}; all of it would need {readable(self.needed)} ({option('offload', 'none')} loads it whole)"


def of_transformer(plans: Sequence[VideoPlan], offload: Offload = "auto", gpus: int = 1) -> Residence:
    """Where the blocks of a transformer, or of the larger of two experts, are: on the device if all of it and one
    guidance branch of the largest video, of which it computes its share, fit into what is free; else in host memory,
    where that is another one and has room; else in the files. The plans are of one model, of which nothing is loaded.
    gpus: how many render each video together; UsageError where they cannot."""
    model, target = plans[0].model, plans[0].target
    checkpoint, free = model.checkpoint, machine.free_bytes(target.device)
    tokens = max(
        max(shares(plan.tiles, layout(gpus, model.config.num_heads, plan.request.settings.branches).sequence))
        for plan in plans
    )
    at_work = int(tokens * model.config.bytes_per_token(target.dtype.itemsize) / SHARE)
    whole = needs.weights(checkpoint, target)
    weights = max(whole[checkpoint.words(part)] for part in EXPERTS.keys() & checkpoint.parts)
    home: Home = "device"
    if offload == "blocks" or (offload == "auto" and weights + at_work > free):
        home = _elsewhere(weights, target.device)
    held = at_work + (weights if home == "device" else needs.streamed(checkpoint, target))
    if gpus == 1 and held + at_work <= free and any(plan.request.settings.branches > 1 for plan in plans):
        held += at_work
    return Residence(home, weights + at_work, held, free, target.device, offload != "auto")


def of_text_encoder(model: Model, target: Target) -> Home:
    """The same of the text encoder, of which each text needs each block once."""
    weights = needs.of_part(model.checkpoint, target, "text_encoder")
    fits = weights < SHARE * machine.free_bytes(target.device)
    return "device" if fits else _elsewhere(weights, target.device)


def _elsewhere(weights: int, device: torch.device) -> Home:
    """Where blocks are for which a device has no room."""
    is_other = device.type != "cpu" and weights < SHARE * machine.free_bytes(torch.device("cpu"))
    return "host memory" if is_other else "files"


def vae_fits_beside(plan: VideoPlan, copies: int = 1) -> bool:
    """Whether the VAE, and what it needs to decode this video, fits into the memory that is free now, while the
    transformer is in it. copies: of its weights, which are to be loaded."""
    weights = copies and copies * needs.of_part(plan.model.checkpoint, plan.target, "vae")
    return weights + decoding(plan) < SHARE * machine.free_bytes(plan.target.device)


def vae_tile(plan: VideoPlan, free: int) -> tuple[int, int] | None:
    """Height and width, in latents, of the tiles in which a video's frames are decoded, so that they fit into what is
    free beside the VAE's weights; None where whole frames do, or where tiles are as small as they may be."""
    share, (_, *whole) = free / decoding(plan), plan.request.settings.latent_shape
    tile, cuts = list(whole), [1, 1]
    while share < 1 and prod(tile) > SHARE * share * prod(whole):
        longer = 0 if tile[0] > tile[1] else 1
        if tile[longer] <= _SHORTEST:
            break
        cuts[longer] += 1
        tile[longer] = ceil((whole[longer] + (cuts[longer] - 1) * OVERLAP) / cuts[longer])
    return None if tile == whole else (tile[0], tile[1])


def told_of_tiles(plan: VideoPlan, tile: tuple[int, int]) -> str:
    """For the user, because it costs time, and frames differ slightly."""
    height, width = (side * plan.request.settings.stride for side in tile)
    needed = readable(decoding(plan))
    return f"the VAE decodes in tiles of {width}x{height}: whole frames would need {needed}; borders are blended"


def decoding(plan: VideoPlan) -> int:
    """Bytes that the VAE takes for a video's frames, beside its weights."""
    return needs.decoding(plan.model.checkpoint, plan.request.settings.width, plan.request.settings.height)
