"""What an image shows, for cross-attention: the states of CLIP's vision transformer before its last layer.

The network is transformers'. It sees an image as Wan2.1's own code prepares it (`wan/modules/clip.py`): brought to its
square by torch's bicubic interpolation, without a crop; but of the frame at the video's size, not of the file's pixels.
diffusers crops, and filters more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fpsgen.wan.vae import from_uint8

# Of CLIP's training images (`wan/modules/clip.py`), by colour.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def vision_transformer(config: Mapping[str, Any]) -> nn.Module:
    """transformers' network by its own configuration. Parameters have its names, without the prefix that some of its
    versions give them."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    model = CLIPVisionModel(CLIPVisionConfig(**config))
    return getattr(model, "vision_model", model)


class ImageEncoder:
    """network: from `vision_transformer`, with its weights."""

    def __init__(self, network: nn.Module):
        self._network = network
        embeddings: Any = network.embeddings
        self._size, weight = embeddings.image_size, embeddings.position_embedding.weight
        numbers = torch.arange(len(weight), device=weight.device)[None]
        embeddings.register_buffer("position_ids", numbers, persistent=False)  # no file has them
        self._device, self._dtype = weight.device, weight.dtype

    @torch.inference_mode()
    def states(self, images: Sequence[np.ndarray]) -> Tensor:
        """float32 [1, positions, width] of uint8 images [height, width, 3]: the positions of one after the other."""
        seen = torch.cat([self._pixels(image) for image in images]).to(self._dtype)
        return self._network(seen, output_hidden_states=True).hidden_states[-2].flatten(0, 1)[None].float()

    def _pixels(self, image: np.ndarray) -> Tensor:
        pixels = from_uint8(torch.from_numpy(image[None]).to(self._device))[:, :, 0]
        pixels = F.interpolate(pixels, (self._size, self._size), mode="bicubic", align_corners=False)
        mean, std = (torch.tensor(values, device=self._device).view(1, 3, 1, 1) for values in (_MEAN, _STD))
        return (pixels * 0.5 + 0.5 - mean) / std
