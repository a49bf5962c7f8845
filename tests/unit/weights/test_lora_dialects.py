"""LoRA files in the names of each trainer: all give the weights that float32 arithmetic, written out here, gives.

The names are spelled out, and diffusers' converters say once more what they stand for.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from diffusers.loaders import lora_conversion_utils as converters
from safetensors.torch import save_file
from torch import Tensor

from fpsgen.errors import ModelError, UsageError
from fpsgen.weights import lora
from fpsgen.weights.load import load_transformer, shapes
from fpsgen.weights.models import Model, open_folder

CPU = torch.device("cpu")
State = dict[str, Tensor]
DIM, FFN, TEXT, FREQ, RANK = 64, 96, 24, 32, 3

# The module in the original's and in Diffusers' names, outputs and inputs.
IN_BLOCKS = [
    ("self_attn.q", "attn1.to_q", DIM, DIM), ("self_attn.k", "attn1.to_k", DIM, DIM),
    ("self_attn.v", "attn1.to_v", DIM, DIM), ("self_attn.o", "attn1.to_out.0", DIM, DIM),
    ("cross_attn.q", "attn2.to_q", DIM, DIM), ("cross_attn.k", "attn2.to_k", DIM, DIM),
    ("cross_attn.v", "attn2.to_v", DIM, DIM), ("cross_attn.o", "attn2.to_out.0", DIM, DIM),
    ("ffn.0", "ffn.net.0.proj", FFN, DIM), ("ffn.2", "ffn.net.2", DIM, FFN),
]  # fmt: skip
AROUND = [
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1", DIM, TEXT),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2", DIM, DIM),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1", DIM, FREQ),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2", DIM, DIM),
    ("time_projection.1", "condition_embedder.time_proj", 6 * DIM, DIM),
]
BLOCKS = [(f"blocks.{n}.{a}", f"blocks.{n}.{b}", *size) for n in range(2) for a, b, *size in IN_BLOCKS]
MODULES = [*BLOCKS, *AROUND, ("head.head", "proj_out", 4 * 16, DIM)]


@pytest.fixture
def model(wan_folder: Path) -> Model:
    return open_folder(wan_folder, "small")


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of every linear layer, by the original's name of the module."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: 0.1 * torch.randn(*shape, generator=generator)  # noqa: E731
    return {module: (draw(RANK, inputs), draw(outputs, RANK)) for module, _, outputs, inputs in MODULES}


def merged(model: Model, path: Path, state: State, scale: float = 1.0, metadata: dict[str, str] | None = None) -> State:
    save_file({name: value.contiguous() for name, value in state.items()}, path, metadata)
    return load_transformer(
        model.with_loras([lora.find(f"{path}:{scale}")]).checkpoint, CPU, torch.float32
    ).state_dict()


def wanted(model: Model, pairs: dict[str, tuple[Tensor, Tensor]], factor: float) -> State:
    state = load_transformer(model.checkpoint, CPU, torch.float32).state_dict()
    return state | {f"{name}.weight": state[f"{name}.weight"] + factor * (b @ a) for name, (a, b) in pairs.items()}


def check_same(ours: State, theirs: State) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# What stands before a module's name, in whose words that is, and what stands behind it for A and for B.
ENDS = {"peft": ("lora_A.weight", "lora_B.weight"), "adapter": ("lora_A.default.weight", "lora_B.default.weight")}
ENDS |= {"kohya": ("lora_down.weight", "lora_up.weight"), "old": ("lora.down.weight", "lora.up.weight")}
DIALECTS = {
    "original, A and B": ("diffusion_model.", "original", "peft"),
    "original, down and up": ("diffusion_model.", "original", "kohya"),
    "original, bare": ("", "original", "kohya"),
    "original, PEFT's adapter": ("", "original", "adapter"),
    "original, PEFT's model": ("base_model.model.", "original", "peft"),
    "original, DiffSynth": ("pipe.dit.", "original", "adapter"),
    "original, in a model": ("model.diffusion_model.", "original", "kohya"),
    "musubi": ("lora_unet_", "flat", "kohya"),
    "VideoX-Fun": ("lora_unet__", "flat", "kohya"),
    "Diffusers": ("transformer.", "Diffusers", "peft"),
    "Diffusers, bare": ("", "Diffusers", "peft"),
    "Diffusers, PEFT's model": ("base_model.model.", "Diffusers", "peft"),
    "Diffusers, old": ("transformer.", "Diffusers", "old"),
}


def flat(name: str) -> str:
    return name.replace(".", "_")


def in_dialect(pairs: dict[str, tuple[Tensor, Tensor]], dialect: str, alpha: float | None = None) -> State:
    state: State = {}
    before, words, ends = DIALECTS[dialect]
    for original, diffusers, *_ in MODULES:
        if original in pairs:
            name = before + {"original": original, "Diffusers": diffusers, "flat": flat(original)}[words]
            state |= {f"{name}.{end}": half for end, half in zip(ENDS[ends], pairs[original], strict=True)}
            state |= {} if alpha is None else {f"{name}.alpha": torch.tensor(alpha)}
    return state


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_is_the_same_arithmetic(
    model: Model, pairs: dict[str, tuple[Tensor, Tensor]], tmp_path: Path, dialect: str
) -> None:
    """Bit for bit: one product and one sum in float32. Without an alpha, B A counts once."""
    with_alpha = merged(model, tmp_path / "a.safetensors", in_dialect(pairs, dialect, 1.5), 0.7)
    check_same(with_alpha, wanted(model, pairs, 0.7 * 1.5 / RANK))
    check_same(merged(model, tmp_path / "b.safetensors", in_dialect(pairs, dialect)), wanted(model, pairs, 1.0))


@pytest.mark.parametrize("prefix", ["diffusion_model.", "", "lora_unet_"])
def test_differences_are_added_norms_biases_and_modulation_included(model: Model, tmp_path: Path, prefix: str) -> None:
    plain = load_transformer(model.checkpoint, CPU, torch.float32).state_dict()
    generator = torch.Generator().manual_seed(1)
    changed = [
        "blocks.0.norm3.weight", "blocks.0.norm3.bias", "blocks.1.self_attn.norm_q.weight", "blocks.1.modulation",
        "blocks.0.cross_attn.norm_k.weight", "blocks.0.self_attn.q.weight", "blocks.0.self_attn.q.bias",
        "patch_embedding.weight", "patch_embedding.bias", "head.head.weight", "head.head.bias", "head.modulation",
        "time_projection.1.bias", "text_embedding.2.bias", "time_embedding.0.weight",
    ]  # fmt: skip
    differences = {name: 0.1 * torch.randn(plain[name].shape, generator=generator) for name in changed}
    state = {}
    for name, value in differences.items():
        module, _, kind = name.rpartition(".")
        told = {"weight": "diff", "bias": "diff_b", "modulation": "diff_m"}[kind]
        state[f"{prefix}{flat(module) if prefix == 'lora_unet_' else module}.{told}"] = value
    ours = merged(model, tmp_path / "a.safetensors", state, 0.5)
    check_same(ours, plain | {name: plain[name] + 0.5 * value for name, value in differences.items()})
    if prefix == "diffusion_model.":  # as ComfyUI calls a difference of the modulation
        state = {name.replace(".diff_m", ".modulation.diff"): value for name, value in state.items()}
        check_same(merged(model, tmp_path / "b.safetensors", state, 0.5), ours)


def test_one_module_may_have_a_pair_a_difference_and_one_of_its_bias(
    model: Model, pairs: dict[str, tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    (a, b), q = pairs["blocks.0.self_attn.q"], "blocks.0.self_attn.q"
    state = in_dialect({q: (a, b)}, "original, A and B", 6.0)
    state |= {f"diffusion_model.{q}.diff": torch.ones(DIM, DIM), f"diffusion_model.{q}.diff_b": torch.ones(DIM)}
    plain = load_transformer(model.checkpoint, CPU, torch.float32).state_dict()
    ours = merged(model, tmp_path / "a.safetensors", state, 0.5)
    assert torch.equal(ours[f"{q}.weight"], plain[f"{q}.weight"] + 0.5 * 6.0 / RANK * (b @ a) + 0.5)
    assert torch.equal(ours[f"{q}.bias"], plain[f"{q}.bias"] + 0.5)


def test_a_lora_of_the_patch_embedding_is_a_convolution(model: Model, tmp_path: Path) -> None:
    a, b = torch.randn(RANK, 16, 1, 2, 2), torch.randn(DIM, RANK, 1, 1, 1)
    state = {"lora_unet_patch_embedding.lora_down.weight": a, "lora_unet_patch_embedding.lora_up.weight": b}
    ours = merged(model, tmp_path / "a.safetensors", state)["patch_embedding.weight"]
    plain = load_transformer(model.checkpoint, CPU, torch.float32).state_dict()["patch_embedding.weight"]
    added = torch.einsum("or,rcthw->octhw", b.flatten(1), a)
    torch.testing.assert_close(ours, plain + added, rtol=1e-6, atol=1e-6)  # three products in any order


def by_diffusers(pipeline: WanPipeline, converted: State) -> torch.nn.Module:
    """Diffusers' transformer with a LoRA that its own converter renamed, merged by hand: PEFT is no dependency."""
    transformer = copy.deepcopy(pipeline.transformer)
    for name, value in converted.items():
        module = transformer.get_submodule(name.removeprefix("transformer.").rpartition(".lora_")[0])
        if name.endswith(".lora_A.weight"):
            module.weight.data += converted[name.replace("lora_A", "lora_B")] @ value
        elif name.endswith(".lora_B.bias"):
            module.bias.data += value
    return transformer


