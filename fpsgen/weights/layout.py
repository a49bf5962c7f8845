"""What lies in a model folder: the original layout, Diffusers', or a transformer in a file of its own.

Recognising a folder reads names, configurations and headers, no weights.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fpsgen.errors import ModelError
from fpsgen.files import open_regular
from fpsgen.printable import printable
from fpsgen.wan.config import FETCH_AGAIN, OURS, WanConfig, check_original_kind, shown
from fpsgen.weights import headers, keys, kinds
from fpsgen.weights.headers import read_json, shards, some
from fpsgen.weights.kinds import Contents, Header

Format = Literal["original", "diffusers"]

# Diffusers: component folders, and how the names of their weight files begin.
STEMS = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
# Original: files of the repository.
TEXT_ENCODER_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
VAE_FILE = "Wan2.1_VAE.pth"
TOKENIZER_FOLDER = Path("google") / "umt5-xxl"
TOKENIZER_FOLDERS = (TOKENIZER_FOLDER, Path("tokenizer"))
# Others that lie there, code above all, are neither fetched nor copied.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
)
_SAME_MODEL = "take all parts from one Wan2.1 model"
# What a transformer needs beside it: fields of a `Checkpoint`, in words; and those that describe them.
PARTS = {"text_encoder": "text encoder", "vae": "VAE", "tokenizer": "tokenizer"}
CONFIGS = ("vae_config", "text_config")


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
        try:
            return sum(file.stat().st_size for file in (*self.transformer, *self.vae, *self.text_encoder))
        except OSError as fault:
            raise headers.unreadable(self.transformer[0].parent, fault) from None


class MissingPartsError(ModelError):
    """A transformer whose other parts are nowhere."""

    def __init__(self, file: Path, parts: list[str]):
        words = [PARTS[part] for part in parts]
        told = f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]
        verb = "are" if len(words) > 1 else "is"
        super().__init__(
            f"{printable(file)} is a transformer; its {told} {verb} neither beside it nor in the hub's cache"
        )


def transformer_name(key: str) -> str:
    """Our module's name, the original's, of a transformer parameter in any format."""
    return keys.TRANSFORMER.to_original(kinds.bare(key))


def vae_name(key: str) -> str:
    """diffusers' name of a VAE parameter in either format."""
    return keys.VAE.to_diffusers(key)


def text_encoder_name(key: str) -> str:
    """transformers' name of a text encoder parameter in either format; the embedding is `shared`."""
    return keys.TEXT_ENCODER.to_diffusers(keys.TEXT_ENCODER.to_original(key))


def recognise(folder: Path) -> Checkpoint:
    """The checkpoint in a folder; ModelError that says what is absent, or that it is none."""
    try:
        return _recognise(folder)
    except OSError as fault:  # no permission, or it became a file meanwhile
        raise headers.unreadable(folder, fault) from None


def _recognise(folder: Path) -> Checkpoint:
    if any((folder / name).is_dir() for name in ("high_noise_model", "low_noise_model")):
        raise ModelError(f"{printable(folder)} holds Wan2.2, a model of two experts", hint=OURS)
    original = (folder / VAE_FILE).exists() or (folder / TEXT_ENCODER_FILE).exists()
    if (folder / "model_index.json").exists() or (not original and any((folder / part).is_dir() for part in STEMS)):
        return _diffusers(folder)
    if original or any(folder.glob("*.safetensors")):
        return _original(folder)
    for file in sorted(folder.glob("*.gguf")):
        headers.contents(file)  # says what it is
    hint = f"a Diffusers folder holds {', '.join(STEMS)} and tokenizer; an original one {VAE_FILE} and others"
    if inside := next(folder.glob("snapshots/*/"), None):  # a repository in the hub's cache
        hint = f"give the model's own folder: --model {shlex.quote(str(inside))}"
    raise ModelError(f"{printable(folder)} holds no Wan2.1 checkpoint", hint)


def with_transformer(file: Path, elsewhere: Callable[[], Checkpoint | None]) -> Checkpoint:
    """A transformer in a single file, with text encoder, VAE and tokenizer: those that lie with it, the others of a
    checkpoint elsewhere, for all Wan2.1 models share them.

    MissingPartsError where one is in neither place; ModelError where the file is another kind, or parts do not fit.
    """
    found = _transformer([file])
    whole = file.parent.parent if file.parent.name in ("transformer", "transformer_2") else file.parent
    if whole != file.parent:  # half of a Wan2.2 looks like a Wan2.1
        try:
            _check_index(whole)
        except ModelError as error:
            raise ModelError(f"{printable(file)} is a part of {printable(whole)}: {error}", hint=error.hint) from None
    try:
        home = recognise(whole)
    except ModelError:
        home = None
    if home and home.transformer == [file]:
        return home
    config = config_of(found)
    if home is None:
        parts, unfit = _beside(file.parent)
        if lacking := [part for part in PARTS if part not in parts]:
            if (other := elsewhere()) is None:
                raise next((unfit[part] for part in lacking if part in unfit), MissingPartsError(file, lacking))
            parts = {name: getattr(other, name) for name in (*PARTS, *CONFIGS)} | parts
        home = Checkpoint("original", config, [file], **parts)
    _check_widths(config, home.vae_config.get("z_dim", config.in_channels), home.text_config.get("d_model"))
    return replace(home, transformer=[file], config=config)


