"""The parts of a model, and how they lie in a folder: as in the original repositories, or in Diffusers' format.

Recognising a folder reads names, configurations and headers, no weights.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fpsgen.errors import ModelError
from fpsgen.files import open_regular
from fpsgen.printable import printable
from fpsgen.wan.config import FETCH_AGAIN, OURS, WanConfig, check_original_kind, shown
from fpsgen.weights import headers, keys, kinds
from fpsgen.weights.headers import read_json, shards, some
from fpsgen.weights.keys import KeyMap
from fpsgen.weights.kinds import Contents, Header

Format = Literal["original", "diffusers"]


@dataclass(frozen=True)
class Part:
    """A component that has weights.

    stem: how the names of its weight files begin in Diffusers' format; file: its one file in the original format, where
    the transformer has Diffusers' files; names: its parameters in both formats; native: the one that our module uses.
    """

    words: str
    stem: str
    file: str
    names: KeyMap
    native: Format

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
    "text_encoder": Part("text encoder", "model", "models_t5_umt5-xxl-enc-bf16.pth", keys.TEXT_ENCODER, "diffusers"),
    "vae": Part("VAE", "diffusion_pytorch_model", "Wan2.1_VAE.pth", keys.VAE, "diffusers"),
}
OTHERS = ("text_encoder", "vae")  # parts that all Wan2.1 models share
TOKENIZERS: dict[Format, Path] = {"original": Path("google") / "umt5-xxl", "diffusers": Path("tokenizer")}
# Others that lie there, code above all, are neither fetched nor copied.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "spiece.model",
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """Where each component's weights and configuration are. vae_config and text_config are Diffusers' and
    transformers' own; where the format has none, they are what the tensors' shapes say."""

    format: Format
    config: WanConfig
    transformer: list[Path]
    vae: list[Path]
    vae_config: dict[str, Any]
    text_encoder: list[Path]
    text_config: dict[str, Any]
    tokenizer: Path

    @property
    def bytes(self) -> int:
        """The size of all weight files; ModelError where one is gone."""
        with headers.reading(self.transformer[0].parent):
            return sum(file.stat().st_size for part in PARTS for file in getattr(self, part))


def recognise(folder: Path) -> Checkpoint:
    """The checkpoint in a folder. A ModelError says what is missing, or why the folder holds no checkpoint."""
    with headers.reading(folder):  # it may become a file meanwhile
        checkpoint = _recognise(folder)
    check_widths(checkpoint)
    return checkpoint


def _recognise(folder: Path) -> Checkpoint:
    if any((folder / name).is_dir() for name in ("high_noise_model", "low_noise_model")):
        raise ModelError(f"{printable(folder)} holds Wan2.2, a model of two experts", hint=OURS)
    original = any((folder / PARTS[part].file).exists() for part in OTHERS)
    if (folder / "model_index.json").exists() or (not original and any((folder / part).is_dir() for part in PARTS)):
        return _diffusers(folder)
    if original or any(folder.glob("*.safetensors")):
        return _original(folder)
    for file in sorted(folder.glob("*.gguf")):
        headers.contents(file)  # says what it is
    hint = f"a Diffusers folder holds {', '.join(PARTS)} and tokenizer; an original one {PARTS['vae'].file} and others"
    if inside := next(folder.glob("snapshots/*/"), None):  # a repository in the hub's cache
        hint = f"give the model's own folder: {shlex.quote(str(inside))}"
    raise ModelError(f"{printable(folder)} holds no Wan2.1 checkpoint", hint)


def refuse_other_models(folder: Path) -> None:
    """ModelError where the configuration files in a folder, which may hold nothing else yet, are not Wan2.1
    text-to-video's."""
    check_index(folder)
    if (folder / "transformer" / "config.json").exists():
        WanConfig.from_diffusers(read_json(folder / "transformer" / "config.json"))
    elif (folder / "config.json").exists():
        check_original_kind(read_json(folder / "config.json"))


def check_index(folder: Path) -> None:
    """Refuse other pipelines, and Wan2.2's, which are WanPipelines of two transformers. An index may be absent."""
    if not (folder / "model_index.json").exists():
        return
    index = read_json(folder / "model_index.json")
    if (name := index.get("_class_name")) != "WanPipeline":
        raise ModelError(f"it is a {printable(name, 60)}, not a WanPipeline", hint=OURS)
    two = index.get("transformer_2")
    if index.get("boundary_ratio") is not None or (isinstance(two, list) and any(two)):
        raise ModelError("it is a Wan2.2 model of two transformers", hint=OURS)