@pytest.mark.parametrize("dialect", ["original, down and up", "original, A and B", "musubi"])
def test_diffusers_converters_agree(
    model: Model, wan_pipeline: WanPipeline, pairs: dict[str, tuple[Tensor, Tensor]], tmp_path: Path, dialect: str
) -> None:
    """What they make of a file gives the same velocities in diffusers' transformer, and the same weights in ours."""
    in_blocks = {name: pairs[name] for name in pairs if name.startswith("blocks.")}
    state = in_dialect(in_blocks, dialect, 2.0)
    if dialect != "musubi":  # of these, diffusers' converter knows no alpha
        state |= in_dialect({name: pairs[name] for name, *_ in AROUND}, dialect)
        state |= {f"diffusion_model.{name}.diff_b": 0.1 * torch.randn(size) for name, _, size, _ in (*BLOCKS, *AROUND)}
        state |= {
            "diffusion_model.head.head.diff": torch.randn(64, DIM) / 9,
            "diffusion_model.head.head.diff_b": torch.ones(64),
        }
    convert = converters._convert_musubi_wan_lora_to_diffusers if dialect == "musubi" else converters._convert_non_diffusers_wan_lora_to_diffusers  # fmt: skip  # noqa: E501
    converted = convert({name: value.clone() for name, value in state.items()})  # they scale some in their place
    ours = merged(model, tmp_path / "a.safetensors", state)
    theirs = merged(model, tmp_path / "b.safetensors", converted)
    for name in ours:  # they multiply A and B with powers of two and what is left of alpha / rank
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)
    transformer = load_transformer(model.checkpoint, CPU, torch.float32)
    transformer.load_state_dict(ours)
    latents, text, time = torch.randn(1, 16, 2, 8, 8), torch.randn(1, 512, TEXT), torch.tensor([500])
    with torch.inference_mode():
        wanted = by_diffusers(wan_pipeline, converted)(latents, time, text, return_dict=False)[0]
        plain = wan_pipeline.transformer(latents, time, text, return_dict=False)[0]
        got = transformer(latents, time, transformer.embed_text(text))
    assert (got - wanted).norm() <= 1e-4 * wanted.norm()  # as far as the transformers themselves agree
    assert (plain - wanted).norm() > 0.01 * wanted.norm()


