"""The parts of a model, and how they lie in a folder: as in the original repositories, or in Diffusers' format.

Recognising a folder reads names, configurations and headers, no weights.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fpsgen.errors import ModelError
from fpsgen.files import open_regular
from fpsgen.printable import printable
from fpsgen.wan.config import FETCH_AGAIN, MASK, OURS, WanConfig, kind_of
from fpsgen.weights import headers, keys, kinds
from fpsgen.weights.configs import (
    check_image_config,
    check_kinds_of_parts,
    check_original_kind,
    config_of,
    depth_of,
    from_diffusers,
    image_config_of,
    image_positions,
    is_gated,
    shown,
    text_config_of,
    vae_config_of,
    with_original,
)
from fpsgen.weights.headers import read_json, shards, some
from fpsgen.weights.keys import KeyMap, Shape
from fpsgen.weights.kinds import Header
from fpsgen.weights.known import Format as Format
from fpsgen.weights.lora import Lora
from fpsgen.weights.lora_changes import Expert

TransformerPart = Literal["transformer", "transformer_2"]


@dataclass(frozen=True)
class Part:
    """A component that has weights.

    stem: how the names of its weight files begin in Diffusers' format; file: its one file in the original format, where
    the transformer has Diffusers' files; names: its parameters in both formats; native: the one that our module uses;
    split: names and shapes of what lies in a file as one tensor, in equal pieces along its first dimension, where they
    are more than a name for each.
    """

    words: str
    stem: str
    file: str
    names: KeyMap
    native: Format
    split: Callable[[str, Shape], list[tuple[str, Shape]]] | None = None

    def headers(self, tensors: Mapping[str, Header]) -> dict[str, Header]:
        """The headers of a file, by our module's names."""
        if self.split is None:
            return headers.renamed(tensors, self.rename)
        found = [(each, own.dtype) for key, own in tensors.items() for each in self.split(key, own.shape)]
        return {name: Header(shape, dtype) for (name, shape), dtype in found}

    def in_format(self, key: str, form: Format) -> str:
        """The name in `form` of a parameter that is called `key` in either format."""
        original = self.names.to_original(keys.bare(key))
        return original if form == "original" else self.names.to_diffusers(original)

    def rename(self, key: str) -> str:
        """Our module's name of a parameter that is called `key` in either format."""
        return self.in_format(key, self.native)


