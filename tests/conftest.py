"""A Wan2.1 folder small enough for a test: every component real, every weight random.

What a fixture needs is imported in it: tests of kernels and attention run without diffusers, safetensors, tokenizers.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

if "PYTEST_XDIST_WORKER" in os.environ:  # workers with all cores each would stand in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch reads it, and for what tests start

import fpsgen  # noqa: F401  # before torch, whose threads then wait as the product's do

# isort: split
import pytest
import torch

if TYPE_CHECKING:
    from diffusers import WanPipeline


@pytest.fixture(scope="session", autouse=True)
def nothing_of_the_developers(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither these tests nor the processes that they start read settings, or what is kept, that is not theirs."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))
    os.environ["FPSGEN_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    for name in ("FPSGEN_MODEL", "FPSGEN_PRESET", "FPSGEN_OUTPUT_DIR"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def wan_pipeline() -> WanPipeline:
    from tests.tools.wan_pipeline import make_wan_pipeline

    return make_wan_pipeline()


@pytest.fixture(scope="session")
def wan_folder(wan_pipeline: WanPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as a Diffusers folder. Tests must not change it."""
    folder = tmp_path_factory.mktemp("wan")
    wan_pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def both_formats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small checkpoint as a Diffusers folder, and by hand in the original's files and names.

    Of Wan2.1's own structure, which is all that the original format can say: heads 128 wide, the VAE's blocks.
    """
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from safetensors.torch import save_file

    from fpsgen.weights import keys
    from tests.tools import original_t5
    from tests.tools.wan_pipeline import TEXT_DIM, make_wan_pipeline

    torch.manual_seed(1)
    vae = AutoencoderKLWan(base_dim=4)
    transformer = WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=128, text_dim=TEXT_DIM, freq_dim=32, ffn_dim=96, num_layers=2
    )
    pipeline = make_wan_pipeline(seed=2)
    pipeline.register_modules(vae=vae, transformer=transformer)
    for parameter in transformer.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    theirs, ours = tmp_path_factory.mktemp("diffusers"), tmp_path_factory.mktemp("original")
    pipeline.save_pretrained(theirs)

    state = {keys.TRANSFORMER.to_original(name): value for name, value in transformer.state_dict().items()}
    save_file(state, ours / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    text = pipeline.text_encoder.state_dict()
    named = {original: text[name] for original, name in original_t5.names(layers=2).items()}
    torch.save(named, ours / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save({keys.VAE.to_original(name): value for name, value in vae.state_dict().items()}, ours / "Wan2.1_VAE.pth")
    pipeline.tokenizer.save_pretrained(ours / "google" / "umt5-xxl")
    config = {"model_type": "t2v", "dim": 128, "ffn_dim": 96, "num_heads": 1, "num_layers": 2, "in_dim": 16}
    (ours / "config.json").write_text(json.dumps(config))
    return {"diffusers": theirs, "original": ours}


@pytest.fixture(scope="session")
def pocket_folder(wan_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights with a pocket model's card: one size, few words."""
    from tests.tools.tokenizer import WORDS

    folder = tmp_path_factory.mktemp("pocket")
    for part in wan_folder.iterdir():
        (folder / part.name).symlink_to(part)
    card = {
        "version": 0, "size": [96, 64], "frames": 9, "fps": 8, "tile": [2, 2, 2], "steps": 2, "guidance": 3.0,
        "shift": 3.0, "negative": "", "knows": ", ".join(WORDS[:4]),
    }  # fmt: skip
    (folder / "pocket.json").write_text(json.dumps(card))
    return folder