def _beside(folder: Path) -> tuple[dict[str, Any], dict[str, ModelError]]:
    """Those of text encoder, VAE and tokenizer that lie in a transformer's folder, as fields of a `Checkpoint`: by the
    original's names, or by what the files say they are. And why others that lie there are not to be used."""
    found: dict[str, Any] = {}
    unfit: dict[str, ModelError] = {}
    files = {kind: folder / name for kind, name in (("vae", VAE_FILE), ("text encoder", TEXT_ENCODER_FILE))}
    files = {kind: file for kind, file in files.items() if file.is_file()}
    if len(files) < 2:
        files = {_kind_of(file): file for file in sorted(folder.glob("*.safetensors"))} | files
    for part, kind, describe in (("vae", "vae", _vae), ("text_encoder", "text encoder", _text_encoder)):
        if file := files.get(kind):
            try:
                found |= describe(file)
            except ModelError as error:
                unfit[part] = error
    tokenizers = (folder / TOKENIZER_FOLDER, folder / "tokenizer", folder)
    if tokenizer := next((place for place in tokenizers if (place / "tokenizer.json").is_file()), None):
        found |= {"tokenizer": tokenizer}
    return found, unfit


def _vae(file: Path) -> dict[str, Any]:
    """The fields of a `Checkpoint` that a VAE's file gives."""
    return {"vae": [file], "vae_config": vae_config_of(_component([file], vae_name, "vae"))}


def _text_encoder(file: Path) -> dict[str, Any]:
    found = _component([file], text_encoder_name, "text encoder")
    return {"text_encoder": [file], "text_config": text_config_of(found)}


def _kind_of(file: Path) -> str:
    try:
        return kinds.kind_of(headers.contents(file)).name
    except ModelError:  # a neighbour that cannot be read is nobody's part
        return "unreadable"


def refuse_other_models(folder: Path) -> None:
    """ModelError where the configuration files in a folder, which may hold nothing else yet, are not Wan2.1
    text-to-video's."""
    _check_index(folder)
    if (folder / "transformer" / "config.json").exists():
        WanConfig.from_diffusers(read_json(folder / "transformer" / "config.json"))
    elif (folder / "config.json").exists():
        check_original_kind(read_json(folder / "config.json"))


def _check_index(folder: Path) -> None:
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
    if absent := [part for part in (*STEMS, "tokenizer") if not (folder / part).is_dir()]:
        parts = ", ".join((*STEMS, "tokenizer"))
        hint = f"a Wan2.1 Diffusers folder holds {parts}"
        raise ModelError(f"{printable(folder)} lacks {', '.join(absent)}", hint)
    _check_index(folder)
    configs = {part: read_json(folder / part / "config.json") for part in STEMS}
    config = WanConfig.from_diffusers(configs["transformer"])
    _check_configs(config, configs["vae"], configs["text_encoder"])
    files = {part: shards(folder / part, stem) for part, stem in STEMS.items()}
    _check_depth("transformer", config.num_layers, _transformer(files["transformer"]), "blocks.")
    layers = configs["text_encoder"].get("num_layers")
    _check_depth("text_encoder", layers, _headers(files["text_encoder"], text_encoder_name), "encoder.block.")
    _check_tokenizer(folder / "tokenizer")
    vae, text = configs["vae"], configs["text_encoder"]
    return Checkpoint("diffusers", config, vae_config=vae, text_config=text, tokenizer=folder / "tokenizer", **files)


def _check_configs(config: WanConfig, vae: dict[str, Any], text_encoder: dict[str, Any]) -> None:
    """Refuse components of another kind, or that do not fit together, before any work is done with the others."""
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
    _check_widths(config, vae.get("z_dim", config.in_channels), text_encoder.get("d_model"))


def _check_widths(config: WanConfig, latent: object, text: object) -> None:
    """Refuse parts that are whole, each for itself, but of different models."""
    if config.in_channels != latent:
        told = f"its transformer works on {config.in_channels} latent channels, its VAE on {shown(latent)}"
        raise ModelError(told, hint=_SAME_MODEL)
    if config.text_dim != text:
        told = f"its transformer reads text of width {config.text_dim}, its text encoder writes {shown(text)}"
        raise ModelError(told, hint=_SAME_MODEL)


def _check_depth(part: str, told: object, found: dict[str, Header], stem: str) -> None:
    """Refuse a number of layers far from the weights': modules are built by it before they are compared."""
    have = _depth(found, stem)
    if not isinstance(told, int) or not 0 < told <= have + 40:
        says = f"its {part}/config.json says num_layers = {shown(told)}; its weights have {have}"
        raise ModelError(says, hint="fetch the config.json that belongs to these weights")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6  # NaN is not, either


