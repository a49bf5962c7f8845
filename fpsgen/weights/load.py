"""From a checkpoint to modules: each component is built without memory, compared with its files, then filled.

Weights come from safetensors and GGUF, and from `.pth` files as far as they are nothing but tensors: pickled code is
never run. All but GGUF is memory-mapped, so a tensor is copied once, to where it will live.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tokenizers
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fpsgen.attention.quantize import Quantized
from fpsgen.errors import ModelError
from fpsgen.printable import printable
from fpsgen.wan.autoencoder import WanVAE
from fpsgen.wan.config import FETCH_AGAIN, OURS
from fpsgen.wan.image_encoder import ImageEncoder, vision_transformer
from fpsgen.wan.linear import Linear, expanded
from fpsgen.wan.offload import Home, Streamed
from fpsgen.wan.plan import StepPlan
from fpsgen.wan.text_encoder import KnownTexts, TextEncoder
from fpsgen.wan.tokenizer import TEXT_LENGTH, Tokenizer
from fpsgen.wan.transformer import FLOAT32_PARAMETERS, WanTransformer
from fpsgen.wan.umt5 import UMT5Encoder
from fpsgen.wan.vae import VAE
from fpsgen.weights import lora
from fpsgen.weights.headers import headers, read_json, some
from fpsgen.weights.layout import Checkpoint, TransformerPart
from fpsgen.weights.read import Value, copied, first, plain, read

Module = TypeVar("Module", bound=nn.Module)

_IDENTIFIED = 64  # values of a parameter


def load_transformer(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    steps: Sequence[StepPlan] = (),
    part: TransformerPart = "transformer",
    check: Callable[[], None] = lambda: None,
    trains: bool = False,
    home: Home = "device",
) -> WanTransformer:
    """The transformer, its matrix products in `dtype`, with the checkpoint's LoRAs in its weights. steps: all that it
    will compute, if that is known, so that weights are rounded to 8 bits for it as they are read. part: which of two
    experts. check: called before each parameter is kept; may raise. trains: whether it will be trained; if not, linear
    layers keep what is in 8 bits in their files. home: where its blocks are while they do not compute, with `steps` all
    that it ever does. ModelError where files do not fit, as for the other parts."""
    model, dtypes = empty_transformer(checkpoint), by_name(dtype)
    merge = lora.merging(checkpoint.loras, shapes(model), device, checkpoint.experts[part])

    def keep(name: str, value: Value) -> Tensor:
        check()
        if not isinstance(value, Quantized):
            return model.hold(name, merge(name, value).to(device, dtypes(name), copy=True), steps)
        own = copied(value, device)
        stays = not trains and model.linear(name) is not None
        if stays and not checkpoint.loras:
            return model.hold_8_bits(name, own, dtypes(name), steps)
        values = expanded(own, torch.float32)
        merged = merge(name, values)
        if stays and merged is values:
            return model.hold_8_bits(name, own, dtypes(name), steps)
        return model.hold(name, merged.to(dtypes(name)), steps)

    if home == "device":
        return _filled(model, checkpoint, part, keep)
    read = _read_by_blocks(model, checkpoint, part, keep, "blocks", model.blocks)
    model.streamed = Streamed(list(model.layers()), read, model.remember, device, home)
    return model


def load_vae(checkpoint: Checkpoint, device: torch.device) -> VAE:
    """The VAE, in float32 as the original runs it."""
    return _filled(empty_vae(checkpoint), checkpoint, "vae", lambda _, value: plain(value, device, torch.float32))


def load_image_encoder(checkpoint: Checkpoint, device: torch.device) -> ImageEncoder:
    """The image encoder, in float32, for it runs but once."""
    network = empty_image_encoder(checkpoint)
    return ImageEncoder(
        _filled(network, checkpoint, "image_encoder", lambda _, value: plain(value, device, torch.float32))
    )


def load_text_encoder(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    known: KnownTexts | None = None,
    home: Home = "device",
) -> TextEncoder:
    """Tokenizer and UMT5 encoder, that in `dtype`, whose weights are loaded when they are first needed. Linear layers
    keep what is in 8 bits in their files. home: where its blocks are while they do not compute."""

    def encoder() -> UMT5Encoder:
        model = empty_text_encoder(checkpoint)

        def keep(name: str, value: Value) -> Tensor:
            layer = model.get_submodule(name.rpartition(".")[0])
            if isinstance(value, Quantized) and isinstance(layer, Linear):
                return layer.hold_8_bits(copied(value, device), dtype, {"16bit"})
            return plain(value, device, dtype)

        if home == "device":
            return _filled(model, checkpoint, "text_encoder", keep)
        stack = model.encoder
        read = _read_by_blocks(model, checkpoint, "text_encoder", keep, "encoder.block", stack.block)
        stack.streamed = Streamed(list(stack.block), read, lambda number: None, device, home)
        return model

    return TextEncoder(load_tokenizer(checkpoint), encoder, device, known)


def _filled(model: Module, checkpoint: Checkpoint, part: str, keep: Callable[[str, Value], Tensor]) -> Module:
    """A module that was built on the meta device, with its parameters, which are what `keep` makes of each as it is
    read: a copy, off the memory map."""
    _check_part(model, checkpoint, part)
    model.load_state_dict(_state(checkpoint, part, keep), assign=True)
    return model.eval().requires_grad_(False)


def _read_by_blocks(
    model: nn.Module,
    checkpoint: Checkpoint,
    part: str,
    keep: Callable[[str, Value], Tensor],
    name: str,
    blocks: nn.ModuleList,
) -> Callable[[int], None]:
    """As `_filled`, of all that is in none of the blocks called `name`; returns what fills the one of a number."""
    _check_part(model, checkpoint, part)
    ends = _state(checkpoint, part, keep, lambda own: not own.startswith(f"{name}."))
    model.load_state_dict(ends, strict=False, assign=True)
    model.eval().requires_grad_(False)

    def read(number: int) -> None:
        prefix = f"{name}.{number}."
        state = _state(checkpoint, part, keep, lambda own: own.startswith(prefix))
        blocks[number].load_state_dict({own.removeprefix(prefix): value for own, value in state.items()}, assign=True)

    return read


def _state(
    checkpoint: Checkpoint,
    part: str,
    keep: Callable[[str, Value], Tensor],
    wanted: Callable[[str], bool] = lambda name: True,
) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, value in parameters(checkpoint, part, wanted=wanted):
        if name not in state:  # the text encoder's embedding may be there twice, see `renamed`
            state[name] = keep(name, value)
    return state


def parameters(
    checkpoint: Checkpoint, part: str, most: int | None = None, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, Value]]:
    """Every parameter of a part by our module's name, as `read` gives them. wanted: by name, where none lies in a file
    with others as one tensor."""
    own = checkpoint.part(part)
    if own.split is None:
        found = read(getattr(checkpoint, part), most, lambda key: wanted(own.rename(key)))
    else:
        found = read(getattr(checkpoint, part))
    for key, value in found:
        if own.split is None:
            yield own.rename(key), value
            continue
        values = value if isinstance(value, Tensor) else value.dequantize()
        split = own.split(key, tuple(values.shape))
        for (name, shape), piece in zip(split, values.chunk(len(split)) if split else (), strict=True):
            yield name, piece.reshape(shape)


def identity(checkpoint: Checkpoint, part: str) -> str:
    """16 hexadecimal digits that tell a part's weights from others, the same in either format, in any dtype and on any
    disk: of the first values of each parameter, as bfloat16. Little is read for them."""
    told = hashlib.sha256()
    values = {name: first(value, _IDENTIFIED) for name, value in parameters(checkpoint, part, _IDENTIFIED)}
    for name, some_values in sorted(values.items()):
        told.update(name.encode() + some_values.bfloat16().view(torch.int16).numpy().tobytes())
    return told.hexdigest()[:16]


def fingerprint(checkpoint: Checkpoint, transformer: WanTransformer) -> str:
    """16 hexadecimal digits that tell what renders from others: `transformer`'s own; of two experts, which need not be
    in memory, those of their files and LoRAs."""
    if not checkpoint.transformer_2:
        return transformer.fingerprint()
    told = [identity(checkpoint, part) for part in checkpoint.experts]
    told += sorted(f"{own.sha256} {own.scale!r} {own.expert}" for own in checkpoint.loras)
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """What tokenizer.json says; of its configuration, only what that file cannot say. ModelError where a file is
    damaged, where prompts would not end as Wan2.1's do, or where the encoder has no rows for a token.

    transformers' classes are not asked: some rebuild a tokenizer from its vocabulary and lose what else the file says
    (its T5Tokenizer knows no bytes, and emoji fall out of a prompt).
    """
    file, settings = checkpoint.tokenizer / "tokenizer.json", checkpoint.tokenizer / "tokenizer_config.json"
    config = read_json(settings) if settings.exists() else {}
    stranger = "a \U000f1234"  # ends in a character that nobody has
    try:
        library = tokenizers.Tokenizer.from_buffer(file.read_bytes())
        library.no_padding()
        library.no_truncation()
        largest = max(library.get_vocab().values(), default=0)
        empty, tried = library.encode(""), library.encode(stranger)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as fault:  # the library has no type of its own, and its panics are no Exceptions
        reason = printable(str(fault).strip().partition("\n")[0] or type(fault).__name__)
        raise ModelError(f"{printable(file)} cannot be used: {reason}", FETCH_AGAIN) from None
    if largest >= (rows := int(checkpoint.text_config["vocab_size"])):
        raise ModelError(f"its tokenizer counts tokens up to {largest}, its text encoder knows {rows}", FETCH_AGAIN)
    name = config.get("eos_token", "</s>")
    name = name.get("content") if isinstance(name, dict) else name
    end = library.token_to_id(name) if isinstance(name, str) else None
    if end is None or empty.ids[-1:] != [end]:
        message = (
            f"its tokenizer.json does not end a prompt with the end token {printable(name)}: check its post_processor"
        )
        raise ModelError(message, FETCH_AGAIN)
    unknown = [token for token, place in zip(tried.ids, tried.offsets, strict=True) if place[1] == len(stranger)]
    if not unknown:
        raise ModelError(
            "its tokenizer.json has no unk token, so that unknown characters would be dropped", FETCH_AGAIN
        )
    return Tokenizer(library, unknown[0] if len(unknown) == 1 else None, _longest(config))


def _longest(config: dict[str, Any]) -> int:
    """Most tokens of a prompt by the tokenizer's configuration; those without a limit say 10^30, or nothing."""
    longest = config.get("model_max_length", TEXT_LENGTH)
    if isinstance(longest, bool) or not isinstance(longest, int | float) or not longest >= 2:
        message = f"its tokenizer_config.json says model_max_length = {printable(longest)}; Wan2.1 has {TEXT_LENGTH}"
        raise ModelError(message, FETCH_AGAIN)
    return int(min(longest, TEXT_LENGTH))


