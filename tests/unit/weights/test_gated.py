"""FastVideo's models with a gate in each block: read, converted, and computed with the attention of their training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file

from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.attention.tiles import TileGrid
from fpsgen.errors import ModelError
from fpsgen.presets import BF16
from fpsgen.request import Request, resolve
from fpsgen.settings import DEFAULTS
from fpsgen.target import Target
from fpsgen.wan.plan import StepPlan, dense
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights import load, models
from fpsgen.weights.convert import convert
from fpsgen.weights.models import Model
from tests.tools.gated import FILE, NAME, add_gates
from tests.tools.vsa import vsa

CPU = torch.device("cpu")
LATENTS = (5, 12, 18)
TILES = TileGrid((5, 6, 9), (4, 4, 4))


@pytest.fixture(scope="module")
def gated(both_formats: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_gates(both_formats["diffusers"], tmp_path_factory.mktemp("gated") / "own")


def transformer(model: Model) -> WanTransformer:
    load.check(model.checkpoint)
    return load.load_transformer(model.checkpoint, CPU, torch.float32)


@torch.inference_mode()
def velocity(own: WanTransformer, plan: StepPlan | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    x, text = torch.randn(1, 16, *LATENTS, generator=generator), torch.randn(1, 9, 24, generator=generator)
    return own(x, torch.tensor([700.0]), own.embed_text(text), plan)


def test_it_is_known_by_its_gates_and_gets_what_it_was_made_for(gated: Path) -> None:
    model = models.find(str(gated))
    assert (model.config.gated, model.checkpoint.kind, model.family) == (True, "1.3b-vsa", "1.3b")
    own = model.defaults
    assert own == DEFAULTS["1.3b-vsa"]
    assert (own.solver, own.steps, own.guidance, own.size, own.frames) == ("fastwan", 3, 1, "832x448", 61)
    assert model.defaults_by("unipc") == DEFAULTS["1.3b"]
    request = Request("", own, 0, Path(), preset=None)
    plan = resolve(request, model, Target(CPU, torch.float32, torch.float32))
    assert (plan.preset.name, model.trained_for) == ("1.3b-vsa", ("1.3b-vsa",))
    (attention,) = {each for step in plan.steps for each in step.attention}
    assert attention == AttentionPlan(TileGrid((16, 28, 52), (4, 4, 4)), (KeyTiles(top=0.2),))
    assert plan.preset.stranger("w", model.trained_for) is None
    assert "trained for the preset 1.3b-vsa" in (BF16.stranger("w", model.trained_for) or "")


@pytest.mark.parametrize("key", ["1.3b-vsa", "14b-vsa", "5b-vsa"])
def test_the_published_ones(key: str) -> None:
    model = models.absent(key)
    assert model.checkpoint.kind == model.own_preset == key
    plan = resolve(Request("", model.defaults, 0, Path(), None), model, Target(CPU, torch.float32, torch.float32))
    assert plan.density == pytest.approx(0.1 if key == "14b-vsa" else 0.2, abs=0.01)
    assert len(plan.steps) == 3


def test_gates_of_zeros_leave_what_diffusers_computes(both_formats: dict[str, Path], tmp_path: Path) -> None:
    plain = WanPipeline.from_pretrained(both_formats["diffusers"]).transformer
    own = transformer(models.find(str(add_gates(both_formats["diffusers"], tmp_path / "zeros", scale=0.0))))
    generator = torch.Generator().manual_seed(7)
    x, text = torch.randn(1, 16, *LATENTS, generator=generator), torch.randn(1, 9, 24, generator=generator)
    with torch.inference_mode():
        expected = plain(x, torch.tensor([700.0]), text).sample
    assert (velocity(own) - expected).norm() <= 1e-4 * expected.norm()  # the order of sums in float32


class WithGates:
    """A processor of diffusers' self-attention: its norm and its RoPE, and the formula in float64."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, top: float | None):
        self.weight, self.bias, self.top = weight, bias, top

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: Any, attention_mask: Any, rotary: Any
    ) -> torch.Tensor:
        q, k, v, gate = (
            x.unflatten(2, (attn.heads, -1)).double()
            for x in (
                attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states)),
                attn.to_v(hidden_states), torch.nn.functional.linear(hidden_states, self.weight, self.bias),
            )
        )  # fmt: skip
        cos, sin = (each[..., ::2].double() for each in rotary)
        turn = torch.complex(cos, sin)
        q, k = (torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2) for x in (q, k))
        return attn.to_out[0](vsa(q, k, v, gate, TILES.grid, self.top).flatten(2).float())


