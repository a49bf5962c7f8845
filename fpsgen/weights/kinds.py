"""What a file is, said from the file itself: from its first bytes, the names and shapes of its tensors, its metadata
and, where nothing else tells, its name.

Two tables. `PLAIN` has the files that hold no tensors, by their first bytes; `KINDS` has those that do. Each row: how
the kind is recognised, the rest of a sentence that begins with the file's name, and what to do about it. The first row
that fits is taken. Whoever teaches fpsgen another kind changes its row here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fpsgen.errors import ModelError
from fpsgen.printable import printable
from fpsgen.wan.config import FETCH_AGAIN, OURS
from fpsgen.weights import keys

FIRST_BYTES = 512  # that `PLAIN` looks at
# By safetensors' names. Others (FP8, INT8, GGUF blocks) need scales that Wan2.1's own formats do not carry.
FLOATS = ("F32", "BF16", "F16")
_PREFIXES = re.compile(r"(model\.)?(diffusion_model\.)?")


def bare(name: str) -> str:
    """A transformer's parameter without what ComfyUI and trainers put before it."""
    return _PREFIXES.sub("", name, count=1)


@dataclass(frozen=True)
class Header:
    """What a file says of a tensor without its being read; dtype by safetensors' name for it."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Contents:
    """What a file with tensors says of itself."""

    file: Path
    tensors: Mapping[str, Header]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def names(self) -> dict[str, str]:
        """Every tensor's name in the original's words for a transformer, and its own."""
        renamed = {}
        for own in self.tensors:
            renamed[keys.TRANSFORMER.to_original(bare(own))] = own
        return renamed

    def has(self, pattern: str) -> bool:
        """Whether the name of a tensor matches from its beginning."""
        return any(map(re.compile(pattern).match, self.names))

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[self.names[name]].shape if name in self.names else ()

    @property
    def channels(self) -> int | None:
        """Latent channels that a transformer takes."""
        shape = self.shape("patch_embedding.weight")
        return shape[1] if len(shape) == 5 else None

    @property
    def dtype(self) -> str:
        """That of most matrices."""
        matrices = Counter(header.dtype for header in self.tensors.values() if len(header.shape) == 2)
        return matrices.most_common(1)[0][0] if matrices else "F32"

    @property
    def told(self) -> str:
        """Where people write what a file is: its name, its metadata; of folders, only Wan2.2's own say it."""
        folder = self.file.parent.name if self.file.parent.name.endswith("_noise_model") else ""
        metadata = " ".join(f"{key}={value}" for key, value in self.metadata.items())
        return f"{folder} {self.file.name} {metadata[:10_000]}"


@dataclass(frozen=True)
class Kind:
    """One row. says: the sentence after the file's name; None where fpsgen runs it."""

    name: str
    known_by: Callable[[Contents], object]
    says: str | None
    hint: str = ""


@dataclass(frozen=True)
class Plain:
    """One row for files without tensors."""

    name: str
    known_by: Callable[[bytes], object]
    says: str
    hint: str


PLAIN = (
    Plain("empty", lambda start: not start, "is empty", FETCH_AGAIN),
    Plain(
        "git-lfs pointer",
        lambda start: start.startswith(b"version https://git-lfs"),
        "is a Git LFS pointer, not the file itself",
        "git lfs pull",
    ),
    Plain(
        "web page",
        lambda start: re.match(rb"\s*(\xef\xbb\xbf)?<(!doctype|html|head|\?xml|!--)", start, re.IGNORECASE),
        "is a web page, not the file itself: a login or an error page was saved under this name",
        "fetch the file again, after hf auth login if its site asks for one",
    ),
    Plain(
        "gguf",
        lambda start: start.startswith(b"GGUF"),
        "is a GGUF file, which fpsgen does not read yet",
        "use the fp16 or bf16 .safetensors file of the same model",
    ),
    Plain(
        "json",
        lambda start: re.match(rb"\s*[{[]", start),
        "is a JSON file, which holds no weights: an index only names the files that do",
        "give the folder in which it lies",
    ),
    Plain(
        "text",
        lambda start: re.fullmatch(rb"[\t\r\n\x20-\x7e]+", start),
        'is text, not weights: it begins with "{start}"',
        "fetch the file again, after hf auth login if its site asks for one",
    ),
    Plain(
        "pickle",
        lambda start: re.match(rb"\x80[\x02-\x05]", start),
        "is a pickled file of an old kind, which could run code",
        "use the .safetensors file of the same model",
    ),
    Plain(
        "archive",
        lambda start: re.match(rb"\x1f\x8b|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", start),
        "is a packed archive, not a weight file",
        "unpack it, and give what was inside",
    ),
)

