"""What is trained: adapters or all weights, by name, and what becomes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from fpsgen.attention.tiles import TileGrid
from fpsgen.errors import UsageError
from fpsgen.train.student import Student
from fpsgen.wan import plan
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights import lora
from fpsgen.weights.load import load_transformer
from fpsgen.weights.models import Model, open_folder
from tests.tools.lora import MODULES

CPU = torch.device("cpu")


@pytest.fixture
def model(wan_folder: Path) -> Model:
    return open_folder(wan_folder, "small")


def load(model: Model, dtype: torch.dtype = torch.float32) -> WanTransformer:
    return load_transformer(model.checkpoint, CPU, dtype)


def velocity(transformer: WanTransformer) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    x, text = (torch.randn(*shape, generator=generator) for shape in ((1, 16, 3, 8, 12), (1, 9, 24)))
    dense = plan.dense(TileGrid.cut(transformer.config.grid((3, 8, 12))), transformer.config.num_layers)
    return transformer(x, torch.tensor([700.0]), transformer.embed_text(text), dense)


def learn(student: Student) -> dict[str, Tensor]:
    """Give the second half of every adapter, which is zero at first, something to say."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in student.parameters_to_train().items():
        if "lora_B" in name:
            parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return {name: parameter.detach() for name, parameter in student.parameters_to_train().items()}


def test_adapters_stand_on_every_linear_layer_of_the_blocks(model: Model) -> None:
    before = load(model)
    names = {name: value.clone() for name, value in before.state_dict().items()}
    base, plain = before.fingerprint(), velocity(before)
    student = Student(before, rank=3, seed=0)
    assert student.base == base
    trained = student.parameters_to_train()
    halves = ("lora_A", "lora_B")
    assert set(trained) == {f"blocks.{n}.{m}.{half}.weight" for n in range(2) for m in MODULES for half in halves}
    assert all(each.dtype == torch.float32 and 3 in each.shape for each in trained.values())
    state = student.transformer.state_dict()
    assert set(state) == names.keys() | trained.keys()
    assert all(torch.equal(state[name], value) for name, value in names.items())
    assert torch.equal(velocity(student.transformer), plain)  # B is zero: exactly what it was
    velocity(student.transformer).square().mean().backward()
    given = {name for name, each in student.transformer.named_parameters() if each.grad is not None}
    assert given == trained.keys()


def test_adapters_depend_on_the_seed_alone(model: Model) -> None:
    torch.manual_seed(1)
    drawn = torch.random.get_rng_state()
    first = Student(load(model), 3, seed=5).parameters_to_train()
    assert torch.equal(torch.random.get_rng_state(), drawn)  # a run's other draws are where they were
    torch.manual_seed(2)
    again, other = (Student(load(model, torch.bfloat16), 3, seed).parameters_to_train() for seed in (5, 6))
    assert list(first) == list(again)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in first:
        assert torch.equal(first[name], other[name]) is ("lora_B" in name)
        if "lora_A" in name:  # kaiming uniform with a = sqrt(5): up to 1 / sqrt(inputs), and near it somewhere
            assert 0.9 < first[name].abs().max() * first[name].shape[1] ** 0.5 <= 1


def test_the_teacher_is_the_same_module_without_adapters(model: Model) -> None:
    plain, student = velocity(load(model)), Student(load(model), 2, seed=0)
    learn(student)
    with torch.no_grad():
        learned = velocity(student.transformer)
        with student.teaching():
            assert torch.equal(velocity(student.transformer), plain)
        assert torch.equal(velocity(student.transformer), learned)
        with pytest.raises(RuntimeError), student.teaching():
            student.transformer.patchify(torch.zeros(1, 1, 1, 1, 1), TileGrid.cut((1, 1, 1)))
        assert torch.equal(velocity(student.transformer), learned)
    assert (learned - plain).norm() > 0.01 * plain.norm()


def test_what_is_exported_merges_to_what_was_trained(model: Model, tmp_path: Path) -> None:
    student = Student(load(model), 2, seed=0)
    tensors = learn(student)
    lora.write(tmp_path / "lora.safetensors", tensors, base=student.base, trained_for="mine")
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        told = file.metadata()
        assert (told["base"], told["trained_for"], told["rank"]) == (student.base, "mine", "2")
        names = set(file.keys())
        assert all(file.get_tensor(name).dtype == torch.float32 for name in names)
        assert file.get_tensor("diffusion_model.blocks.1.ffn.2.alpha") == 2
    assert {name.removeprefix("diffusion_model.") for name in names if "alpha" not in name} == tensors.keys()
    merged = load(model.with_loras([lora.find(str(tmp_path / "lora.safetensors"))]))
    with torch.no_grad():
        # (W + B A) x against W x + B (A x), in float32: the same sums in another order.
        torch.testing.assert_close(velocity(merged), velocity(student.transformer), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
def test_adapters_learn_in_half_precision_too(model: Model, base: torch.dtype) -> None:
    """On a base of either dtype, by itself or in autocast: bfloat16 keeps 8 bits, 0.4 % a rounding, many in a row."""
    exact = Student(load(model), 2, seed=0)
    learn(exact)
    with torch.no_grad():
        wanted = velocity(exact.transformer)
    student = Student(load(model, base), 2, seed=0)
    learn(student)
    for autocast in {base is torch.float32, True}:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = velocity(student.transformer)
        assert 0 < (found - wanted).norm() < 0.03 * wanted.norm()
        found.square().mean().backward()
    for parameter in student.parameters_to_train().values():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32


def test_a_place_that_cannot_be_written_is_told(model: Model, tmp_path: Path) -> None:
    student = Student(load(model), 1, seed=0)
    with pytest.raises(UsageError, match="cannot be written"):
        lora.write(tmp_path / "none" / "lora.safetensors", student.parameters_to_train(), trained_for="mine")


def test_without_a_rank_all_weights_are_trained_in_float32(model: Model) -> None:
    student = Student(load(model, torch.bfloat16), None, seed=0)
    trained = student.parameters_to_train()
    assert list(trained) == [name for name, _ in load(model).named_parameters()]
    assert {each.dtype for each in trained.values()} == {torch.float32}
    with pytest.raises(AssertionError), student.teaching():
        pass


def test_adapters_are_sharded_with_their_blocks(model: Model, tmp_path: Path) -> None:
    """By FSDP2, in a world of one: names stay, base and adapters may have dtypes of their own, and both selves work."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        student = Student(load(model), 2, seed=0)
        whole = learn(student)
        generator = torch.Generator().manual_seed(7)
        transformer, config = student.transformer, student.transformer.config
        x, text = (torch.randn(*shape, generator=generator) for shape in ((1, 16, 3, 8, 12), (1, 9, 24)))
        dense = plan.dense(TileGrid.cut(config.grid((3, 8, 12))), config.num_layers)
        context = [(key.detach(), value.detach()) for key, value in transformer.embed_text(text)]
        run = (x, torch.tensor([700.0]), context, dense)
        with torch.no_grad():
            learned = transformer(*run)
            with student.teaching():
                plain = transformer(*run)
        for block in transformer.blocks:
            fully_shard(block)
        sharded = student.parameters_to_train()
        assert list(sharded) == list(whole)
        assert torch.equal(transformer(*run), learned)
        with torch.no_grad(), student.teaching():
            assert torch.equal(transformer(*run), plain)
        transformer(*run).square().mean().backward()
        unused = ("cross_attn.k", "cross_attn.v")  # the context was made before
        assert all(each.grad is not None for name, each in sharded.items() if not any(part in name for part in unused))
    finally:
        dist.destroy_process_group()