def state_of(pairs: dict[str, tuple[Tensor, Tensor]]) -> State:
    return in_dialect(pairs, "Diffusers")


def test_alpha_may_stand_in_the_metadata_or_beside_the_file(
    model: Model, pairs: dict[str, tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    """Where diffusers and PEFT write it."""
    told = {"lora_adapter_metadata": json.dumps({"transformer.r": RANK, "transformer.lora_alpha": 6})}
    ours = merged(model, tmp_path / "a.safetensors", in_dialect(pairs, "Diffusers"), metadata=told)
    check_same(ours, wanted(model, pairs, 2.0))
    second = {name.replace("transformer.", "transformer_2."): own.clone() for name, own in state_of(pairs).items()}
    told = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 1.5, "transformer_2.lora_alpha": 6})}
    save_file(state_of(pairs) | second, tmp_path / "two.safetensors", told)
    found = experts(model).with_loras([lora.find(str(tmp_path / "two.safetensors"))]).checkpoint
    for part, factor in (("transformer", 0.5), ("transformer_2", 2.0)):
        check_same(load_transformer(found, CPU, torch.float32, part=part).state_dict(), wanted(model, pairs, factor))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 6}))
    state = in_dialect(pairs, "Diffusers, PEFT's model")
    check_same(merged(model, tmp_path / "adapter_model.safetensors", state), ours)
    check_same(merged(model, tmp_path / "other.safetensors", state), wanted(model, pairs, 1.0))