EXPERT = re.compile(r"(high|low)[-_. ]?noise|wan[-_. ]?2[-_.]?2(?!\d)", re.IGNORECASE)
_NO_8_BIT = "use the fp16 or bf16 file of the same model; later versions of fpsgen will read FP8"
_NOT_ALONE = "give --model the transformer's file, or the folder in which all parts lie"

KINDS = (
    Kind(
        "lora",
        lambda c: c.has(
            r"lora_unet_|lora_te|lycoris_|.*\.(lora_(A|B|up|down)\b|lora\.(up|down)\.|diff(_b)?$|hada_|lokr_|oft_|dora_)"
        ),
        "is a LoRA: it holds changes to a transformer, not a transformer",
        "give the transformer that it changes; later versions of fpsgen will apply LoRAs",
    ),
    Kind(
        "vae",
        lambda c: c.has(r"(encoder|decoder)\.(conv1|conv_in)\b"),
        "is a VAE, not a transformer",
        _NOT_ALONE,
    ),
    Kind(
        "text encoder",
        lambda c: (
            not c.channels
            and c.has(r"token_embedding\.weight|shared\.weight|encoder\.block\.\d+\.layer\.0\.SelfAttention")
        ),
        "is a text encoder, not a transformer",
        _NOT_ALONE,
    ),
    Kind(
        "image encoder",
        lambda c: not c.channels and c.has(r"(visual|vision_model|image_encoder)\."),
        "is an image encoder (CLIP), not a transformer",
        _NOT_ALONE,
    ),
    Kind(
        "fp8, ComfyUI's scaled_fp8",
        lambda c: c.has(r"scaled_fp8$|.*\.scale_weight$"),
        "holds FP8 weights with scales (ComfyUI's scaled_fp8), which fpsgen does not read yet",
        _NO_8_BIT,
    ),
    Kind(
        "8 bits, ComfyUI's comfy_quant",
        lambda c: c.has(r".*\.comfy_quant$"),
        "holds quantised weights (ComfyUI's comfy_quant), which fpsgen does not read yet",
        _NO_8_BIT,
    ),
    Kind(
        "8 bits, LightX2V's",
        lambda c: c.has(r".*\.weight_scale(_2|_inv)?$"),
        "holds quantised weights with scales (LightX2V's FP8 or INT8), which fpsgen does not read yet",
        _NO_8_BIT,
    ),
    Kind(
        "fp8 without scales",
        lambda c: c.dtype.startswith("F8_"),
        "holds FP8 weights, which fpsgen does not read yet",
        _NO_8_BIT,
    ),
    Kind(
        "all in one",
        lambda c: c.has(r"first_stage_model\.|cond_stage_model\.|text_encoders\.|vae\.") and c.channels,
        "holds transformer, VAE and text encoder in one file, which fpsgen does not read",
        "use the transformer's own file",
    ),
    Kind("vace", lambda c: c.has(r"vace_"), "is a Wan VACE model, made to edit videos", OURS),
    Kind(
        "first and last frame",
        lambda c: c.has(r"img_emb\.emb_pos|condition_embedder\.image_embedder\.pos_embed"),
        "is a Wan2.1 model that goes from a first to a last frame (FLF2V)",
        OURS,
    ),
    Kind(
        "image to video",
        lambda c: c.has(r"img_emb\.|condition_embedder\.image_embedder\.|.*\.k_img\.|.*\.add_k_proj\."),
        "is an image-to-video model",
        OURS,
    ),
    Kind(
        "wan2.2 5B",
        lambda c: c.channels == 48 and c.shape("head.head.weight")[:1] == (192,),
        "is Wan2.2 TI2V-5B, which works on 48 latent channels; Wan2.1 has 16",
        OURS,
    ),
    Kind(
        "wan2.2 image-to-video expert",
        lambda c: c.channels == 36 and EXPERT.search(c.told),
        "is one of the two experts of Wan2.2 image-to-video: half a model",
        OURS,
    ),
    Kind(
        "other channels",
        lambda c: c.channels not in (None, 16) and c.has(r"blocks\.\d+\.self_attn\."),
        "is another Wan variant: it takes {channels} latent channels, text-to-video takes 16",
        OURS,
    ),
    Kind(
        "other attention",
        lambda c: c.has(r"blocks\.\d+\.(.*to_gate_compress|self_attn\.(proj_[lqk]|gate_proj|attn_op))"),
        "is a Wan model that was trained for another sparse attention (FastWan, TurboWan, SparkWan)",
        OURS,
    ),
    Kind(
        "control",
        lambda c: c.has(r"control_|audio_|motion_|face_|ref_conv|camera_|cam_|casual_audio|pose_"),
        "is a Wan variant that is led by more than text (a camera, poses, sound or references)",
        OURS,
    ),
    Kind(
        "shard",
        lambda c: re.search(r"-\d{5}-of-\d{5}\.", c.file.name) and not (c.channels and c.shape("head.head.weight")),
        "is one of several files that make up a component",
        "give the folder of the whole model",
    ),
    Kind(
        "wan2.2 expert",
        lambda c: c.channels == 16 and EXPERT.search(c.told),
        "calls itself one of the two experts of Wan2.2: half a model",
        f"{OURS}; later versions of fpsgen will run the two experts together",
    ),
    Kind("transformer", lambda c: c.channels and c.has(r"blocks\.0\.self_attn\.q\.weight"), None),
    Kind(
        "transformer's part",
        lambda c: c.has(r"blocks\.\d+\.self_attn\.q\."),
        "holds only a part of a Wan transformer: it has no patch_embedding",
        "give the whole transformer, or the folder of the whole model",
    ),
    Kind("other", lambda c: True, "is no Wan2.1 model: its tensors are called {tensors}", OURS),
)