# By Diffusers' folder of each, which is the field of a `Checkpoint` as well.
PARTS = {
    "transformer": Part("transformer", "diffusion_pytorch_model", "", keys.TRANSFORMER, "original"),
    "transformer_2": Part("low-noise expert", "diffusion_pytorch_model", "", keys.TRANSFORMER, "original"),
    "text_encoder": Part("text encoder", "model", "models_t5_umt5-xxl-enc-bf16.pth", keys.TEXT_ENCODER, "diffusers"),
    "vae": Part("VAE", "diffusion_pytorch_model", "Wan2.1_VAE.pth", keys.VAE, "diffusers"),
    "image_encoder": Part(
        "image encoder", "model", "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth", keys.IMAGE_ENCODER,
        "diffusers", keys.of_image_encoder,
    ),
}  # fmt: skip
# In the place of "vae" in a model of 48 latent channels.
VAE_2_2 = Part("VAE", "diffusion_pytorch_model", "Wan2.2_VAE.pth", keys.VAE_2_2, "diffusers")
NEEDED = ("transformer", "text_encoder", "vae")  # parts that every model has
PIPELINES = ("WanPipeline", "WanImageToVideoPipeline", "WanDMDPipeline")  # diffusers' classes, and FastVideo's
EXPERTS = {"transformer": "high_noise_model", "transformer_2": "low_noise_model"}  # the original's folders of two
CLIP_VISION = "clip_vision_h.safetensors"  # the image encoder as ComfyUI has it
OTHERS = ("text_encoder", "vae")  # parts that all models share but the 5B, whose VAE is `VAE_2_2`
TOKENIZERS: dict[Format, Path] = {"original": Path("google") / "umt5-xxl", "diffusers": Path("tokenizer")}
# Others that lie there, code above all, are neither fetched nor copied.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "spiece.model",
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """Where each component's weights and configuration are. vae_config and text_config are Diffusers' and
    transformers' own; where the format has none, they are what the tensors' shapes say. loras: merged with the
    transformer as it is loaded. transformer_2: of a model of two experts, the low-noise one; `transformer` is the
    high-noise one then. boundary: the noise level between the two, where the format says it. image_encoder,
    image_config: of a model that reads what an image shows. linears_in_8_bits: that those of a model without its files
    (`models.absent`) are published so."""

    format: Format
    config: WanConfig
    transformer: list[Path]
    vae: list[Path]
    vae_config: dict[str, Any]
    text_encoder: list[Path]
    text_config: dict[str, Any]
    tokenizer: Path
    loras: tuple[Lora, ...] = ()
    transformer_2: list[Path] = field(default_factory=list)
    boundary: float | None = None
    image_encoder: list[Path] = field(default_factory=list)
    image_config: dict[str, Any] = field(default_factory=dict)
    linears_in_8_bits: bool = False

    @property
    def parts(self) -> list[str]:
        """Those of `PARTS` that it has."""
        return [part for part in PARTS if part in NEEDED or getattr(self, part)]

    def words(self, part: str) -> str:
        """What a part is called in this model."""
        return "high-noise expert" if part == "transformer" and self.transformer_2 else PARTS[part].words

    @property
    def experts(self) -> dict[str, Expert]:
        """Those of its parts that are transformers, with the noise that each is for; empty where there is one."""
        return {"transformer": "high", "transformer_2": "low"} if self.transformer_2 else {"transformer": ""}

    def part(self, name: str) -> Part:
        """What `PARTS` says of a part, or what is this model's own."""
        return VAE_2_2 if name == "vae" and self.vae_config.get("is_residual") else PARTS[name]

    @property
    def kind(self) -> str:
        """Which of `wan.config.SHAPES` it is taken for."""
        return kind_of(self.config, experts=2 if self.transformer_2 else 1)

    @property
    def bytes(self) -> int:
        """The size of all weight files; ModelError where one is gone."""
        with headers.reading(self.transformer[0].parent):
            return sum(file.stat().st_size for part in self.parts for file in getattr(self, part))


def recognise(folder: Path) -> Checkpoint:
    """The checkpoint in a folder. A ModelError says what is missing, or why the folder holds no checkpoint."""
    with headers.reading(folder):  # it may become a file meanwhile
        checkpoint = _recognise(folder)
    check_widths(checkpoint)
    return checkpoint


def _recognise(folder: Path) -> Checkpoint:
    refuse_half(folder, folder)
    parts = (*map(PARTS.__getitem__, OTHERS), VAE_2_2)
    original = any((folder / part.file).exists() for part in parts) or _has_noise_folders(folder)
    if (folder / "model_index.json").exists() or (not original and any((folder / part).is_dir() for part in NEEDED)):
        return _diffusers(folder)
    if original or any(folder.glob("*.safetensors")):
        return _original(folder)
    for file in sorted(folder.glob("*.gguf")):
        told = f"{printable(folder)} holds no checkpoint of Wan but single files, such as {printable(file.name)}"
        raise ModelError(told, "give the transformer's file as the model")
    files = f"an original one contains {PARTS['vae'].file} and others"
    hint = f"a Diffusers folder contains {', '.join(NEEDED)} and tokenizer; {files}"
    if inside := next(folder.glob("snapshots/*/"), None):  # a repository in the hub's cache
        hint = f"give the model's own folder: {shlex.quote(str(inside))}"
    raise ModelError(f"{printable(folder)} holds no checkpoint of Wan", hint)