@pytest.mark.parametrize("alpha", [10**400, float("inf"), float("nan"), "8", True])
def test_an_alpha_that_cannot_be_is_refused(
    model: Model, pairs: dict[str, tuple[Tensor, Tensor]], tmp_path: Path, alpha: object
) -> None:
    told = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": alpha})}
    with pytest.raises(ModelError, match=r"says lora_alpha = .*, which cannot be"):
        merged(model, tmp_path / "a.safetensors", in_dialect(pairs, "Diffusers"), metadata=told)


def experts(model: Model) -> Model:
    """A model of two transformers."""
    return replace(model, checkpoint=replace(model.checkpoint, transformer_2=model.checkpoint.transformer))


def changed(model: Model, *given: str) -> tuple[set[str], ...]:
    """What the LoRAs change of each transformer."""
    found = model.with_loras([lora.find(one) for one in given])
    plain = load_transformer(model.checkpoint, CPU, torch.float32).state_dict()
    result = []
    for part in ("transformer", "transformer_2"):
        own = load_transformer(found.checkpoint, CPU, torch.float32, part=part).state_dict()
        result.append({name.removesuffix(".weight") for name in own if not torch.equal(own[name], plain[name])})
    return tuple(result)


Q, K = "blocks.0.self_attn.q", "blocks.0.self_attn.k"


@pytest.mark.parametrize(
    ("name", "before", "high", "low"),
    [
        ("style", "", True, True),
        ("style", "high=", True, False),
        ("style", "low=", False, True),
        ("wan2.2_t2v_A14B_high_noise_lora_rank64", "", True, False),
        ("Wan22_LowNoise_4steps", "", False, True),
        ("Wan22_A14B_T2V_LOW_Lightning_4steps", "", False, True),
        ("girl_v2_HIGH", "", True, False),
        ("girl_high_e20", "", True, False),
        ("wan2.2_t2v_A14B_high_noise_lora_rank64", "low=", False, True),
        ("high_and_low_noise", "", False, True),
        ("high_noise_and_low_noise", "", True, True),
        ("high-res-details", "", True, True),
        ("low_poly", "", True, True),
        ("wan22_low_rank_32", "", True, True),  # which every LoRA is
        ("slow_motion", "", True, True),
    ],
)
def test_an_expert_has_what_is_given_to_it_or_says_it_is_for_it(
    model: Model, pairs: dict[str, tuple[Tensor, Tensor]], tmp_path: Path, name: str, before: str, high: bool, low: bool
) -> None:
    file = tmp_path / f"{name}.safetensors"
    save_file(in_dialect({Q: pairs[Q]}, "musubi"), file)
    assert changed(experts(model), f"{before}{file}:0.5") == ({Q} if high else set(), {Q} if low else set())


