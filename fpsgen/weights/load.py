"""From a checkpoint to modules: each component is built without memory, compared with its files, then filled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import torch
from diffusers import AutoencoderKLWan
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from fpsgen.errors import ModelError
from fpsgen.printable import printable
from fpsgen.wan.config import FETCH_AGAIN, OURS
from fpsgen.wan.tokenizer import TEXT_LENGTH, Tokenizer
from fpsgen.wan.transformer import FLOAT32_PARAMETERS, WanTransformer
from fpsgen.weights.checkpoint import check_parameters, fill
from fpsgen.weights.headers import Rename, headers, read_json
from fpsgen.weights.layout import STEMS, Checkpoint, text_encoder_name, transformer_name, vae_name


def load_transformer(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> WanTransformer:
    """The transformer, its matrix products in `dtype`; see `checkpoint.fill` for errors."""
    model = empty_transformer(checkpoint)
    fill(
        model,
        checkpoint.transformer,
        transformer_name,
        device,
        lambda name: torch.float32 if stays_float32(name) else dtype,
    )
    return model


def load_vae(checkpoint: Checkpoint, device: torch.device) -> AutoencoderKLWan:
    """The VAE, in float32 as the original runs it."""
    model = empty_vae(checkpoint)
    fill(model, checkpoint.vae, vae_name, device, lambda name: torch.float32)
    return model


def load_text_encoder(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> UMT5EncoderModel:
    """The UMT5 encoder in `dtype`."""
    model = empty_text_encoder(checkpoint)
    fill(model, checkpoint.text_encoder, text_encoder_name, device, lambda name: dtype)
    return model


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
        raise ModelError(f"{printable(file)} cannot be used: {_first_line(fault)}", FETCH_AGAIN) from None
    if largest >= (rows := int(checkpoint.text_config["vocab_size"])):
        raise ModelError(f"its tokenizer counts tokens up to {largest}, its text encoder knows {rows}", FETCH_AGAIN)
    name = config.get("eos_token", "</s>")
    name = name.get("content") if isinstance(name, dict) else name
    end = library.token_to_id(name) if isinstance(name, str) else None
    if end is None or empty.ids[-1:] != [end]:
        told = (
            f"its tokenizer.json does not end a prompt with the end token {printable(name)}: has it a post_processor?"
        )
        raise ModelError(told, FETCH_AGAIN)
    own = [token for token, place in zip(tried.ids, tried.offsets, strict=True) if place[1] == len(stranger)]
    if not own:
        raise ModelError("its tokenizer.json leaves out what it does not know: it has no unk token", FETCH_AGAIN)
    return Tokenizer(library, own[0] if len(own) == 1 else None, _longest(config))


def _longest(config: dict[str, Any]) -> int:
    """Most tokens of a prompt by the tokenizer's configuration; those without a limit say 10^30, or nothing."""
    longest = config.get("model_max_length", TEXT_LENGTH)
    if isinstance(longest, bool) or not isinstance(longest, int | float) or not longest >= 2:
        told = f"its tokenizer_config.json says model_max_length = {printable(longest)}; Wan2.1 has {TEXT_LENGTH}"
        raise ModelError(told, FETCH_AGAIN)
    return int(min(longest, TEXT_LENGTH))


def check(checkpoint: Checkpoint) -> None:
    """Compare all files with what is to be loaded from them, weights by their headers; ModelError tells all misfits."""
    parts: tuple[tuple[nn.Module, list[Path], Rename], ...] = (
        (empty_transformer(checkpoint), checkpoint.transformer, transformer_name),
        (empty_vae(checkpoint), checkpoint.vae, vae_name),
        (empty_text_encoder(checkpoint), checkpoint.text_encoder, text_encoder_name),
    )
    for model, files, rename in parts:
        check_parameters(model, files, rename)
    load_tokenizer(checkpoint)


def dtypes(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """The dtypes of each component's tensors on disk, by safetensors' names."""
    return {part: sorted({header.dtype for header in headers(getattr(checkpoint, part)).values()}) for part in STEMS}


def stays_float32(name: str) -> bool:
    """Whether a parameter of the transformer keeps float32 whatever dtype is asked for."""
    return not FLOAT32_PARAMETERS.isdisjoint(name.split("."))


def empty_transformer(checkpoint: Checkpoint) -> WanTransformer:
    with torch.device("meta"):
        return WanTransformer(checkpoint.config)


def empty_vae(checkpoint: Checkpoint) -> AutoencoderKLWan:
    try:
        with torch.device("meta"):
            return AutoencoderKLWan.from_config(checkpoint.vae_config)
    except Exception as fault:  # whatever a class makes of values that are none
        raise ModelError(f"its vae/config.json describes no VAE of Wan2.1{_reason(fault)}", OURS) from None


def empty_text_encoder(checkpoint: Checkpoint) -> UMT5EncoderModel:
    try:
        with torch.device("meta"):
            model = UMT5EncoderModel(UMT5Config.from_dict(checkpoint.text_config))
        model.set_input_embeddings(model.shared)  # one module, not two whose weights transformers may tie or not
        return model
    except Exception as fault:  # as above
        told = f"its text_encoder/config.json describes no UMT5 encoder{_reason(fault)}"
        raise ModelError(told, hint=FETCH_AGAIN) from None


def _first_line(fault: BaseException) -> str:
    return printable(str(fault).strip().partition("\n")[0] or type(fault).__name__)


def _reason(fault: Exception) -> str:
    """Why a library could not make a module of a configuration: its own words where it checked, and no raw Python."""
    words = " ".join(str(fault).split())
    return f": {printable(words)}" if words.startswith("Validation error") else ""