def _original(folder: Path) -> Checkpoint:
    if any(folder.glob("*.safetensors")):  # what they are comes first: beside a LoRA nothing lacks
        _transformer(_original_transformer(folder))
    if absent := [name for name in (TEXT_ENCODER_FILE, VAE_FILE) if not (folder / name).is_file()]:
        hint = "the text encoder and the VAE belong beside the transformer"
        if (folder.parent / "model_index.json").exists():
            hint = f"give the whole model's folder: --model {shlex.quote(str(folder.parent))}"
        raise ModelError(f"{printable(folder)} lacks {', '.join(absent)}", hint)
    files = _original_transformer(folder)
    parts = _text_encoder(folder / TEXT_ENCODER_FILE) | _vae(folder / VAE_FILE)
    tokenizer = folder / TOKENIZER_FOLDER
    _check_tokenizer(tokenizer)
    config = config_of(_transformer(files))
    if (folder / "config.json").exists():
        config = config.with_original(read_json(folder / "config.json"))
    _check_widths(config, parts["vae_config"]["z_dim"], parts["text_config"]["d_model"])
    return Checkpoint("original", config, transformer=files, tokenizer=tokenizer, **parts)


def _original_transformer(folder: Path) -> list[Path]:
    """By Wan-AI's name, or the one file of another name that community checkpoints are."""
    if any(folder.glob("diffusion_pytorch_model*.safetensors*")):
        return shards(folder, STEMS["transformer"])
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        told = f"{len(files)} of them: {some([file.name for file in files])}" if files else "none"
        raise ModelError(
            f"{printable(folder)} should hold one transformer in a .safetensors file; it holds {told}",
            hint="give --model the one file that is meant" if files else "fetch the transformer's file",
        )
    return files


def _check_tokenizer(folder: Path) -> None:
    if not (folder / "tokenizer.json").is_file():
        told = ", but a spiece.model, which it was made from" if (folder / "spiece.model").is_file() else ""
        hint = f"copy it there from {TOKENIZER_FOLDER.as_posix()} of Wan-AI/Wan2.1-T2V-1.3B: all Wan2.1 models share it"
        raise ModelError(f"{printable(folder)} holds no tokenizer.json{told}", hint)
    with open_regular(folder / "tokenizer.json") as content:
        kinds.refuse_plain(folder / "tokenizer.json", content.read(kinds.FIRST_BYTES), "json", "text")


def _headers(files: list[Path], rename: headers.Rename) -> dict[str, Header]:
    return headers.renamed(headers.headers(files), rename)


def _transformer(files: list[Path]) -> dict[str, Header]:
    """Headers of what should be a transformer; ModelError where its files are another kind."""
    return _component(files, transformer_name, "transformer")


def _component(files: list[Path], rename: headers.Rename, kind: str) -> dict[str, Header]:
    contents = headers.contents(files[0])
    if len(files) > 1:
        contents = Contents(files[0].parent, headers.headers(files), contents.metadata)
    kinds.refuse_other_kinds(contents, kind)
    return headers.renamed(contents.tensors, rename)


def _shape(found: dict[str, Header], name: str, rank: int) -> tuple[int, ...]:
    if name not in found or len(found[name].shape) != rank:
        raise ModelError(f"its weights are not Wan2.1's: there is no {name} of {rank} dimensions", hint=OURS)
    return found[name].shape


def _depth(found: dict[str, Header], stem: str) -> int:
    numbers = {name.removeprefix(stem).split(".")[0] for name in found if name.startswith(stem)}
    return len(numbers)


def config_of(found: dict[str, Header]) -> WanConfig:
    """Hyperparameters of a transformer, from its tensors' shapes (original names); heads are 128 wide in all Wan2.1."""
    dim, in_channels = _shape(found, "patch_embedding.weight", 5)[:2]
    patch = WanConfig.PATCH[0] * WanConfig.PATCH[1] * WanConfig.PATCH[2]
    return WanConfig(
        dim=dim,
        ffn_dim=_shape(found, "blocks.0.ffn.0.weight", 2)[0],
        num_heads=max(dim // 128, 1),
        num_layers=_depth(found, "blocks."),
        text_dim=_shape(found, "text_embedding.0.weight", 2)[1],
        freq_dim=_shape(found, "time_embedding.0.weight", 2)[1],
        in_channels=in_channels,
        out_channels=_shape(found, "head.head.weight", 2)[0] // patch,
    )


def vae_config_of(found: dict[str, Header]) -> dict[str, Any]:
    """diffusers' configuration of Wan2.1's VAE: its defaults but for the widths."""
    return {
        "base_dim": _shape(found, "encoder.conv_in.weight", 5)[0],
        "z_dim": _shape(found, "post_quant_conv.weight", 5)[0],
    }


def text_config_of(found: dict[str, Header]) -> dict[str, Any]:
    """transformers' configuration of a UMT5 encoder, from its tensors' shapes (transformers' names)."""
    vocab_size, d_model = _shape(found, "shared.weight", 2)
    attention = "encoder.block.0.layer.0.SelfAttention"
    buckets, heads = _shape(found, f"{attention}.relative_attention_bias.weight", 2)
    return {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "d_kv": _shape(found, f"{attention}.q.weight", 2)[0] // heads,
        "d_ff": _shape(found, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 2)[0],
        "num_layers": _depth(found, "encoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
    }
