"""Reading weights: shards, two formats, and what is said when they do not fit."""

from __future__ import annotations

import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from safetensors.torch import load_file, save_file
from transformers import UMT5EncoderModel

from fpsgen.errors import ModelError
from fpsgen.wan.config import WAN_1_3B, WAN_14B, WanConfig
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights.layout import recognise
from fpsgen.weights.load import check, empty_vae, load_text_encoder, load_transformer, load_vae
from tests.tools import original_t5

CPU = torch.device("cpu")


def weights(folder: Path) -> Path:
    return folder / "transformer" / "diffusion_pytorch_model.safetensors"


def edit(file: Path, change: Callable[[dict], object]) -> None:
    state = load_file(file)
    change(state)
    save_file(state, file)


def load(folder: Path) -> WanTransformer:
    return load_transformer(recognise(folder), CPU, torch.float32)


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("config", "billions"), [(WAN_1_3B, 1.419), (WAN_14B, 14.288)])
def test_parameter_counts(config: WanConfig, billions: float) -> None:
    with torch.device("meta"):
        model = WanTransformer(config)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=5e-4)


def test_both_formats_give_the_same_modules(both_formats: dict[str, Path]) -> None:
    theirs, ours = recognise(both_formats["diffusers"]), recognise(both_formats["original"])
    assert (theirs.format, ours.format) == ("diffusers", "original")
    assert theirs.config == ours.config
    assert same(load_transformer(theirs, CPU, torch.float32), load_transformer(ours, CPU, torch.float32))
    assert same(load_vae(theirs, CPU), load_vae(ours, CPU))
    assert same(
        load_text_encoder(theirs, CPU, torch.float32).module, load_text_encoder(ours, CPU, torch.float32).module
    )
    texts = [load_text_encoder(one, CPU, torch.float32).encode("a cat on the sea").text for one in (theirs, ours)]
    assert torch.equal(*texts)