def refuse_other_models(folder: Path) -> None:
    """ModelError where the configuration files in a folder, which may hold nothing else yet, are of a
    model that is not run."""
    check_index(folder)
    for part in filter(lambda part: (folder / part / "config.json").exists(), EXPERTS):
        from_diffusers(read_json(folder / part / "config.json"))
    for place in (folder, *(folder / name for name in EXPERTS.values())):
        if (place / "config.json").exists():
            check_original_kind(read_json(place / "config.json"))


def check_index(folder: Path) -> dict[str, Any]:
    """What a Diffusers folder's index says, nothing where it is absent; other pipelines are refused."""
    if not (folder / "model_index.json").exists():
        return {}
    index = read_json(folder / "model_index.json")
    if (name := index.get("_class_name")) not in PIPELINES:
        raise ModelError(f"it is a {printable(name, 60)}, not a {' or '.join(PIPELINES[:2])}", hint=OURS)
    boundary = index.get("boundary_ratio", 0.5)
    if boundary is not None and not (type(boundary) is float and 0 < boundary < 1):
        told = f"its model_index.json says boundary_ratio = {shown(boundary)}, which is not between 0 and 1"
        raise ModelError(told, hint=FETCH_AGAIN)
    return index


def holds_two(folder: Path) -> bool:
    """Whether a folder is said to be of a model of two experts, in either format; one of them may be absent."""
    if _has_noise_folders(folder):
        return True
    index = check_index(folder)
    if (two := index.get("transformer_2")) is None:
        return index.get("boundary_ratio") is not None or (folder / "transformer_2").is_dir()
    return index.get("boundary_ratio") is not None or (isinstance(two, list) and any(two))


def _has_noise_folders(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in EXPERTS.values())


def refuse_half(path: Path, part: Path) -> None:
    """ModelError where `path`, which may be in the folder `part`, is one of the two experts of a model in a folder."""
    name, whole = part.absolute().name, part.absolute().parent
    if name in EXPERTS.values() or (name in EXPERTS and holds_two(whole)):
        told = f"{printable(path)} is one of the two experts of a Wan2.2 model: half a model"
        raise ModelError(told, hint=f"give the whole model's folder: {shlex.quote(str(whole))}")


def _diffusers(folder: Path) -> Checkpoint:
    tokenizer, index, two = TOKENIZERS["diffusers"], check_index(folder), holds_two(folder)
    parts = [part for part in PARTS if part in NEEDED or (two and part in EXPERTS)]
    if reads_images(folder / "transformer"):
        parts.append("image_encoder")
    if absent := [part for part in (*parts, str(tokenizer)) if not (folder / part).is_dir()]:
        hint = f"the model's Diffusers folder holds {', '.join(parts)} and {tokenizer}"
        raise ModelError(f"{printable(folder)} lacks {', '.join(absent)}", hint)
    configs = {part: read_json(folder / part / "config.json") for part in parts}
    vae, text = configs["vae"], configs["text_encoder"]
    shapes = {part: from_diffusers(configs[part]) for part in EXPERTS if part in configs}
    check_kinds_of_parts(vae, text)
    files: dict[str, Any] = {part: shards(folder / part, PARTS[part].stem) for part in parts}
    for part, own in shapes.items():
        tensors = _tensors(part, files[part], two)
        _check_depth(part, own.num_layers, tensors, "blocks.")
        shapes[part] = replace(own, gated=is_gated(tensors))
    text_tensors = headers.renamed(headers.headers(files["text_encoder"]), PARTS["text_encoder"].rename)
    _check_depth("text_encoder", text.get("num_layers"), text_tensors, "encoder.block.")
    if "image_encoder" in parts:
        seen = PARTS["image_encoder"].headers(headers.headers(files["image_encoder"]))
        _check_depth("image_encoder", configs["image_encoder"].get("num_hidden_layers"), seen, "encoder.layers.")
        files |= {"image_config": check_image_config(configs["image_encoder"])}
    _check_tokenizer(folder / tokenizer)
    files |= {"boundary": index.get("boundary_ratio")} if two else {}
    return Checkpoint(
        "diffusers", _of_both(*shapes.values()), vae_config=vae, text_config=text, tokenizer=folder / tokenizer, **files
    )


