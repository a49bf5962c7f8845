"""LoRA files: found, compared with a transformer, and merged with its weights as they are loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fpsgen.errors import ModelError, UsageError
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights import lora
from fpsgen.weights.load import load_transformer
from fpsgen.weights.models import Model, open_folder
from tests.tools.lora import adapters, tensors, write

CPU = torch.device("cpu")
Q = "diffusion_model.blocks.0.self_attn.q"


@pytest.fixture
def model(wan_folder: Path) -> Model:
    return open_folder(wan_folder, "small")


def load(model: Model, *given: object, dtype: torch.dtype = torch.float32) -> WanTransformer:
    loras = [lora.find(str(one)) for one in given]
    return load_transformer(model.with_loras(loras).checkpoint, CPU, dtype)


def same(first: WanTransformer, second: WanTransformer) -> bool:
    """Bit for bit."""
    ours, theirs = first.state_dict(), second.state_dict()
    return all(torch.equal(bits(ours[name]), bits(theirs[name])) for name in theirs)


def bits(value: Tensor) -> Tensor:
    return value.view(torch.int16 if value.dtype == torch.bfloat16 else torch.int32)


@pytest.mark.parametrize("alpha", [None, 2.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_weights_are_float32_arithmetic(
    model: Model, tmp_path: Path, dtype: torch.dtype, alpha: float | None
) -> None:
    """Each value once in float32, then rounded once. Not touched: everything that the file does not name."""
    file, pairs = write(tmp_path / "a.safetensors", model.config, alpha, rank=2), adapters(model.config, rank=2)
    plain, merged = load(model), load(model, f"{file}:0.7", dtype=dtype).state_dict()
    for name, weight in plain.state_dict().items():
        module = name.removesuffix(".weight")
        if module in pairs:
            a, b = pairs[module]
            # In float64, hence the tolerance: float32 has 24 bits, and sums of two products are rounded thrice.
            wanted = weight.double() + 0.7 * (alpha or 2.0) / 2 * (b.double() @ a.double())
            assert not torch.equal(merged[name].float(), weight.to(dtype).float())
            if dtype == torch.float32:
                torch.testing.assert_close(merged[name].double(), wanted, rtol=2e-7, atol=2e-7)
            in_float32 = weight + 0.7 * (alpha or 2.0) / 2 * (b @ a)
            assert torch.equal(merged[name], in_float32.to(dtype))
        else:
            assert torch.equal(merged[name].float(), weight.to(merged[name].dtype).float())


def test_a_lora_that_changes_nothing_leaves_every_bit(model: Model, tmp_path: Path) -> None:
    state = tensors(adapters(model.config))
    save_file({k: torch.zeros_like(v) if "lora_B" in k else v for k, v in state.items()}, tmp_path / "zero.safetensors")
    for dtype in (torch.float32, torch.bfloat16):
        assert same(load(model, tmp_path / "zero.safetensors", dtype=dtype), load(model, dtype=dtype))
    write(tmp_path / "a.safetensors", model.config)
    assert same(load(model, f"{tmp_path / 'a.safetensors'}:0"), load(model))


def test_several_files_in_any_order_are_the_same_bits(model: Model, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{seed}.safetensors", model.config, seed=seed, rank=seed + 1) for seed in range(3)]
    given = [f"{file}:{scale}" for file, scale in zip(files, (0.3, -0.7, 1.1), strict=True)]
    merged = load(model, *given)
    assert same(load(model, *reversed(given)), merged)
    renamed = [file.rename(tmp_path / f"{9 - n}-renamed.safetensors") for n, file in enumerate(files)]
    again = [f"{file}:{scale}" for file, scale in zip(renamed, (0.3, -0.7, 1.1), strict=True)]
    assert same(load(model, again[1], again[2], again[0]), merged)
    assert merged.fingerprint() not in {load(model).fingerprint(), load(model, again[0]).fingerprint()}


@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_are_merged_in_float32(folder: Path, tmp_path: Path, kept: torch.dtype) -> None:
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: value.to(kept) for name, value in load_file(weights).items()}, weights)
    model = open_folder(folder, "small")
    file, pairs = write(tmp_path / "a.safetensors", model.config), adapters(model.config)
    plain, merged = load(model).state_dict(), load(model, file).state_dict()
    for module, (a, b) in pairs.items():
        assert torch.equal(merged[f"{module}.weight"], plain[f"{module}.weight"] + b @ a)
        assert torch.equal(plain[f"{module}.weight"], plain[f"{module}.weight"].to(kept).float())


def test_a_lora_may_be_of_half_precision_and_of_few_modules(model: Model, tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in tensors(adapters(model.config)).items() if name.startswith(Q)}
    save_file(state, tmp_path / "a.safetensors")
    plain, merged = load(model).state_dict(), load(model, tmp_path / "a.safetensors").state_dict()
    assert {name for name in plain if not torch.equal(plain[name], merged[name])} == {"blocks.0.self_attn.q.weight"}


@pytest.mark.parametrize(
    ("given", "scale"),
    [("a.safetensors", 1), ("a.safetensors:0.8", 0.8), ("a.safetensors:-1", -1), ("b:2", 1), ("b:2:3", 3)],
)
def test_a_scale_stands_behind_a_colon_that_names_may_hold_too(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, scale: float
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.safetensors", model.config)
    write(tmp_path / "b:2", model.config)
    found = lora.find(given)
    assert (found.scale, found.file.name) == (scale, "b:2" if given[0] == "b" else "a.safetensors")
    assert len(found.sha256) == 64


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("", "there is no file"),
        ("nope.safetensors", "there is no file nope.safetensors"),
        ("nope.safetensors:0.5", "there is no file nope.safetensors"),
        ("nope.safetensors:high", "there is no file nope.safetensors:high"),
        ("~nobody-of-that-name/a.safetensors", "there is no file"),
        ("x" * 5000, "there is no file"),
        ("a.safetensors:", "the scale '' is no number"),
        ("a.safetensors:high", "the scale high is no number"),
        ("a.safetensors:nan", "the scale nan is no number"),
        ("a.safetensors:1e999", "the scale 1e999 is no number"),
        (".", "not a regular file"),
        ("vae.safetensors", "should be the LoRA, but is a VAE"),
        ("dit.safetensors", "should be the LoRA, but is a transformer"),
        ("other.safetensors", "should be the LoRA, but is no model of Wan"),
        ("eight.safetensors", "holds the LoRA in 8 bits"),
        ("short.safetensors", "is damaged: it ends after"),
        ("old.pt", "is a pickled file"),
        ("zip.safetensors", "is a pickled file"),
        ("page.safetensors", "is a web page"),
    ],
)
def test_what_is_no_lora_is_refused_by_its_first_bytes(
    model: Model, wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(Path("a.safetensors"), model.config)
    for part, name in (("vae", "vae.safetensors"), ("transformer", "dit.safetensors")):
        os.symlink(wan_folder / part / "diffusion_pytorch_model.safetensors", name)
    save_file({"double_blocks.0.weight": torch.zeros(1)}, "other.safetensors")
    eight = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(file).items()}
    save_file(eight, "eight.safetensors")
    Path("short.safetensors").write_bytes(file.read_bytes()[:-4])
    torch.save(load_file(file), "zip.safetensors")
    Path("old.pt").write_bytes(b"\x80\x02}q\x00.")
    Path("page.safetensors").write_bytes(b"<html>")
    with pytest.raises(UsageError) as error:
        lora.find(given)
    assert says in str(error.value)
    assert error.value.hint


def without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.pop(f"{Q}.{name}")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("lora_A.weight"), "1 missing: A of blocks.0.self_attn.q"),
        (without("lora_B.weight"), "1 missing: B of blocks.0.self_attn.q"),
        (lambda s: s.update({f"{Q}.other": torch.zeros(64)}), f"1 unknown: {Q}.other"),
        (lambda s: s.update({f"{Q}_{n}.lora_A.weight": torch.zeros(2, 64) for n in (7, 8)}), "2 unknown: "),
        (
            lambda s: s.update({f"{Q}.diff_b": torch.zeros(63)}),
            "1 of another shape: diffusion_model.blocks.0.self_attn",
        ),
        (lambda s: s.update({f"{Q}.diff": torch.zeros(64)}), "self_attn.q.diff [64], not [64, 64]"),
        (lambda s: s.update({f"{Q}.lora_B.bias": torch.zeros(1, 64)}), "q.lora_B.bias [1, 64], not [64]"),
        (lambda s: s.update({"diffusion_model.blocks.0.norm3.lora_A.weight": torch.zeros(2, 64)}), "1 missing: B of"),
        (lambda s: s.update({"diffusion_model.blocks.0.modulation.diff_b": torch.zeros(64)}), "1 unknown: "),
        (lambda s: s.update({f"{Q}.lora_A.weight": torch.zeros(2, 64, dtype=torch.float64)}), "1 neither F32, BF16"),
        (lambda s: s.update({f"{Q}.lora_A.weight": torch.zeros(3, 64)}), "1 of another shape: blocks.0.self_attn.q"),
        (lambda s: s.update({f"{Q}.lora_A.weight": torch.zeros(())}), "1 of another shape: blocks.0.self_attn.q"),
        (lambda s: s.update({f"{Q}.alpha": torch.ones(2)}), "1 of another shape: blocks.0.self_attn.q"),
        (lambda s: s.update({f"{Q}.alpha": torch.ones((), dtype=torch.complex64)}), "1 neither F32, BF16 nor F16: "),
    ],
)
def test_what_does_not_fit_is_counted_and_named(
    model: Model, tmp_path: Path, change: Callable[[dict[str, Tensor]], object], says: str
) -> None:
    state = tensors(adapters(model.config), alpha=2.0)
    change(state)
    save_file(state, tmp_path / "a.safetensors")
    found = lora.find(str(tmp_path / "a.safetensors"))
    with pytest.raises(ModelError) as error:
        model.with_loras([found])
    assert says in str(error.value)
    assert error.value.hint


def test_rank_0_and_another_model_are_told(model: Model, both_formats: dict[str, Path], tmp_path: Path) -> None:
    none = lora.find(str(write(tmp_path / "none.safetensors", model.config, rank=0)))
    with pytest.raises(ModelError, match="20 of rank 0"):
        model.with_loras([none])
    other = lora.find(str(write(tmp_path / "a.safetensors", model.config)))
    wider = open_folder(both_formats["original"], "wider")
    with pytest.raises(ModelError, match=r"is for a model of width 64; this one has width 128"):
        wider.with_loras([other])
