"""A Wan2.1 folder small enough for a test: every component real, every weight random.

What a fixture needs is imported in it: tests of kernels and attention run without diffusers, safetensors, tokenizers.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if "PYTEST_XDIST_WORKER" in os.environ:  # workers with all cores each would stand in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch reads it, and for what tests start

import fpsgen  # noqa: F401  # before torch, whose threads then wait as the product's do

# isort: split
import pytest

from tests.tools import once

if TYPE_CHECKING:
    from diffusers import WanPipeline


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """All that is collected stays: to look through it for garbage again and again is a fifth of the time it takes."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def nothing_of_the_developers(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither these tests nor the processes that they start read settings, or what is kept, that is not theirs."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))
    os.environ["FPSGEN_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    for name in ("FPSGEN_MODEL", "FPSGEN_PRESET", "FPSGEN_OUTPUT_DIR"):
        os.environ.pop(name, None)
    base = tmp_path_factory.getbasetemp()
    made = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made"
    made.mkdir(exist_ok=True)
    os.environ[once.FOLDER] = str(made)


@pytest.fixture(scope="module")
def compiled_once() -> Iterator[None]:
    """For a module of tests that do not ask whether NVRTC and nvdisasm run: each text and cubin goes through them once
    in a session."""
    with once.compilations():
        yield


@pytest.fixture(scope="module", autouse=True)
def what_is_there_is_settled() -> None:
    """As after a command's imports (`machine.settle`): `machine.release`, which every video calls several times, need
    not look through all tests and libraries, which takes a second each time."""
    gc.collect()
    gc.freeze()


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
    from tests.tools.wan_pipeline import make_plain_pipeline, save_original

    pipeline = make_plain_pipeline(seed=1)
    theirs, ours = tmp_path_factory.mktemp("diffusers"), tmp_path_factory.mktemp("original")
    pipeline.save_pretrained(theirs)
    save_original(pipeline, ours)
    return {"diffusers": theirs, "original": ours}


@pytest.fixture(scope="session")
def experts_pipeline() -> WanPipeline:
    """As Wan2.2 A14B: two experts."""
    from tests.tools.wan_pipeline import make_plain_pipeline

    return make_plain_pipeline(seed=11, boundary_ratio=0.875)


@pytest.fixture(scope="session")
def experts(experts_pipeline: WanPipeline, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights in both formats. Tests must not change them."""
    from tests.tools.wan_pipeline import save_original

    folders = {name: tmp_path_factory.mktemp(f"experts-{name}") for name in ("diffusers", "original")}
    experts_pipeline.save_pretrained(folders["diffusers"])
    save_original(experts_pipeline, folders["original"])
    return folders


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