def reads_images(transformer: Path) -> bool:
    """Whether the configuration in a transformer's folder says that it reads an image encoder's states."""
    config = transformer / "config.json"
    return config.is_file() and from_diffusers(read_json(config)).image_dim is not None


def check_widths(checkpoint: Checkpoint) -> None:
    """Refuse parts that are complete but belong to different models."""
    config = checkpoint.config
    latent, text = checkpoint.vae_config.get("z_dim", config.out_channels), checkpoint.text_config.get("d_model")
    message = None
    if config.condition_channels not in (0, MASK + config.out_channels):
        with_image = MASK + 2 * config.out_channels
        message = f"its transformer takes {config.in_channels} channels, not {config.out_channels} or {with_image}"
    if config.image_dim != (width := checkpoint.image_config.get("hidden_size")):
        reads = f"images of width {config.image_dim}" if config.image_dim else "no image encoder's states"
        message = f"its transformer reads {reads}, its image encoder writes {width}"
    elif config.image_positions not in (None, positions := 2 * image_positions(checkpoint.image_config)):
        message = (
            f"its transformer reads {config.image_positions} states of two images, its image encoder writes {positions}"
        )
    if config.text_dim != text:
        message = f"its transformer reads text of width {config.text_dim}, its text encoder writes {shown(text)}"
    if config.time_per_token != bool(checkpoint.vae_config.get("is_residual")):
        own, other = ("Wan2.2 5B's", "Wan2.1's") if config.time_per_token else ("Wan2.1's", "Wan2.2 5B's")
        message = f"its transformer is {own}, its VAE is {other}"
    if config.out_channels != latent:
        message = f"its transformer works on {config.out_channels} latent channels, its VAE on {shown(latent)}"
    if message:
        raise ModelError(message, hint="take all parts from one model")


def _check_depth(part: str, says: object, tensors: dict[str, Header], stem: str) -> None:
    """Refuse a number of layers far from the weights': modules are built by it before they are compared."""
    have = depth_of(tensors, stem)
    if not isinstance(says, int) or not 0 < says <= have + 40:
        message = f"its {part}/config.json says num_layers = {shown(says)}; its weights have {have}"
        raise ModelError(message, hint="fetch the config.json that belongs to these weights")


def _original(folder: Path) -> Checkpoint:
    homes = {part: folder / name for part, name in EXPERTS.items()} if _has_noise_folders(folder) else {}
    if absent := [home.name for home in homes.values() if not home.is_dir()]:
        hint = f"a Wan2.2 model is two experts: {' and '.join(EXPERTS.values())}"
        raise ModelError(f"{printable(folder)} lacks {', '.join(absent)}", hint)
    homes, others = homes or {"transformer": folder}, {name: PARTS[name] for name in OTHERS}
    files_here = [*folder.glob("*.safetensors"), *folder.glob("*.gguf")]
    if len(homes) > 1 or files_here:  # what they are comes first: beside a LoRA nothing lacks
        for part, home in homes.items():
            shapes = config_of(_tensors(part, _original_transformer(home), len(homes) > 1))
            others |= {"vae": VAE_2_2} if shapes.time_per_token else {}
    files = {name: [folder / part.file] for name, part in others.items()}
    if absent := [file.name for (file,) in files.values() if not file.is_file()]:
        hint = "the text encoder and the VAE belong beside the transformer"
        if (folder.parent / "model_index.json").exists():
            hint = f"give the whole model's folder: {shlex.quote(str(folder.parent))}"
        raise ModelError(f"{printable(folder)} lacks {', '.join(absent)}", hint)
    fields: dict[str, Any] = {"tokenizer": folder / TOKENIZERS["original"]}
    own = [_original_transformer(home) for home in homes.values()]
    fields |= fields_of_experts(*own) if len(own) > 1 else fields_of("transformer", *own)
    for other, others_files in files.items():
        fields |= fields_of(other, others_files)
    if fields["config"].image_dim is not None:
        fields |= fields_of("image_encoder", [_original_image_encoder(folder)])
    _check_tokenizer(fields["tokenizer"])
    if told := [read_json(home / "config.json") for home in homes.values() if (home / "config.json").exists()]:
        fields["config"] = _of_both(*(with_original(fields["config"], each) for each in told))
    return Checkpoint("original", **fields)