def _diffusers(folder: Path) -> Checkpoint:
    tokenizer = TOKENIZERS["diffusers"]
    if absent := [part for part in (*PARTS, str(tokenizer)) if not (folder / part).is_dir()]:
        hint = f"a Wan2.1 Diffusers folder holds {', '.join(PARTS)} and {tokenizer}"
        raise ModelError(f"{printable(folder)} lacks {', '.join(absent)}", hint)
    check_index(folder)
    configs = {part: read_json(folder / part / "config.json") for part in PARTS}
    vae, text, config = configs["vae"], configs["text_encoder"], WanConfig.from_diffusers(configs["transformer"])
    _check_configs(vae, text)
    files = {part: shards(folder / part, each.stem) for part, each in PARTS.items()}
    _check_depth("transformer", config.num_layers, _tensors("transformer", files["transformer"]), "blocks.")
    text_tensors = headers.renamed(headers.headers(files["text_encoder"]), PARTS["text_encoder"].rename)
    _check_depth("text_encoder", text.get("num_layers"), text_tensors, "encoder.block.")
    _check_tokenizer(folder / tokenizer)
    return Checkpoint("diffusers", config, vae_config=vae, text_config=text, tokenizer=folder / tokenizer, **files)


def _check_configs(vae: dict[str, Any], text_encoder: dict[str, Any]) -> None:
    """Refuse components of another kind, before any work is done with them."""
    if (name := vae.get("_class_name", "AutoencoderKLWan")) != "AutoencoderKLWan":
        raise ModelError(f"its VAE is a {printable(name, 60)}, not an AutoencoderKLWan", hint=OURS)
    for key in ("latents_mean", "latents_std"):
        values = vae.get(key, [1.0] * 16)
        if not (isinstance(values, list) and len(values) == 16 and all(map(_is_number, values))):
            raise ModelError(f"its vae/config.json has a {key} that is not 16 numbers", FETCH_AGAIN)
    if min(vae.get("latents_std", [1.0])) <= 0:
        raise ModelError("its vae/config.json has a latents_std that is not above 0", FETCH_AGAIN)
    if vae.get("patch_size") is not None or vae.get("is_residual"):
        raise ModelError("its VAE is one of Wan2.2's", hint=OURS)
    if (blocks := vae.get("num_res_blocks", 2)) not in range(1, 17):
        raise ModelError(f"its vae/config.json says num_res_blocks = {shown(blocks)}; Wan2.1 has 2", FETCH_AGAIN)
    umt5 = {"model_type": "umt5", "feed_forward_proj": "gated-gelu", "relative_attention_max_distance": 128}
    for key, wanted in umt5.items():
        if (have := text_encoder.get(key, wanted)) != wanted:
            raise ModelError(f"its text encoder has {key} = {shown(have)}; Wan2.1 has {wanted!r}", hint=OURS)


def check_widths(checkpoint: Checkpoint) -> None:
    """Refuse parts that are complete but belong to different models."""
    config = checkpoint.config
    latent, text = checkpoint.vae_config.get("z_dim", config.in_channels), checkpoint.text_config.get("d_model")
    message = None
    if config.text_dim != text:
        message = f"its transformer reads text of width {config.text_dim}, its text encoder writes {shown(text)}"
    if config.in_channels != latent:
        message = f"its transformer works on {config.in_channels} latent channels, its VAE on {shown(latent)}"
    if message:
        raise ModelError(message, hint="take all parts from one Wan2.1 model")


def _check_depth(part: str, says: object, tensors: dict[str, Header], stem: str) -> None:
    """Refuse a number of layers far from the weights': modules are built by it before they are compared."""
    have = _depth(tensors, stem)
    if not isinstance(says, int) or not 0 < says <= have + 40:
        message = f"its {part}/config.json says num_layers = {shown(says)}; its weights have {have}"
        raise ModelError(message, hint="fetch the config.json that belongs to these weights")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6  # NaN is not, either


def _original(folder: Path) -> Checkpoint:
    if any(folder.glob("*.safetensors")):  # what they are comes first: beside a LoRA nothing lacks
        _tensors("transformer", _original_transformer(folder))
    files = {part: [folder / PARTS[part].file] for part in OTHERS}
    if absent := [file.name for (file,) in files.values() if not file.is_file()]:
        hint = "the text encoder and the VAE belong beside the transformer"
        if (folder.parent / "model_index.json").exists():
            hint = f"give the whole model's folder: {shlex.quote(str(folder.parent))}"
        raise ModelError(f"{printable(folder)} lacks {', '.join(absent)}", hint)
    fields: dict[str, Any] = {"tokenizer": folder / TOKENIZERS["original"]}
    for part, parts_files in ({"transformer": _original_transformer(folder)} | files).items():
        fields |= fields_of(part, parts_files)
    _check_tokenizer(fields["tokenizer"])
    if (folder / "config.json").exists():
        fields["config"] = fields["config"].with_original(read_json(folder / "config.json"))
    return Checkpoint("original", **fields)


