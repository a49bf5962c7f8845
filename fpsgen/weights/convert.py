"""Write checkpoints: one in the other format, the same tensors, bit for bit, under the other's names and files; or one
with another transformer."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fpsgen.errors import RenderError, UsageError, option
from fpsgen.files import is_full, write_json
from fpsgen.machine import installed
from fpsgen.printable import printable, readable
from fpsgen.settings import DEFAULTS
from fpsgen.wan.linear import expanded
from fpsgen.weights import configs, layout, load
from fpsgen.weights.headers import headers, read_json, trained_for
from fpsgen.weights.kinds import FLOATS, Header
from fpsgen.weights.layout import PARTS, TOKENIZERS, Checkpoint, Format
from fpsgen.weights.models import Model
from fpsgen.weights.read import read

if TYPE_CHECKING:
    from transformers import UMT5Config

SHARD_SIZE = "5GB"
_VISION = "vision_model."  # before transformers' names of an image encoder's parameters
# What transformers' CLIPImageProcessor does with an image before CLIP sees it, but for its size.
_IMAGES = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "resample": 3,
    "do_center_crop": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_convert_rgb": True,
}


def convert(checkpoint: Checkpoint, target: Format, out: Path, **metadata: str) -> Iterator[str]:
    """Write `checkpoint` to the folder `out`, which must not exist; yields the name of each part before it is written.
    metadata: of the transformer's files, beside the preset that they were trained for.

    The folder appears under its name only when complete. Raises UsageError where it cannot be made, or where `target`
    cannot hold the checkpoint.
    """
    if checkpoint.format == target:
        hint = f"name the other one with {option('to')}, or copy the folder"
        raise UsageError(f"it is in {target} format already", hint)
    load.check(checkpoint)
    _check_plain(checkpoint)
    if target == "original":
        _check_representable(checkpoint)
    if preset := trained_for(checkpoint.transformer[0]):
        metadata["trained_for"] = preset
    with _complete(_claim(checkpoint, out), out) as partial:
        for name in checkpoint.parts:
            yield checkpoint.words(name)
            own = metadata if name == "transformer" else {}
            _write_part(checkpoint, name, _read(checkpoint, name, target), target, partial, **own)
        yield "tokenizer"
        _copy_tokenizer(checkpoint, target, partial)
        if target == "diffusers":
            write_pipeline(partial, DEFAULTS[checkpoint.kind].shift, checkpoint)


def write_model(model: Model, transformer: Mapping[str, Tensor], out: Path, **metadata: str) -> None:
    """Write `model` to the folder `out`, in its own format, with other parameters of the transformer, by our module's
    names, each in the dtype that it has in the model's files, or in bfloat16 where that has fewer bits. Other weights
    are hard links where the disk allows it. metadata: of the transformer's files.

    The folder appears when complete, in place of what an earlier run wrote there. RenderError where it cannot be made.
    """
    checkpoint, form = model.checkpoint, model.checkpoint.format
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    with _complete(partial, out, replaces=True):
        partial.mkdir(parents=True)
        own = PARTS["transformer"]
        old = {own.in_format(key, form): header for key, header in headers(checkpoint.transformer).items()}
        state = {key: transformer[own.rename(key)].to(_dtype(header)) for key, header in old.items()}
        _write_part(checkpoint, "transformer", state, form, partial, **model.few_steps_metadata, **metadata)
        for name in (name for name in checkpoint.parts if name not in layout.EXPERTS):
            if not _link_part(checkpoint, name, partial):
                _write_part(checkpoint, name, _read(checkpoint, name, form), form, partial)
        _copy_tokenizer(checkpoint, form, partial)
        if form == "diffusers":
            others = ("model_index.json", "scheduler/scheduler_config.json", "image_processor/preprocessor_config.json")
            _copy(checkpoint.tokenizer.parent, others, partial)
        written = layout.recognise(partial)
        load.check(written)
        if model.pocket:
            files = sorted(file for name in written.parts for file in getattr(written, name))
            digests = {
                file.relative_to(partial).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
            }
            write_json(partial / "pocket.json", read_json(model.folder / "pocket.json") | {"sha256": digests})


@contextmanager
def _complete(partial: Path, out: Path, replaces: bool = False) -> Iterator[Path]:
    """The folder `partial`, which gets the name `out` when what is inside has written a checkpoint to it; it is removed
    where that failed. replaces: whether a folder that is called `out` already is removed before."""
    try:
        yield partial
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
        if replaces and out.is_dir():
            shutil.rmtree(out)
        partial.rename(out)
    except OSError as fault:  # the work is done: not thrown away because something came to lie there meanwhile
        message = f"the checkpoint is in {partial}: {out} cannot be made: {_reason(fault)}"
        raise RenderError(message, hint=f"mv {shlex.quote(str(partial))} to another place") from None


def _claim(checkpoint: Checkpoint, out: Path) -> Path:
    """Make the folder that becomes `out`; UsageError if something stands in the way, such as another conversion."""
    parent, partial = out.absolute().parent, out.with_name(f"{out.name}.partial")
    if os.path.lexists(out):
        raise UsageError(f"{out} exists already", hint="give a new folder, or remove that one")
    if not parent.is_dir():
        raise UsageError(f"the folder {out.parent} does not exist", hint=f"mkdir -p {shlex.quote(str(out.parent))}")
    if parent.resolve().is_relative_to(checkpoint.tokenizer.resolve()):
        raise UsageError(f"{out} lies inside the tokenizer that would be copied", hint="give a folder elsewhere")
    if checkpoint.bytes > (free := shutil.disk_usage(parent).free):
        message = f"{parent} has {readable(free)} left and {readable(checkpoint.bytes)} are needed"
        raise UsageError(message, hint="give a folder on a larger disk")
    try:
        partial.mkdir()
    except FileExistsError:
        message = f"{partial} exists: another run is making {out.name}, or was killed while it did"
        raise UsageError(message, hint=f"if none is running: rm -r {shlex.quote(str(partial))}") from None
    except OSError as fault:
        raise UsageError(f"{partial} cannot be made: {_reason(fault)}", hint="give another place or name") from None
    return partial


def _reason(fault: Exception) -> str:
    return (isinstance(fault, OSError) and fault.strerror) or printable(str(fault).partition("\n")[0])


def _read(checkpoint: Checkpoint, name: str, target: Format) -> dict[str, Tensor]:
    """A part's tensors by their names in `target`, on the memory map: writing reads each once. The image encoder's have
    transformers' names in both, for the original's file holds more than is read."""
    part = checkpoint.part(name)
    if part.split:
        pieces = ((key, value) for key, value in load.parameters(checkpoint, name) if isinstance(value, Tensor))
        return {f"{_VISION}{key}": value for key, value in pieces}  # which all are, for `_check_plain` has said so
    state: dict[str, Tensor] = {}
    table = headers(getattr(checkpoint, name))
    for key, value in read(getattr(checkpoint, name)):
        if not isinstance(value, Tensor):
            value = expanded(value, _dtype(table[key]))
        # The first of two, as loading has it.
        state.setdefault(part.in_format(key, target), value.to(_dtype(table[key])))
    return state


def _dtype(header: Header) -> torch.dtype:
    """What a parameter is written in: its own type, and bfloat16 for what is in fewer bits."""
    return {"F32": torch.float32, "F16": torch.float16}.get(header.dtype, torch.bfloat16)


def _write_part(
    checkpoint: Checkpoint, name: str, state: dict[str, Tensor], target: Format, out: Path, **metadata: str
) -> None:
    part = checkpoint.part(name)
    if target == "original" and part.split:
        save_file(state, out / layout.CLIP_VISION, {"format": "pt"})
        return
    if target == "original" and part.file:
        torch.save(state, out / part.file)
        return
    folder = out / name
    if target == "original":
        folder = out / layout.EXPERTS[name] if checkpoint.transformer_2 else out
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", _config(checkpoint, name, target))
    _write_shards(state, folder, part.stem, metadata)


def _link_part(checkpoint: Checkpoint, name: str, out: Path) -> bool:
    """Put a part's files, as they are, into a folder of the checkpoint's own format; False where they lie elsewhere in
    another form, beside a transformer in a file of its own."""
    part, files = checkpoint.part(name), getattr(checkpoint, name)
    folder = out / name if checkpoint.format == "diffusers" else out
    if checkpoint.format == "original" and [file.name for file in files] != [part.file]:
        return False
    if checkpoint.format == "diffusers" and not all(file.name.startswith(part.stem) for file in files):
        return False  # one that was named in the place of the model's own
    folder.mkdir(exist_ok=True)
    for file in files:
        try:
            os.link(file.resolve(), folder / file.name)  # the hub's cache has links
        except OSError:  # another disk, or one without such links
            shutil.copyfile(file, folder / file.name)
    if checkpoint.format == "diffusers":
        _copy(files[0].parent, ("config.json", f"{part.stem}.safetensors.index.json"), folder)
    return True


def _copy_tokenizer(checkpoint: Checkpoint, target: Format, out: Path) -> None:
    _copy(checkpoint.tokenizer, layout.TOKENIZER_FILES, out / TOKENIZERS[target])


def _copy(source: Path, names: Iterable[str], target: Path) -> None:
    """Copy those of the files that are there."""
    for name in filter(lambda name: (source / name).is_file(), names):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def _config(checkpoint: Checkpoint, part: str, target: Format) -> dict[str, Any]:
    """The content of a part's config.json."""
    if target == "original":
        return {**configs.to_original(checkpoint.config), "_diffusers_version": installed("diffusers")}
    if part in layout.EXPERTS:
        return configs.to_diffusers(checkpoint.config)
    if part == "image_encoder":
        return {"architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model", **checkpoint.image_config}
    if part == "vae":
        return {"_class_name": "AutoencoderKLWan", **_vae_settings(checkpoint)}
    return {**_text_settings(checkpoint).to_dict(), "architectures": ["UMT5EncoderModel"]}