def check(checkpoint: Checkpoint) -> None:
    """Compare all files with what is to be loaded from them, weights by their headers; ModelError tells all misfits."""
    for part in checkpoint.parts:
        _check_part(EMPTY[part](checkpoint), checkpoint, part)
    load_tokenizer(checkpoint)


def _check_part(model: nn.Module, checkpoint: Checkpoint, part: str) -> None:
    """Compare a part's files with its module, by headers alone; ModelError that counts and names all that does not
    fit."""
    files: list[Path] = getattr(checkpoint, part)
    there, wanted = checkpoint.part(part).headers(headers(files)), shapes(model)
    misfits = {
        "missing": [name for name in wanted if name not in there],
        "unexpected": [name for name in there if name not in wanted],
        "of another shape": [
            f"{name} {list(there[name].shape)}, not {list(shape)}"
            for name, shape in wanted.items()
            if name in there and there[name].shape != shape
        ],
        "of a type that is not read": [
            f"{name} {there[name].dtype}" for name in wanted if name in there and not there[name].is_read
        ],
    }
    if message := "; ".join(f"{len(names)} {misfit}: {some(names)}" for misfit, names in misfits.items() if names):
        which = files[0] if len(files) == 1 else files[0].parent
        hint = "use the fp32, fp16, bf16, FP8 or GGUF files of one of the models that `fpsgen models` lists"
        raise ModelError(f"{printable(which)} does not fit its model; parameters {message}", hint=hint)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of all parameters, by name."""
    return {name: tuple(value.shape) for name, value in model.named_parameters()}


def in_8_bits(model: nn.Module, checkpoint: Checkpoint, part: str) -> set[str]:
    """The parameters of a part that stay in 8 bits in memory, as they are in their files. model: without values."""
    there = checkpoint.part(part).headers(headers(getattr(checkpoint, part)))
    return {name for name in of_linears(model) & there.keys() if there[name].is_8_bits}


def of_linears(model: nn.Module) -> set[str]:
    """The names of all weights that can be in 8 bits."""
    return {f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, Linear)}


def dtypes(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """The dtypes of each component's tensors on disk, by safetensors' names."""
    return {
        part: sorted({header.dtype for header in headers(getattr(checkpoint, part)).values()})
        for part in checkpoint.parts
    }


def by_name(dtype: torch.dtype) -> Callable[[str], torch.dtype]:
    """The dtype of each of the transformer's parameters: `dtype`, but for those that keep float32 whatever it is."""
    return lambda name: dtype if FLOAT32_PARAMETERS.isdisjoint(name.split(".")) else torch.float32


