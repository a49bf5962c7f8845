"""How the tensors of LoRA files are called: what trainers and converters write, in the original's names for modules.

Sources: diffusers `loaders/lora_conversion_utils.py` (original, musubi-tuner's and Diffusers' names), LightX2V
`tools/extract/lora_extractor.py` (`diff_m`), musubi-tuner `networks/lora_wan.py`, VideoX-Fun (`lora_unet__`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from fpsgen.errors import ModelError
from fpsgen.printable import printable
from fpsgen.weights import keys
from fpsgen.weights.headers import some
from fpsgen.weights.kinds import Contents

Part = Literal["A", "B", "bias of B", "alpha", "diff", "diff_b"]

# What stands behind a module's name. Between A or B and `weight` PEFT has the adapter's name, usually "default".
_PARTS: Mapping[str, Part] = {
    r"(?:lora_A|lora_down|lora\.down)(?:\.[^.]+)?\.weight": "A",
    r"(?:lora_B|lora_up|lora\.up)(?:\.[^.]+)?\.weight": "B",
    r"(?:lora_B|lora_up|lora\.up)(?:\.[^.]+)?\.bias": "bias of B",
    r"alpha": "alpha",
    r"diff": "diff",
    r"diff_b": "diff_b",
    r"diff_m": "diff",  # LightX2V's, of the module's modulation
}
_ENDINGS = [(re.compile(rf"(?P<module>.+)\.{ending}"), part) for ending, part in _PARTS.items()]
_MODULATION = re.compile(r"\.diff_m$")
_PREFIXES = re.compile(
    r"(base_model\.model\.)?(model\.)?(diffusion_model\.|transformer\.|transformer_2\.|pipe\.dit\.|dit\.)?"
)
_FLAT = re.compile(r"lora_unet_{1,2}(.+)")
# In flat names _ stands for a dot, but not inside these.
_COMPOUNDS = re.compile(
    r"(self_attn|cross_attn|(?:time|text|patch)_embedding|time_projection|img_emb|emb_pos|norm_k_img|norm_[qk]|[kv]_img"
    r"|to_gate_compress)|_"
)
_SECOND = "transformer_2."
# What both formats call alike, or in either way: the one module, and the gates of FastVideo's models.
_SHARED, _GATES = "patch_embedding", "gate_compress"
# Other ways to change a weight, by a part of the name of one of their tensors.
_OTHERS = {
    r"\.dora_scale$|lora_magnitude_vector": "DoRA",
    r"\.hada_[wt]\d": "LoHa",
    r"\.lokr_[wt]\d": "LoKr",
    r"\.b?oft_": "OFT",
    r"\.[ab][12]\.weight$": "GLoRA",
    r"\.lora_mid\.": "convolutions with a middle layer",
    r"\.(w|b)_norm$|\.reshape_weight$|\.set_weight$": "whole layers of LyCORIS",
}


class LoraTensor(NamedTuple):
    """What a tensor's name says. second: whether it belongs to the second transformer of two; module: by the original's
    name; dialect: whose names these are, None for a module that no Wan transformer has, or that all call alike."""

    second: bool
    module: str
    part: Part
    dialect: Literal["original", "Diffusers", "musubi"] | None


def named(key: str) -> LoraTensor | None:
    """None for a tensor that is no part of a LoRA."""
    match, part = next(((match, part) for end, part in _ENDINGS if (match := end.fullmatch(key))), (None, None))
    if match is None or part is None:
        return None
    module, second = match["module"], _SECOND in key
    if flat := _FLAT.fullmatch(module):
        module = _COMPOUNDS.sub(lambda found: found[1] or ".", flat[1])
    else:
        module = _PREFIXES.sub("", module, count=1)
    if _MODULATION.search(key):
        module += ".modulation"
    original = keys.TRANSFORMER.to_original(module)
    if module == _SHARED or module.endswith(_GATES):
        return LoraTensor(second, original, part, "musubi" if flat else None)
    if original != module:
        return LoraTensor(second, original, part, "Diffusers")
    is_known = keys.TRANSFORMER.to_diffusers(module) != module
    return LoraTensor(second, module, part, None if not is_known else "musubi" if flat else "original")


def read(contents: Contents) -> tuple[dict[str, LoraTensor], list[str]]:
    """What the tensors of a LoRA are, by name, and those that are no part of one. ModelError where the file changes
    weights in another way, is for another kind of model, mixes dialects, or holds something twice."""
    file = printable(contents.file)
    for pattern, other in _OTHERS.items():
        if keys_of_it := [key for key in contents.tensors if re.search(pattern, key)]:
            told = f"{file} holds {other} ({some(keys_of_it, 2)}), and fpsgen merges plain LoRAs only"
            raise ModelError(
                told, hint="use a plain LoRA of the same, with lora_A and lora_B, or lora_down and lora_up"
            )
    found = {key: own for key in contents.tensors if (own := named(key))}
    dialects = {own.dialect: key for key, own in reversed(found.items()) if own.dialect}
    if not dialects and not any(own.module == _SHARED for own in found.values()):
        told = f"{file} is a LoRA for another kind of model: none of its tensors has a name of Wan's"
        raise ModelError(f"{told} ({some(list(contents.tensors))})", hint="use a LoRA that was made for Wan")
    if len(dialects) > 1:
        (one, first), (two, second) = sorted(dialects.items())[:2]
        told = f"{file} mixes names of two dialects: {printable(first, 80)} ({one}) and {printable(second, 80)} ({two})"
        raise ModelError(told, hint="use a file that a trainer or a converter wrote as a whole")
    if twice := _twice(found):
        told = f"{file} holds the same part of a layer under two names: {len(twice)} times, such as {some(twice, 2)}"
        raise ModelError(told, hint="use a file that holds each once")
    return found, [key for key in contents.tensors if key not in found]


def _twice(found: Mapping[str, LoraTensor]) -> list[str]:
    seen: set[tuple[bool, str, Part]] = set()
    repeated = []
    for key, (second, module, part, _) in found.items():
        if (second, module, part) in seen:
            repeated.append(key)
        seen.add((second, module, part))
    return repeated


def is_of_image(module: str) -> bool:
    """Whether only models that see an image through CLIP have the module."""
    return re.search(r"(^|\.)(img_emb|[kv]_img|norm_k_img)(\.|$)", module) is not None