def _original_transformer(folder: Path) -> list[Path]:
    """The transformer's files: by Wan-AI's names, or the only file, as in community checkpoints, whatever its name."""
    with headers.reading(folder):
        next(folder.iterdir(), None)  # a pattern finds nothing in a folder that may not be read
    if any(folder.glob("diffusion_pytorch_model*.safetensors*")):
        return shards(folder, PARTS["transformer"].stem)
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        message = f"{len(files)} of them: {some([file.name for file in files])}" if files else "none"
        raise ModelError(
            f"{printable(folder)} should hold one transformer in a .safetensors or .gguf file; it holds {message}",
            hint="give the one file that is meant" if files else "fetch the transformer's file",
        )
    return files


def _original_image_encoder(folder: Path) -> Path:
    names = (PARTS["image_encoder"].file, CLIP_VISION)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    hint = "it is in the repositories of Wan2.1 I2V, and belongs beside the transformer"
    raise ModelError(f"{printable(folder)} lacks {' or '.join(names)}", hint)


def _check_tokenizer(folder: Path) -> None:
    if not (folder / "tokenizer.json").is_file():
        message = ", but a spiece.model, which it was made from" if (folder / "spiece.model").is_file() else ""
        home = f"{TOKENIZERS['original'].as_posix()} of Wan-AI/Wan2.1-T2V-1.3B"
        hint = f"copy it there from {home}: all models of Wan share it"
        raise ModelError(f"{printable(folder)} holds no tokenizer.json{message}", hint)
    with open_regular(folder / "tokenizer.json") as content:
        kinds.refuse_plain(folder / "tokenizer.json", content.read(kinds.FIRST_BYTES), "json", "text")


def _tensors(part: str, files: list[Path], paired: bool = False) -> dict[str, Header]:
    """The headers of a part's files under our module's names; ModelError if the files are of another kind. paired:
    whether they may say that they are one of two experts."""
    contents = headers.contents(*files)
    kinds.refuse_other_kinds(contents, "transformer" if part in EXPERTS else PARTS[part].words, paired)
    return PARTS[part].headers(contents.tensors)


def fields_of(part: str, files: list[Path]) -> dict[str, Any]:
    """The fields of a `Checkpoint` that a part's files give: the files, and the configuration by their shapes."""
    name, config = {
        "transformer": ("config", config_of),
        "vae": ("vae_config", vae_config_of),
        "text_encoder": ("text_config", text_config_of),
        "image_encoder": ("image_config", image_config_of),
    }[part]
    return {part: files, name: config(_tensors(part, files))}


def fields_of_experts(high: list[Path], low: list[Path]) -> dict[str, Any]:
    """The same of the two transformers of one model, the high-noise expert's files and the low-noise one's; ModelError
    where they are not of one model."""
    files = {"transformer": high, "transformer_2": low}
    return files | {"config": _of_both(*(config_of(_tensors(part, own, paired=True)) for part, own in files.items()))}


def _of_both(*shapes: WanConfig) -> WanConfig:
    """The shapes of a transformer, which two experts must have in common."""
    for other in shapes[1:]:
        for name, value in asdict(shapes[0]).items():
            if (low := getattr(other, name)) != value:
                told = f"its experts are of two models: {name} is {value} in the high-noise one, {low} in the other"
                raise ModelError(told, hint="take both experts from one model")
    return shapes[0]
