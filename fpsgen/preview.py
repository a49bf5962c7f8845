"""How far a video is, while it is denoised: the running estimate of its latents as a small picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fpsgen.errors import option, reason
from fpsgen.events import Event, Notice, Preview
from fpsgen.request import VideoPlan
from fpsgen.wan import vae as wan_vae
from fpsgen.wan.vae import VAE
from fpsgen.weights import load

if TYPE_CHECKING:
    from PIL.Image import Image

HEIGHT = 240  # pixels
_ENOUGH = 256  # pixels of the shorter side that the VAE decodes


class Previews:
    """Pictures of videos of one model. Whatever goes wrong with one is told once, and there are no more; told once is,
    too, that a video has too few steps for one.

    every: after how many steps.
    """

    def __init__(self, every: int):
        self._every, self._ready, self._failed, self._told = every, False, False, False
        self._map: Tensor | None = None
        self._vae: VAE | None = None

    def after(self, plan: VideoPlan, step: int, latents: Tensor, velocity: Tensor) -> Iterator[Event]:
        """The picture after a step, counted from 0, if it is due; after the last one the video itself comes. latents:
        before the step; velocity: the guided one."""
        done, total = step + 1, len(plan.steps)
        if self._every >= total and not (step or self._told):
            self._told = True
            yield Notice(f"there is no preview: {option('preview', self._every)}, and the video has {total} steps")
        if self._failed or done % self._every or done == total:
            return
        try:
            # The flow's end, if it went on as it goes now: x0 = x - sigma v.
            pixels = self.picture(plan, latents - plan.request.settings.noise_levels[step] * velocity)
        except Exception as fault:  # of memory, of the VAE's file: a video is worth more than a look at it
            self._failed = True
            yield Notice(f"there are no previews: {reason(fault)}")
            return
        yield Preview(plan.request.output, done, total, pixels)

    def close(self) -> None:
        """The memory is for others now."""
        self._vae, self._ready = None, False

    @torch.inference_mode()
    def picture(self, plan: VideoPlan, latents: Tensor) -> np.ndarray:
        """Frames at a quarter, at half and at three quarters of a video side by side, uint8 [HEIGHT, width, 3].
        latents: the model's, [1, channels, T, h, w]."""
        if not self._ready:
            self._map, self._ready = _known_map(plan), True
            if self._map is None:
                self._vae = load.load_vae(plan.model.checkpoint, plan.target.device)
        count = latents.shape[2]
        wanted = sorted({count * quarter // 4 for quarter in (1, 2, 3)})
        made = self._linear(latents[:, :, wanted]) if self._vae is None else self._decoded(latents, wanted, plan)
        return np.concatenate([np.asarray(_enlarged(frame)) for frame in made], axis=1)

    def _linear(self, latents: Tensor) -> np.ndarray:
        assert self._map is not None
        weights = self._map.to(latents.device)
        rgb = torch.einsum("bcthw,cr->brthw", latents.float(), weights[:-1]) + weights[-1].view(1, 3, 1, 1, 1)
        return wan_vae.to_uint8(rgb.clamp(-1, 1))

    def _decoded(self, latents: Tensor, wanted: list[int], plan: VideoPlan) -> list[np.ndarray]:
        """By the VAE, the last frame of each latent frame; smaller where the video is large. A clip's first latent
        frame comes before them, because the VAE takes the first that it sees for that."""
        assert self._vae is not None
        rows, columns = latents.shape[-2:]
        shrink = max(1, min(rows, columns) * plan.request.settings.stride // _ENOUGH)
        shown = sorted({0, *wanted})
        few = functional.interpolate(latents[0, :, shown].float(), (rows // shrink, columns // shrink), mode="area")
        pieces = wan_vae.stream(self._vae, wan_vae.denormalise(self._vae, few[None]))
        frames = [wan_vae.to_uint8(piece)[-1] for piece in pieces]
        return [frame for at, frame in zip(shown, frames, strict=True) if at in wanted]


def _enlarged(pixels: np.ndarray) -> Image:
    from PIL import Image

    picture = Image.fromarray(pixels)
    width = max(1, round(picture.width * HEIGHT / picture.height))
    return picture.resize((width, HEIGHT), Image.Resampling.BICUBIC)


def _known_map(plan: VideoPlan) -> Tensor | None:
    """From the model's latents to RGB in [-1, 1], [channels + 1, 3], the last row a bias; None for a VAE for which
    nobody has published one."""
    mean = load.empty_vae(plan.model.checkpoint).latents_mean
    found = _MAPS.get((len(mean), round(float(mean[0]), 4)))
    return None if found is None else torch.tensor(found).view(-1, 3) / 10_000


# In units of 1e-4, by the number of latent channels and the first of their means, as which VAEs are known. Fitted by
# others: ComfyUI, `comfy/latent_formats.py`, `latent_rgb_factors` and their bias of Wan21 and Wan22.
_MAPS = {
    (16, -0.7571): (
        -1299, -1692, 2932,  671, 406, 442,  3568, 2548, 1747,  372, 2344, 1420,  313, 189, -328,
        296, -956, -665,  -3477, -4059, -2925,  166, 1902, 1975,  -412, 267, -1364,  -1293, 740, 1636,
        680, 3019, 1128,  32, 581, 639,  -1251, 927, 1699,  60, -633, 5,  3477, 2275, 2950,
        1984, 913, 1861,  -1835, -868, -3360,
    ),
    (48, -0.2289): (
        119, 103, 46,  -1062, -504, 165,  140, 409, 491,  -813, -677, 607,  656, 851, 808,
        264, 463, 912,  295, 326, 590,  -244, -270, 25,  443, -102, 288,  -465, -90, -205,
        359, 236, 82,  -776, 854, 1048,  564, 264, 561,  6, 594, 418,  -319, -542, -637,
        -268, 24, 260,  539, 265, 358,  -359, -312, -287,  -285, -1032, -1237,  1041, 537, 622,
        -86, -374, -51,  390, 670, 2863,  69, 144, 82,  6, -167, 79,  313, -574, -232,
        -1454, -902, -481,  714, 827, 447,  -304, -574, -196,  401, 384, 204,  -758, -297, -14,
        568, 1307, 1372,  -55, -310, -380,  239, -305, 325,  -663, -673, -140,  -416, -47, -23,
        166, 112, -93,  -211, 11, 331,  1833, 1466, 2250,  -368, 370, 295,  -3441, -3543, -2008,
        -479, -489, -420,  -660, -153, 800,  -101, 68, 156,  -690, -452, -927,  -145, 41, 15,
        421, 451, 373,  504, -483, -356,  -837, 168, 55,  317, -878, -1388,
    ),
}  # fmt: skip