def test_metadata_say_which_expert_a_lora_is_for(
    model: Model, pairs: dict[str, tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    trained = {"ss_dit": "wan2.2_t2v_low_noise_14B_fp16.safetensors", "comment": "for high-res videos"}
    save_file(in_dialect({Q: pairs[Q]}, "musubi"), tmp_path / "a.safetensors", trained)
    assert changed(experts(model), str(tmp_path / "a.safetensors")) == (set(), {Q})


def test_a_file_of_two_sets_gives_each_expert_its_own(
    model: Model, pairs: dict[str, tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    second = {f"transformer_2{name[11:]}": value for name, value in in_dialect({K: pairs[K]}, "Diffusers").items()}
    file = tmp_path / "both.safetensors"
    save_file(in_dialect({Q: pairs[Q]}, "Diffusers") | second, file)
    assert changed(experts(model), str(file)) == ({Q}, {K})
    assert changed(experts(model), f"low={file}") == (set(), {K})
    assert changed(experts(model), f"high={file}:0.5", f"low={file}") == ({Q}, {K})
    with pytest.raises(ModelError, match="a second set of tensors, for a low-noise expert"):
        model.with_loras([lora.find(str(file))])
    save_file(second, file)
    assert changed(experts(model), str(file)) == (set(), {K})
    with pytest.raises(ModelError, match="holds nothing for the high-noise expert"):
        experts(model).with_loras([lora.find(f"high={file}")])


def test_a_model_of_one_transformer_has_no_experts(
    model: Model, pairs: dict[str, tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    save_file(in_dialect({Q: pairs[Q]}, "musubi"), tmp_path / "a_high_noise.safetensors")
    model.with_loras([lora.find(str(tmp_path / "a_high_noise.safetensors"))])  # a name alone asks for nothing
    with pytest.raises(UsageError, match=r"lora=high=.*small has one transformer"):
        model.with_loras([lora.find(f"high={tmp_path / 'a_high_noise.safetensors'}")])


def zeros(*names: str) -> State:
    return {name: torch.zeros(2, 2) for name in names}


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (
            zeros("lora_unet_blocks_0_ffn_0.lora_up.weight", "blocks.0.ffn.2.lora_A.weight"),
            "mixes names of two dialects",
        ),
        (zeros("transformer.blocks.0.attn1.to_q.lora_A.weight", "blocks.0.ffn.2.lora_B.weight"), "(Diffusers) and"),
        (
            zeros("blocks.0.ffn.0.lora_A.weight", "diffusion_model.blocks.0.ffn.0.lora_down.weight"),
            "under two names: 1 times",
        ),
        (zeros("blocks.0.ffn.0.dora_scale", "blocks.0.ffn.0.lora_A.weight"), "holds DoRA"),
        (zeros("base_model.model.blocks.0.ffn.0.lora_magnitude_vector"), "holds DoRA"),
        (zeros("lora_unet_blocks_0_ffn_0.hada_w1_a"), "holds LoHa"),
        (zeros("lycoris_blocks_0_ffn_0.lokr_w1"), "holds LoKr"),
        (zeros("diffusion_model.blocks.0.ffn.0.oft_blocks"), "holds OFT"),
        (zeros("lora_unet_double_blocks_0_img_attn_proj.lora_up.weight"), "for another kind of model"),
        (zeros("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"), "for another kind of model"),
        (zeros("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"), "for another kind of model"),
    ],
)
def test_files_of_other_kinds_are_refused_by_their_names(tmp_path: Path, state: State, says: str) -> None:
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(ModelError) as error:
        lora.find(str(tmp_path / "a.safetensors"))
    assert says in str(error.value)
    assert error.value.hint


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (
            {"transformer.blocks.0.attn1.to_q.lora_A.weight": torch.zeros(2, 1536)},
            "for a model of width 1536 (1.3b); this one has width 64",
        ),
        (zeros("blocks.7.ffn.2.lora_A.weight", "blocks.7.ffn.2.lora_B.weight"), "of 8 layers or more; this one has 2"),
        (zeros("blocks.0.cross_attn.k_img.lora_A.weight"), "sees an image through CLIP"),
        (zeros("lora_unet_blocks_0_cross_attn_v_img.lora_up.weight"), "tensors without a place: 1, lora_unet_blocks_0"),
        (zeros("img_emb.proj.1.diff", "head.head.diff"), "sees an image through CLIP"),
        (zeros("vace_blocks.0.ffn.0.lora_A.weight", "blocks.0.ffn.0.diff_b"), "1 unknown: vace_blocks.0.ffn.0"),
        (zeros("blocks.0.ffn.0.alpha", "blocks.0.ffn.0.diff_b"), "1 missing: A and B of blocks.0.ffn.0"),
    ],
)
def test_another_size_or_kind_of_model_is_told(model: Model, tmp_path: Path, state: State, says: str) -> None:
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(ModelError) as error:
        model.with_loras([lora.find(str(tmp_path / "a.safetensors"))])
    assert says in str(error.value)
    assert error.value.hint


def test_adapters_of_other_arithmetic_are_refused(
    model: Model, pairs: dict[str, tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    for told, says in (
        ('{"transformer.use_rslora": true}', "trained with use_rslora"),
        ("[", "are damaged"),
        ("[" * 10**5, "damaged"),
    ):
        save_file(in_dialect({Q: pairs[Q]}, "Diffusers"), tmp_path / "a.safetensors", {"lora_adapter_metadata": told})
        with pytest.raises(ModelError, match=says):
            model.with_loras([lora.find(str(tmp_path / "a.safetensors"))])


def test_the_modules_named_here_are_all_linear_layers_of_the_transformer(model: Model) -> None:
    linear = {
        name for name, size in shapes(load_transformer(model.checkpoint, CPU, torch.float32)).items() if len(size) == 2
    }
    assert {f"{name}.weight" for name, *_ in MODULES} == linear