@pytest.mark.parametrize("top", [None, 0.2, 0.6])
def test_equals_diffusers_with_the_formula_in_its_attention(
    both_formats: dict[str, Path], gated: Path, top: float | None
) -> None:
    theirs, state = WanPipeline.from_pretrained(both_formats["diffusers"]).transformer, load_file(gated / FILE)
    for number, block in enumerate(theirs.blocks):
        weight, bias = (state[f"{NAME.format(number)}.{part}"] for part in ("weight", "bias"))
        block.attn1.set_processor(WithGates(weight, bias, top))
    generator = torch.Generator().manual_seed(7)
    x, text = torch.randn(1, 16, *LATENTS, generator=generator), torch.randn(1, 9, 24, generator=generator)
    with torch.inference_mode():
        expected = theirs(x, torch.tensor([700.0]), text).sample
    plan = StepPlan((AttentionPlan(TILES, (KeyTiles(top=top) if top else None,)),) * 2)
    got = velocity(transformer(models.find(str(gated))), plan)
    assert (got - expected).norm() <= 1e-4 * expected.norm()  # the order of sums in float32


def test_gates_count_in_dense_and_in_sparse_attention(gated: Path) -> None:
    own, plan = transformer(models.find(str(gated))), dense(TILES, 2)
    sparse = StepPlan((AttentionPlan(TILES, (KeyTiles(top=0.2),)),) * 2)
    found = [velocity(own, each) for each in (plan, sparse)]
    torch.testing.assert_close(velocity(own, dense(TileGrid(TILES.grid, (2, 3, 3)), 2)), found[0], rtol=0, atol=1e-4)
    for block in own.layers():
        assert block.self_attn.gate_compress is not None
        block.self_attn.gate_compress.weight.zero_()
        block.self_attn.gate_compress.bias.zero_()
    for before, each in zip(found, (plan, sparse), strict=True):
        assert (velocity(own, each) - before).norm() > 0.01 * before.norm()


def test_all_names_of_gates_and_both_formats_are_the_same_model(gated: Path, tmp_path: Path) -> None:
    wanted = transformer(models.find(str(gated)))
    state = load_file(gated / FILE)
    other = add_gates(gated, tmp_path / "other", name="blocks.{}.attn1.to_gate_compress")
    moved = {key.replace("to_gate_compress", "attn1.to_gate_compress"): value for key, value in state.items()}
    save_file(moved, other / FILE)
    original, back = tmp_path / "original", tmp_path / "back"
    for source, form, out in ((gated, "original", original), (original, "diffusers", back)):
        assert list(convert(models.find(str(source)).checkpoint, form, out))  # type: ignore[arg-type]
    again = load_file(back / FILE)
    assert again.keys() == state.keys()
    assert {f"{NAME.format(1)}.bias"} <= again.keys()
    assert all(torch.equal(again[key], value) for key, value in state.items())
    assert "blocks.1.self_attn.gate_compress.weight" in load_file(original / FILE.name)
    for folder in (other, original, back):
        model = models.find(str(folder))
        assert model.defaults == DEFAULTS["1.3b-vsa"]
        found = transformer(model)
        assert found.fingerprint() == wanted.fingerprint()
        assert torch.equal(velocity(found), velocity(wanted))


def test_one_that_was_not_distilled_is_told_by_its_name(both_formats: dict[str, Path], tmp_path: Path) -> None:
    folder = add_gates(both_formats["diffusers"], tmp_path / "Wan2.1-VSA-T2V-14B-720P-Diffusers")
    assert models.find(str(folder)).defaults == DEFAULTS["1.3b-vsa"]  # its index says WanDMDPipeline
    index = (folder / "model_index.json").read_text()
    (folder / "model_index.json").write_text(index.replace("WanDMDPipeline", "WanPipeline"))
    model = models.find(str(folder))
    assert (model.defaults, model.own_preset) == (DEFAULTS["1.3b"], "1.3b-vsa")


def test_a_file_of_its_own(gated: Path) -> None:
    model = models.find(str(gated / FILE))
    assert (model.config.gated, model.defaults) == (True, DEFAULTS["1.3b-vsa"])


def test_a_block_without_its_gate_is_told(gated: Path, tmp_path: Path) -> None:
    folder = add_gates(gated, tmp_path / "broken")
    state = load_file(folder / FILE)
    del state[f"{NAME.format(1)}.bias"]
    save_file(state, folder / FILE)
    with pytest.raises(ModelError, match=r"1 missing: blocks\.1\.self_attn\.gate_compress\.bias"):
        load.check(models.find(str(folder)).checkpoint)


def test_another_attention_is_refused_with_the_reason(both_formats: dict[str, Path], tmp_path: Path) -> None:
    for name in ("attn_op.local_attn.proj_l.weight", "proj_q.weight", "gate_proj.weight"):
        state = load_file(both_formats["original"] / FILE.name)
        state[f"blocks.0.self_attn.{name}"] = torch.zeros(8, 8)
        save_file(state, tmp_path / "TurboWan2.1-T2V-1.3B-480P.safetensors")
        torch.save(state, tmp_path / "TurboWan2.1-T2V-1.3B-480P.pth")
    for file in tmp_path.iterdir():
        with pytest.raises(ModelError, match=r"sparse-linear attention .* which fpsgen does not compute"):
            models.find(str(file))