def refuse_plain(file: Path, start: bytes) -> None:
    """ModelError where a file's first bytes tell that it holds no tensors."""
    if start[4:9] == b"\0\0\0\0{":  # a safetensors file: its header's length, which may read like anything, then that
        return
    for kind in PLAIN:
        if kind.known_by(start):
            words = printable(" ".join(start.decode(errors="replace").split()), 60)
            raise ModelError(f"{printable(file)} {kind.says.format(start=words)}", hint=kind.hint)


def refuse_stand_ins(file: Path, start: bytes) -> None:
    """ModelError where a file of another kind, JSON say, is nothing, a Git LFS pointer or a web page instead."""
    if next((kind.name for kind in PLAIN if kind.known_by(start)), "") in ("empty", "git-lfs pointer", "web page"):
        refuse_plain(file, start)


def kind_of(contents: Contents) -> Kind:
    return next(kind for kind in KINDS if kind.known_by(contents))


def refuse_other_kinds(contents: Contents, wanted: str = "transformer") -> None:
    """ModelError where a file is not of the kind `wanted`, or holds it in numbers that fpsgen does not read."""
    kind, eight = kind_of(contents), contents.dtype.startswith(("F8_", "I8", "U8"))
    if kind.name == wanted and not eight:
        return
    tensors = ", ".join(printable(name, 40) for name in list(contents.tensors)[:3])
    says = (kind.says or "is a transformer").format(
        channels=contents.channels, tensors=tensors or "nothing, for there are none"
    )
    hint = kind.hint
    if kind.name == wanted:
        says, hint = f"holds the {wanted} in 8 bits, which fpsgen does not read yet", _NO_8_BIT
    elif wanted != "transformer":
        says, hint = f"should be the {wanted}, but {says.removesuffix(', not a transformer')}", FETCH_AGAIN
    raise ModelError(f"{printable(contents.file)} {says}", hint=hint)
