"""From a checkpoint to modules: each component is built without memory, compared with its files, then filled."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5Config, UMT5EncoderModel

from fpsgen.errors import ModelError
from fpsgen.printable import printable
from fpsgen.wan.checkpoint import check_parameters, fill
from fpsgen.wan.config import FETCH_AGAIN, OURS
from fpsgen.wan.headers import Rename, headers
from fpsgen.wan.layout import Checkpoint, text_encoder_name, transformer_name, vae_name
from fpsgen.wan.transformer import FLOAT32_PARAMETERS, WanTransformer


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


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The tokenizer; ModelError where its files are damaged, or it has tokens that the encoder has no rows for."""
    try:
        # Said aloud: left open, transformers asks on the terminal whether to run what lies there.
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.tokenizer, trust_remote_code=False)
        largest = max(tokenizer.get_vocab().values())
    except Exception as fault:  # whatever a class makes of files that are none
        raise ModelError(f"the tokenizer in {checkpoint.tokenizer} cannot be loaded: {_first_line(fault)}") from None
    if not isinstance(tokenizer.model_max_length, int) or tokenizer.model_max_length < 2:
        raise ModelError(f"its tokenizer has model_max_length = {tokenizer.model_max_length!r}")
    if largest >= (rows := int(checkpoint.text_config["vocab_size"])):
        raise ModelError(f"its tokenizer counts tokens up to {largest}, its text encoder knows {rows}")
    return tokenizer


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
    parts = {
        "transformer": checkpoint.transformer,
        "vae": checkpoint.vae,
        "text_encoder": checkpoint.text_encoder,
    }
    return {name: sorted({header.dtype for header in headers(files).values()}) for name, files in parts.items()}


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


def _first_line(fault: Exception) -> str:
    return printable(str(fault).strip().partition("\n")[0] or type(fault).__name__)


def _reason(fault: Exception) -> str:
    """Why a library could not make a module of a configuration: its own words where it checked, and no raw Python."""
    words = " ".join(str(fault).split())
    return f": {printable(words)}" if words.startswith("Validation error") else ""