def write_pipeline(out: Path, shift: float, checkpoint: Checkpoint | None = None) -> None:
    """Add scheduler and index to the parts in a Diffusers folder, which make it a pipeline: that of a checkpoint, or
    one of text to video with one transformer."""
    import diffusers

    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
    )
    scheduler.save_pretrained(out / "scheduler")
    absent, transformer = [None, None], ["diffusers", "WanTransformer3DModel"]
    index: dict[str, Any] = {
        "_class_name": "WanPipeline",
        "_diffusers_version": installed("diffusers"),
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],  # which reads tokenizer.json as it is
        "transformer": transformer,
        "transformer_2": absent,
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    if checkpoint:
        index["expand_timesteps"] = checkpoint.config.time_per_token
    if checkpoint and checkpoint.transformer_2:
        boundary = checkpoint.boundary or DEFAULTS[checkpoint.kind].boundary
        index |= {"transformer_2": transformer, "boundary_ratio": boundary}
    if checkpoint and checkpoint.config.condition_channels:
        index |= {"_class_name": "WanImageToVideoPipeline", "image_encoder": absent, "image_processor": absent}
    if checkpoint and checkpoint.image_encoder:
        index["image_encoder"] = ["transformers", "CLIPVisionModel"]
        index["image_processor"] = ["transformers", "CLIPImageProcessor"]
        side = checkpoint.image_config["image_size"]
        own = {"crop_size": {"height": side, "width": side}, "size": {"shortest_edge": side}}
        (out / "image_processor").mkdir()
        write_json(out / "image_processor" / "preprocessor_config.json", _IMAGES | own)
    write_json(out / "model_index.json", index)


