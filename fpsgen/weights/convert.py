"""Write a checkpoint in the other format: the same tensors, bit for bit, under the other's names and files."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fpsgen.errors import RenderError, UsageError
from fpsgen.files import is_full, write_json
from fpsgen.printable import printable
from fpsgen.wan.sizes import defaults_of
from fpsgen.weights import keys, layout, load
from fpsgen.weights.checkpoint import read
from fpsgen.weights.headers import Rename, headers, renamed
from fpsgen.weights.layout import STEMS, Checkpoint, Format

SHARD_SIZE = "5GB"


def convert(checkpoint: Checkpoint, target: Format, out: Path) -> Iterator[str]:
    """Write `checkpoint` to the folder `out`, which must not exist; yields the name of each part before it is written.

    The folder appears under its name only when complete. Raises UsageError where it cannot be made, or where `target`
    cannot hold the checkpoint.
    """
    if checkpoint.format == target:
        raise UsageError(f"it is in {target} format already", hint="name the other one with --to, or copy the folder")
    load.check(checkpoint)
    if target == "original":
        _check_representable(checkpoint)
    partial = _claim(checkpoint, out)
    try:
        yield from (_to_original if target == "original" else _to_diffusers)(checkpoint, partial)
        layout.recognise(partial)
    except (OSError, SafetensorError, RuntimeError) as fault:  # torch.save meets a full disk with a RuntimeError
        shutil.rmtree(partial, ignore_errors=True)
        full = not isinstance(fault, OSError) or is_full(fault)
        hint = "give a place with room" if full else "give another place"
        raise RenderError(f"{out} could not be written: {_reason(fault)}", hint) from None
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    try:
        partial.rename(out)
    except OSError as fault:  # the work is done: not thrown away because something came to lie there meanwhile
        told = f"the checkpoint is in {partial}: {out} cannot be made: {_reason(fault)}"
        raise RenderError(told, hint=f"mv {shlex.quote(str(partial))} to another place") from None


def _claim(checkpoint: Checkpoint, out: Path) -> Path:
    """Make the folder that becomes `out`. Its making shows what stands in the way, another conversion included."""
    if os.path.lexists(out):
        raise UsageError(f"{out} exists already", hint="give a new folder, or remove that one")
    parent = out.absolute().parent
    if not parent.is_dir():
        raise UsageError(f"the folder {out.parent} does not exist", hint=f"mkdir -p {shlex.quote(str(out.parent))}")
    if parent.resolve().is_relative_to(checkpoint.tokenizer.resolve()):
        raise UsageError(f"{out} lies inside the tokenizer that would be copied", hint="give a folder elsewhere")
    free = shutil.disk_usage(parent).free
    if checkpoint.bytes > free:
        raise UsageError(
            f"{parent} has {free / 1e9:.1f} GB left and {checkpoint.bytes / 1e9:.1f} GB are needed",
            hint="give a folder on a larger disk",
        )
    partial = out.with_name(f"{out.name}.partial")
    try:
        partial.mkdir()
    except FileExistsError:
        raise UsageError(
            f"{partial} exists: another run is making {out.name}, or was killed while it did",
            hint=f"if none is running: rm -r {shlex.quote(str(partial))}",
        ) from None
    except OSError as fault:
        raise UsageError(f"{partial} cannot be made: {_reason(fault)}", hint="give another place or name") from None
    return partial


def _reason(fault: Exception) -> str:
    return (isinstance(fault, OSError) and fault.strerror) or printable(str(fault).partition("\n")[0])


def _to_original(checkpoint: Checkpoint, out: Path) -> Iterator[str]:
    yield "transformer"
    write_json(out / "config.json", {**checkpoint.config.to_original(), "_diffusers_version": diffusers.__version__})
    _write_shards(_renamed(checkpoint.transformer, layout.transformer_name), out, STEMS["transformer"])
    yield "text encoder"
    torch.save(_renamed(checkpoint.text_encoder, keys.TEXT_ENCODER.to_original), out / layout.TEXT_ENCODER_FILE)
    yield "vae"
    torch.save(_renamed(checkpoint.vae, keys.VAE.to_original), out / layout.VAE_FILE)
    yield "tokenizer"
    _copy_tokenizer(checkpoint, out / layout.TOKENIZER_FOLDER)


def _to_diffusers(checkpoint: Checkpoint, out: Path) -> Iterator[str]:
    configs: dict[str, dict[str, Any]] = {
        "transformer": checkpoint.config.to_diffusers(),
        "vae": {"_class_name": "AutoencoderKLWan", **_public(load.empty_vae(checkpoint).config)},
        "text_encoder": {**load.empty_text_encoder(checkpoint).config.to_dict(), "architectures": ["UMT5EncoderModel"]},
    }
    renames: dict[str, tuple[list[Path], Rename]] = {
        "transformer": (
            checkpoint.transformer,
            lambda key: keys.TRANSFORMER.to_diffusers(layout.transformer_name(key)),
        ),
        "vae": (checkpoint.vae, layout.vae_name),
        "text_encoder": (checkpoint.text_encoder, layout.text_encoder_name),
    }
    for part, (files, rename) in renames.items():
        yield part.replace("_", " ")
        (out / part).mkdir()
        write_json(out / part / "config.json", configs[part])
        _write_shards(_renamed(files, rename), out / part, STEMS[part])
    yield "tokenizer"
    _copy_tokenizer(checkpoint, out / "tokenizer")
    write_pipeline(out, defaults_of(checkpoint.config.dim).shift)


def write_pipeline(out: Path, shift: float) -> None:
    """What makes a WanPipeline of the parts in a Diffusers folder: its scheduler and its index."""
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
    )
    scheduler.save_pretrained(out / "scheduler")
    index = {
        "_class_name": "WanPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],  # which reads tokenizer.json as it is
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": [None, None],  # Wan2.2 has one
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    write_json(out / "model_index.json", index)


def _renamed(files: list[Path], rename: Rename) -> dict[str, Tensor]:
    """All tensors, still on the memory map: writing them reads each once."""
    state: dict[str, Tensor] = {}
    for key, tensor in read(files):
        state.setdefault(rename(key), tensor)  # the first of two, as loading has it
    return state


def _write_shards(state: dict[str, Tensor], folder: Path, stem: str) -> None:
    split = split_torch_state_dict_into_shards(
        state, max_shard_size=SHARD_SIZE, filename_pattern=f"{stem}{{suffix}}.safetensors"
    )
    for name, parameters in split.filename_to_tensors.items():
        shard: dict[str, Tensor] = {}
        places: set[int] = set()
        for key in parameters:
            tensor = state[key].contiguous()
            shard[key] = tensor.clone() if tensor.data_ptr() in places else tensor  # pickles may hold one tensor twice
            places.add(tensor.data_ptr())
        save_file(shard, folder / name, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / f"{stem}.safetensors.index.json", index)


def _copy_tokenizer(checkpoint: Checkpoint, out: Path) -> None:
    out.mkdir(parents=True)
    for name in layout.TOKENIZER_FILES:
        if (checkpoint.tokenizer / name).is_file():
            shutil.copyfile(checkpoint.tokenizer / name, out / name)


def _check_representable(checkpoint: Checkpoint) -> None:
    """The original format has no configuration for VAE and text encoder: Wan2.1's own code is that configuration."""
    plain = replace(
        checkpoint,
        vae_config=layout.vae_config_of(renamed(headers(checkpoint.vae), layout.vae_name)),
        text_config=layout.text_config_of(renamed(headers(checkpoint.text_encoder), layout.text_encoder_name)),
    )
    parts = (
        ("VAE", _public(load.empty_vae(plain).config), _public(load.empty_vae(checkpoint).config)),
        ("text encoder", _arithmetic(plain), _arithmetic(checkpoint)),
    )
    for part, wanted, have in parts:
        if differ := sorted(key for key in wanted if wanted[key] != have.get(key)):
            told = "this model cannot be written in the original format, which has no place for the settings of its"
            raise UsageError(
                f"{told} {part} ({', '.join(differ)})", hint="keep it in Diffusers' format, which holds them"
            )


def _arithmetic(checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields of a text encoder's configuration that change what it computes."""
    config = load.empty_text_encoder(checkpoint).config
    widths = ("d_kv", "num_heads", "relative_attention_num_buckets", "relative_attention_max_distance")
    return {name: getattr(config, name) for name in (*widths, "layer_norm_epsilon", "dense_act_fn", "is_gated_act")}


def _public(config: Any) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dict(config).items()
        if not key.startswith("_")
    }
