"""Blocks that are in memory only while they compute: the same bits as blocks that stay, whatever is done to weights."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.attention.tiles import TileGrid
from fpsgen.errors import ModelError
from fpsgen.wan import offload
from fpsgen.wan.offload import HELD, Home
from fpsgen.wan.plan import Linears, StepPlan
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights import lora, models
from fpsgen.weights.load import load_transformer
from fpsgen.weights.models import Model
from tests.tools import lora as lora_files
from tests.tools.gated import add_gates
from tests.tools.image_pipeline import make_image_pipeline
from tests.tools.quantised import DIALECTS, write, write_gguf

CPU = torch.device("cpu")
HOMES: tuple[Home, ...] = ("host memory", "files")
LATENTS = (3, 8, 12)
DIT = "diffusion_pytorch_model.safetensors"
TOP = KeyTiles(top=0.3, rest="summary")


def plan(model: Model, kind: str = "dense", linear: Linears | None = None) -> StepPlan:
    tiles, layers = TileGrid(model.config.grid(LATENTS), (2, 2, 2)), model.config.num_layers
    attention = AttentionPlan(tiles)
    if kind == "windows":
        heads = tuple(n % 2 for n in range(model.config.num_heads))
        attention = AttentionPlan(tiles, ((1, 1, 1), (1, 2, 1)), heads)
    elif kind == "top":
        attention = AttentionPlan(tiles, (TOP,), (), "fp8", "fp8")
    return StepPlan((attention,) * layers, (linear,) * layers if linear else ())


@torch.inference_mode()
def velocities(transformer: WanTransformer, steps: StepPlan) -> list[Tensor]:
    """Of two passes, so that each block comes back."""
    generator, config = torch.Generator().manual_seed(7), transformer.config
    x = torch.randn(1, config.in_channels, *LATENTS, generator=generator)
    context = transformer.embed_text(torch.randn(1, 9, config.text_dim, generator=generator))
    if config.image_dim:
        states = torch.randn(1, config.image_positions or 5, config.image_dim, generator=generator)
        of_image = transformer.embed_image(states)
        context = [a + b for a, b in zip(context, of_image, strict=True)]
    return [transformer(x, torch.tensor([time]), context, steps) for time in (700.0, 31.0)]


def check_same(model: Model, steps: StepPlan, dtype: torch.dtype = torch.float32, **how: Any) -> None:
    resident = load_transformer(model.checkpoint, CPU, dtype, (steps,), **how)
    wanted = velocities(resident, steps)
    assert wanted[0].isfinite().all()
    for home in HOMES:
        streamed = load_transformer(model.checkpoint, CPU, dtype, (steps,), home=home, **how)
        assert streamed.fingerprint() == resident.fingerprint(), home
        for own, other in zip(velocities(streamed, steps), wanted, strict=True):
            assert torch.equal(own, other), home


@pytest.fixture(scope="module")
def pocket() -> Model:
    return models.find("pocket")


@pytest.mark.parametrize("kind", ["dense", "windows", "top"])
def test_attention_of_every_kind(pocket: Model, kind: str) -> None:
    check_same(pocket, plan(pocket, kind))


@pytest.mark.parametrize("linear", [Linears("fp8", "int8"), Linears("16bit", "fp8")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_layers_in_8_bits(pocket: Model, linear: Linears, dtype: torch.dtype) -> None:
    check_same(pocket, plan(pocket, linear=linear), dtype)


def test_layers_that_differ(pocket: Model) -> None:
    """Each block has tensors of its own kinds, at its own places."""
    steps = plan(pocket)
    every = (Linears("fp8", "16bit"), Linears(), Linears("int8", "fp8"))
    steps = replace(steps, linear=tuple(every[n % 3] for n in range(pocket.config.num_layers)))
    check_same(pocket, steps)


@pytest.mark.parametrize("linear", [None, Linears("fp8", "fp8")], ids=str)
def test_loras(pocket: Model, tmp_path: Path, linear: Linears | None) -> None:
    file = lora_files.write(tmp_path / "own.safetensors", pocket.config)
    own = pocket.with_loras([lora.find(f"{file}:0.7")])
    check_same(own, plan(own, linear=linear), torch.bfloat16)


@pytest.mark.parametrize("form", ["comfy", "lightx2v int8", "comfy, e5m2", "Q8_0"])
@pytest.mark.parametrize("linear", [None, Linears("fp8", "int8")], ids=str)
def test_files_in_8_bits(both_formats: dict[str, Path], tmp_path: Path, form: str, linear: Linears | None) -> None:
    state = load_file(both_formats["original"] / DIT)
    if form in DIALECTS:
        file = write(tmp_path / "own.safetensors", DIALECTS[form](state))
    else:
        write_gguf(file := tmp_path / "own.gguf", state, form)
    for part in both_formats["original"].iterdir():
        if part.name not in (DIT, "config.json"):
            (tmp_path / part.name).symlink_to(part)
    model = models.find(str(file))
    check_same(model, plan(model, linear=linear), torch.bfloat16)


def test_gates(both_formats: dict[str, Path], tmp_path: Path) -> None:
    model = models.find(str(add_gates(both_formats["diffusers"], tmp_path / "gated")))
    tiles = TileGrid(model.config.grid(LATENTS), (2, 2, 2))
    gated = AttentionPlan(tiles, (KeyTiles(top=0.5),))
    check_same(model, StepPlan((gated,) * model.config.num_layers))


@pytest.mark.parametrize("kind", ["i2v-14b", "flf2v-14b"])
def test_models_from_images(tmp_path: Path, kind: str) -> None:
    make_image_pipeline(kind).save_pretrained(tmp_path)
    model = models.find(str(tmp_path))
    check_same(model, plan(model))


@pytest.mark.parametrize("part", ["transformer", "transformer_2"])
def test_each_of_two_experts(experts: dict[str, Path], part: Any) -> None:
    model = models.find(str(experts["original"]))
    check_same(model, plan(model), part=part)


@pytest.mark.parametrize("home", HOMES)
def test_no_more_blocks_are_held_than_it_says(pocket: Model, home: Home) -> None:
    steps = plan(pocket)
    transformer = load_transformer(pocket.checkpoint, CPU, torch.float32, (steps,), home=home)

    def storages() -> int:
        return len({p.untyped_storage().data_ptr() for block in transformer.blocks for p in block.parameters()} - {0})

    most = HELD * sum(1 for _ in transformer.blocks[0].parameters()) if home == "files" else HELD
    assert storages() <= most
    for block in transformer.layers():
        assert all(parameter.isfinite().all() for parameter in block.parameters())
        assert storages() <= most
    assert storages() <= most


@pytest.mark.parametrize("home", HOMES)
def test_a_pass_that_is_given_up_leaves_nothing_behind(pocket: Model, home: Home) -> None:
    steps = plan(pocket)
    transformer = load_transformer(pocket.checkpoint, CPU, torch.float32, (steps,), home=home)
    wanted = velocities(transformer, steps)
    blocks: Iterator[Any] = transformer.layers()
    next(blocks), next(blocks)
    del blocks
    assert all(map(torch.equal, velocities(transformer, steps), wanted))


def test_files_that_are_gone_by_the_next_pass_are_named(wan_folder: Path, tmp_path: Path) -> None:
    for part in wan_folder.iterdir():
        (tmp_path / part.name).symlink_to(part)
    (tmp_path / "transformer").unlink()
    (tmp_path / "transformer").mkdir()
    for file in (wan_folder / "transformer").iterdir():
        (tmp_path / "transformer" / file.name).write_bytes(file.read_bytes())
    model = models.find(str(tmp_path))
    transformer = load_transformer(model.checkpoint, CPU, torch.float32, (plan(model),), home="files")
    for file in (tmp_path / "transformer").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ModelError, match=DIT):
        velocities(transformer, plan(model))


def test_memory_that_the_system_does_not_pin_is_an_error_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def cudaHostRegister(self, *_: int) -> int:
            return 2

    monkeypatch.setattr(torch.cuda, "cudart", Refusing)
    with pytest.raises(offload.UsageError, match="does not pin"):
        offload._pin(object(), [torch.zeros(4096, dtype=torch.uint8)])


def test_the_next_block_comes_while_one_computes() -> None:
    came = [threading.Event() for _ in range(3)]
    blocks = [torch.nn.Linear(2, 2) for _ in came]
    streamed = offload.Streamed(blocks, lambda number: came[number].set(), lambda number: None, CPU, "files")
    for _ in range(2):
        for event in came:
            event.clear()
        for number, _ in enumerate(streamed):
            assert came[min(number + 1, 2)].wait(10)
            assert not any(event.is_set() for event in came[number + 2 :])


def test_memory_that_a_gpu_still_reads_is_given_to_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that was read on one stream computes on another, and is let go before it has computed."""
    told: list[object] = []

    class OnGPU(torch.Tensor):
        is_cuda = True  # type: ignore[assignment]

        def record_stream(self, stream: object) -> None:
            told.append(stream)

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "computes")
    assert offload._without_values(torch.zeros(2).as_subclass(OnGPU)).is_meta
    assert told == ["computes"]