def _original_transformer(folder: Path) -> list[Path]:
    """The transformer's files: by Wan-AI's names, or the only file, as in community checkpoints, whatever its name."""
    if any(folder.glob("diffusion_pytorch_model*.safetensors*")):
        return shards(folder, PARTS["transformer"].stem)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        message = f"{len(files)} of them: {some([file.name for file in files])}" if files else "none"
        raise ModelError(
            f"{printable(folder)} should hold one transformer in a .safetensors file; it holds {message}",
            hint="give the one file that is meant" if files else "fetch the transformer's file",
        )
    return files


def _check_tokenizer(folder: Path) -> None:
    if not (folder / "tokenizer.json").is_file():
        message = ", but a spiece.model, which it was made from" if (folder / "spiece.model").is_file() else ""
        home = f"{TOKENIZERS['original'].as_posix()} of Wan-AI/Wan2.1-T2V-1.3B"
        hint = f"copy it there from {home}: all Wan2.1 models share it"
        raise ModelError(f"{printable(folder)} holds no tokenizer.json{message}", hint)
    with open_regular(folder / "tokenizer.json") as content:
        kinds.refuse_plain(folder / "tokenizer.json", content.read(kinds.FIRST_BYTES), "json", "text")


def _tensors(part: str, files: list[Path]) -> dict[str, Header]:
    """The headers of a part's files under our module's names; ModelError if the files are of another kind."""
    contents = headers.contents(files[0])
    if len(files) > 1:
        contents = Contents(files[0].parent, headers.headers(files), contents.metadata)
    kinds.refuse_other_kinds(contents, PARTS[part].words)
    return headers.renamed(contents.tensors, PARTS[part].rename)


def fields_of(part: str, files: list[Path]) -> dict[str, Any]:
    """The fields of a `Checkpoint` that a part's files give: the files, and the configuration by their shapes."""
    field, config = {
        "transformer": ("config", config_of),
        "vae": ("vae_config", vae_config_of),
        "text_encoder": ("text_config", text_config_of),
    }[part]
    return {part: files, field: config(_tensors(part, files))}


def _shape(tensors: dict[str, Header], name: str, rank: int) -> tuple[int, ...]:
    if name not in tensors or len(tensors[name].shape) != rank:
        raise ModelError(f"its weights are not Wan2.1's: there is no {name} of {rank} dimensions", hint=OURS)
    return tensors[name].shape


def _depth(tensors: dict[str, Header], stem: str) -> int:
    return len({name.removeprefix(stem).split(".")[0] for name in tensors if name.startswith(stem)})


def config_of(tensors: dict[str, Header]) -> WanConfig:
    """Hyperparameters of a transformer, from its tensors' shapes (original names); heads are 128 wide in all Wan2.1."""
    dim, in_channels = _shape(tensors, "patch_embedding.weight", 5)[:2]
    patch = WanConfig.PATCH[0] * WanConfig.PATCH[1] * WanConfig.PATCH[2]
    return WanConfig(
        dim=dim,
        ffn_dim=_shape(tensors, "blocks.0.ffn.0.weight", 2)[0],
        num_heads=max(dim // 128, 1),
        num_layers=_depth(tensors, "blocks."),
        text_dim=_shape(tensors, "text_embedding.0.weight", 2)[1],
        freq_dim=_shape(tensors, "time_embedding.0.weight", 2)[1],
        in_channels=in_channels,
        out_channels=_shape(tensors, "head.head.weight", 2)[0] // patch,
    )


def vae_config_of(tensors: dict[str, Header]) -> dict[str, Any]:
    """diffusers' configuration of Wan2.1's VAE: its defaults but for the widths."""
    return {
        "base_dim": _shape(tensors, "encoder.conv_in.weight", 5)[0],
        "z_dim": _shape(tensors, "post_quant_conv.weight", 5)[0],
    }


def text_config_of(tensors: dict[str, Header]) -> dict[str, Any]:
    """transformers' configuration of a UMT5 encoder, from its tensors' shapes (transformers' names)."""
    vocab_size, d_model = _shape(tensors, "shared.weight", 2)
    attention = "encoder.block.0.layer.0.SelfAttention"
    buckets, heads = _shape(tensors, f"{attention}.relative_attention_bias.weight", 2)
    return {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "d_kv": _shape(tensors, f"{attention}.q.weight", 2)[0] // heads,
        "d_ff": _shape(tensors, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 2)[0],
        "num_layers": _depth(tensors, "encoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
    }