def test_a_folder_whose_name_is_no_utf8_loads_as_another(both_formats: dict[str, Path], tmp_path: Path) -> None:
    """As the home of somebody whose name was written in Latin-1: torch and safetensors take every path for UTF-8."""
    try:
        odd = shutil.copytree(both_formats["original"], Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")))
    except OSError:
        pytest.skip("file systems here take UTF-8 alone")
    theirs, ours = recognise(odd), recognise(both_formats["original"])
    assert same(load_transformer(theirs, CPU, torch.float32), load_transformer(ours, CPU, torch.float32))
    assert same(load_vae(theirs, CPU), load_vae(ours, CPU))
    assert same(
        load_text_encoder(theirs, CPU, torch.float32).module, load_text_encoder(ours, CPU, torch.float32).module
    )


def test_dit_output_is_the_same_bits_in_both_formats(both_formats: dict[str, Path]) -> None:
    generator = torch.Generator().manual_seed(4)
    latents, text = torch.randn(1, 16, 2, 8, 12, generator=generator), torch.randn(1, 512, 24, generator=generator)
    outputs = []
    for folder in both_formats.values():
        model = load_transformer(recognise(folder), CPU, torch.float32)
        outputs.append(model(latents, torch.tensor([500.0]), model.embed_text(text)))
    assert torch.equal(*outputs)


def test_text_encoder_gives_the_golden_embedding(both_formats: dict[str, Path]) -> None:
    """Two oracles: transformers on the Diffusers folder, and the original's arithmetic on the original's tensors."""
    theirs = UMT5EncoderModel.from_pretrained(both_formats["diffusers"] / "text_encoder")
    state = torch.load(both_formats["original"] / "models_t5_umt5-xxl-enc-bf16.pth", weights_only=True)
    ids = torch.randint(0, 13, (1, 200), generator=torch.Generator().manual_seed(3))  # beyond the furthest bucket
    for dtype in (torch.float32, torch.bfloat16):
        got = load_text_encoder(recognise(both_formats["original"]), CPU, dtype).module(ids)
        with torch.inference_mode():
            expected = theirs.to(dtype)(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        assert torch.equal(got, expected)
    got = load_text_encoder(recognise(both_formats["original"]), CPU, torch.float32).module(ids)
    torch.testing.assert_close(got[0], original_t5.encode(state, ids[0], heads=3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kept", [("encoder.embed_tokens.weight",), ("encoder.embed_tokens.weight", "shared.weight")])
def test_the_embedding_may_lie_there_under_either_name_or_both(folder: Path, kept: tuple[str, ...]) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    whole = load_text_encoder(recognise(folder), CPU, torch.float32).module
    state = load_file(file)
    embedding = state.pop("shared.weight")
    save_file(state | {name: embedding.clone() for name in kept}, file)
    check(recognise(folder))
    loaded = load_text_encoder(recognise(folder), CPU, torch.float32).module
    assert same(loaded, whole)


def test_other_names_may_not_become_one(original: Path) -> None:
    file = original / "diffusion_pytorch_model.safetensors"
    edit(file, lambda s: s.update({"model.diffusion_model.head.modulation": s["head.modulation"] + 1}))
    with pytest.raises(ModelError, match=r"hold head\.modulation twice"):
        recognise(original)


def test_an_original_vae_is_wan21s(both_formats: dict[str, Path]) -> None:
    """The format carries no latent statistics: they are Wan2.1's (`wan/modules/vae.py`), and so are the blocks."""
    vae, theirs = empty_vae(recognise(both_formats["original"])), AutoencoderKLWan(base_dim=4)
    assert vae.latents_mean == tuple(theirs.config.latents_mean)
    assert vae.latents_std == tuple(theirs.config.latents_std)
    shapes, expected = ({name: x.shape for name, x in each.named_parameters()} for each in (vae, theirs))
    assert shapes == expected


def test_single_files_with_a_prefix(original: Path) -> None:
    whole = load(original)
    file = original / "diffusion_pytorch_model.safetensors"
    state = {f"model.diffusion_model.{name}": value for name, value in load_file(file).items()}
    file.unlink()
    save_file(state, original / "wan2.1_t2v_fp32.safetensors")
    assert same(load(original), whole)
    (original / "config.json").unlink()  # everything is in the shapes
    assert same(load(original), whole)
    save_file(state, original / "another.safetensors")
    with pytest.raises(ModelError, match=r"2 of them: another\.safetensors"):
        load(original)


def test_shards_are_read_by_their_index(wan_pipeline: WanPipeline, folder: Path) -> None:
    whole = load(folder)
    weights(folder).unlink()
    wan_pipeline.transformer.save_pretrained(folder / "transformer", max_shard_size="200KB")
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    assert same(load(folder), whole)


def test_a_missing_shard_is_named(wan_pipeline: WanPipeline, folder: Path) -> None:
    weights(folder).unlink()
    wan_pipeline.transformer.save_pretrained(folder / "transformer", max_shard_size="200KB")
    gone = sorted((folder / "transformer").glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ModelError, match=gone.name):
        load(folder)


def test_a_shard_of_another_model_is_noticed(wan_pipeline: WanPipeline, folder: Path) -> None:
    weights(folder).unlink()
    wan_pipeline.transformer.save_pretrained(folder / "transformer", max_shard_size="200KB")
    shard = sorted((folder / "transformer").glob("*.safetensors"))[0]
    save_file({name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in load_file(shard).items()}, shard)
    with pytest.raises(ModelError, match="of another shape: "):
        load(folder)


def test_misfits_are_counted_and_named_in_one_error(folder: Path) -> None:
    def change(state: dict) -> None:
        del state["proj_out.weight"], state["blocks.0.attn1.to_q.bias"]
        state["blocks.7.surprise"] = torch.zeros(2)
        state["patch_embedding.bias"] = torch.zeros(3)
        state["blocks.0.attn1.to_k.weight"] = state["blocks.0.attn1.to_k.weight"].to(torch.int32)

    edit(weights(folder), change)
    with pytest.raises(ModelError) as caught:
        load(folder)
    text = str(caught.value)
    assert "2 missing: " in text
    assert "head.head.weight" in text
    assert "1 unexpected: blocks.7.surprise" in text
    assert "1 of another shape: patch_embedding.bias [3], not [64]" in text
    assert "1 of a type that is not read: blocks.0.self_attn.k.weight I32" in text


def test_check_reads_no_weights(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fpsgen.weights.load.read", lambda files: pytest.fail("weights were read"))
    check(recognise(original))
    edit(original / "diffusion_pytorch_model.safetensors", lambda state: state.pop("head.modulation"))
    with pytest.raises(ModelError, match=r"1 missing: head\.modulation"):
        check(recognise(original))


@pytest.mark.parametrize(
    ("part", "lost"),
    [
        ("transformer", "proj_out.bias"),
        ("vae", "decoder.conv_out.bias"),
        ("text_encoder", "encoder.final_layer_norm.weight"),
    ],
)
def test_check_compares_every_part(folder: Path, part: str, lost: str) -> None:
    """`recognise` alone would take each of these folders: nothing that it derives a shape from is gone."""
    (file,) = (folder / part).glob("*.safetensors")
    edit(file, lambda state: state.pop(lost))
    checkpoint = recognise(folder)
    with pytest.raises(ModelError, match=rf"{part}/{file.name} does not fit its model; parameters 1 missing: "):
        check(checkpoint)


def test_check_opens_the_tokenizer(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").write_text("{")
    checkpoint = recognise(folder)
    with pytest.raises(ModelError, match="tokenizer"):
        check(checkpoint)


@pytest.mark.parametrize("name", ["models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth"])
def test_a_pickle_that_wants_code_is_refused_and_not_run(original: Path, tmp_path: Path, name: str) -> None:
    witness = tmp_path / "witness"

    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(witness),)

    torch.save({"token_embedding.weight": Evil()}, original / name)
    with pytest.raises(ModelError, match="more than tensors"):
        recognise(original)
    assert not witness.exists()
    (original / name).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ModelError, match=name):
        recognise(original)
    assert not witness.exists()


@pytest.mark.parametrize(
    "name", ["models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth", "diffusion_pytorch_model.safetensors"]
)
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_truncated_files_are_named(original: Path, name: str, keep: float) -> None:
    content = (original / name).read_bytes()
    (original / name).write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ModelError, match=name):
        recognise(original)


def test_damaged_and_absent_files_are_explained(folder: Path) -> None:
    content = weights(folder).read_bytes()
    weights(folder).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="damaged"):
        load(folder)
    weights(folder).unlink()
    with pytest.raises(ModelError, match="holds no"):
        load(folder)
    (folder / "transformer" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json"):
        load(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("value", "says"), [(0.0, "same for every"), (0.7, "same for every"), (float("nan"), "not finite")]
)
def test_an_embedding_that_says_nothing_is_noticed(original: Path, value: float, says: str, dtype: torch.dtype) -> None:
    file = original / "models_t5_umt5-xxl-enc-bf16.pth"
    state = torch.load(file, weights_only=True)
    torch.save(state | {"token_embedding.weight": torch.full_like(state["token_embedding.weight"], value)}, file)
    with pytest.raises(ModelError, match=says):
        load_text_encoder(recognise(original), CPU, dtype).encode("a cat on the sea")


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {"state_dict": state},
        lambda state: state | {5: torch.zeros(2)},
        lambda state: state | {"norm.weight": state["norm.weight"].to_sparse()},
        lambda state: state | {"norm.weight": torch.empty(24, device="meta")},
        lambda state: list(state.values()),
        lambda state: {},
    ],
)
def test_pickles_that_are_no_table_of_tensors(original: Path, change: Callable[[dict], object]) -> None:
    file = original / "models_t5_umt5-xxl-enc-bf16.pth"
    torch.save(change(torch.load(file, weights_only=True)), file)
    with pytest.raises(ModelError, match="is not a table of plain tensors"):
        recognise(original)


def test_a_pickle_with_flipped_bytes_is_explained(original: Path) -> None:
    """Whatever torch's unpickler stumbles over, and however; what it reads all the same is compared with the model."""
    file = original / "models_t5_umt5-xxl-enc-bf16.pth"
    content = file.read_bytes()
    first = content.index(b"token_embedding")
    generator = random.Random(6)
    by_reading = by_comparing = 0
    for _ in range(60):
        damaged = bytearray(content)
        damaged[generator.randrange(first, first + 1500)] ^= 1 << generator.randrange(8)
        file.write_bytes(damaged)
        try:  # any error but ModelError is a traceback
            checkpoint = recognise(original)
        except ModelError:
            by_reading += 1
            continue
        try:
            check(checkpoint)
        except ModelError:
            by_comparing += 1
    # Nearly every byte there is part of a name, of a length or of an instruction; only few flips do no harm.
    assert by_reading > 0
    assert by_comparing > 0


@pytest.mark.parametrize("name", ["models_t5_umt5-xxl-enc-bf16.pth", "diffusion_pytorch_model.safetensors"])
def test_a_git_lfs_pointer_is_called_one(original: Path, name: str) -> None:
    (original / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(ModelError, match="Git LFS pointer") as caught:
        recognise(original)
    assert caught.value.hint == "git lfs pull"