class _NoValues(TorchFunctionMode):
    """Modules get no first values. Random numbers on the meta device make torch load its compiler, a second's work."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if getattr(func, "__module__", "") == "torch.nn.init" else func(*args, **kwargs)


def empty_transformer(checkpoint: Checkpoint) -> WanTransformer:
    with torch.device("meta"), _NoValues():
        return WanTransformer(checkpoint.config)


def empty_vae(checkpoint: Checkpoint) -> VAE:
    try:
        with torch.device("meta"), _NoValues():
            if checkpoint.vae_config.get("is_residual"):
                from fpsgen.wan.residual_vae import ResidualVAE  # diffusers' takes a second to load

                return ResidualVAE(checkpoint.vae_config)
            return WanVAE(checkpoint.vae_config)
    except Exception:  # whatever comes of values that are none
        raise ModelError("its vae/config.json describes no VAE of Wan", OURS) from None


def empty_text_encoder(checkpoint: Checkpoint) -> UMT5Encoder:
    try:
        with torch.device("meta"), _NoValues():
            return UMT5Encoder(checkpoint.text_config)
    except Exception:  # as above
        raise ModelError("its text_encoder/config.json describes no UMT5 encoder", FETCH_AGAIN) from None


def empty_image_encoder(checkpoint: Checkpoint) -> nn.Module:
    with torch.device("meta"), _NoValues():
        return vision_transformer(checkpoint.image_config)


EMPTY: Mapping[str, Callable[[Checkpoint], nn.Module]] = {
    "transformer": empty_transformer,
    "transformer_2": empty_transformer,
    "vae": empty_vae,
    "text_encoder": empty_text_encoder,
    "image_encoder": empty_image_encoder,
}