def _write_shards(state: dict[str, Tensor], folder: Path, stem: str, metadata: Mapping[str, str]) -> None:
    split = huggingface_hub.split_torch_state_dict_into_shards(
        state, max_shard_size=SHARD_SIZE, filename_pattern=f"{stem}{{suffix}}.safetensors"
    )
    for name, parameters in split.filename_to_tensors.items():
        shard: dict[str, Tensor] = {}
        places: set[int] = set()
        for key in parameters:
            tensor = state[key].contiguous()
            shard[key] = tensor.clone() if tensor.data_ptr() in places else tensor  # pickles may hold one tensor twice
            places.add(tensor.data_ptr())
        save_file(shard, folder / name, {"format": "pt", **metadata})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / f"{stem}.safetensors.index.json", index)


def _check_plain(checkpoint: Checkpoint) -> None:
    """Refuse weights in fewer than 16 bits, whose scales neither format has a place for."""
    for part in checkpoint.parts:
        tensors = checkpoint.part(part).headers(headers(getattr(checkpoint, part)))
        if packed := {header.dtype for header in tensors.values()} - {*FLOATS}:
            told = ", ".join(sorted(packed))
            message = f"its {checkpoint.words(part)} is in {told}, which the other format has no place for"
            raise UsageError(message, hint="convert the fp16 or bf16 files of the same model")


def _check_representable(checkpoint: Checkpoint) -> None:
    """The original format has no configuration for VAE, text encoder and the boundary between experts: Wan's own code
    is that configuration."""
    plain = checkpoint
    for part in ("vae", "text_encoder"):
        plain = replace(plain, **layout.fields_of(part, getattr(checkpoint, part)))
    parts = (
        ("VAE", _vae_settings(plain), _vae_settings(checkpoint)),
        ("text encoder", _arithmetic(plain), _arithmetic(checkpoint)),
    )
    published = DEFAULTS[checkpoint.kind].boundary
    if checkpoint.boundary not in (None, published):
        told = f"the original format cannot say that the boundary between the two experts is {checkpoint.boundary:g}"
        raise UsageError(f"{told}; there it is {published:g}", hint="keep it in Diffusers' format, which says it")
    for part, wanted, have in parts:
        if differ := sorted(key for key in wanted if wanted[key] != have.get(key)):
            message = "this model cannot be written in the original format, which has no place for the settings of its"
            hint = "keep it in Diffusers' format, which holds them"
            raise UsageError(f"{message} {part} ({', '.join(differ)})", hint)


def _arithmetic(checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields of a text encoder's configuration that change what it computes."""
    config = _text_settings(checkpoint)
    widths = ("d_kv", "num_heads", "relative_attention_num_buckets", "relative_attention_max_distance")
    return {name: getattr(config, name) for name in (*widths, "layer_norm_epsilon", "dense_act_fn", "is_gated_act")}


def _vae_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """A VAE's whole configuration as diffusers has it."""
    import diffusers  # takes seconds, and what is only trained needs it not

    with torch.device("meta"):
        config = diffusers.AutoencoderKLWan.from_config(checkpoint.vae_config).config
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in config.items()
        if not key.startswith("_")
    }


def _text_settings(checkpoint: Checkpoint) -> UMT5Config:
    """A text encoder's whole configuration as transformers has it."""
    from transformers import UMT5Config  # as above

    return UMT5Config.from_dict(checkpoint.text_config)
