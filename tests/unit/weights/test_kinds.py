"""What a file is, said from the file: each kind that people have, in one sentence that names it, with what to do.

Names and shapes are those of the published files (the sources' own spelling), the values are absent or zeros.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fpsgen.errors import ModelError
from fpsgen.weights import keys, load, models
from fpsgen.weights.kinds import Contents, Header, kind_of
from tests.tools import golden

T5, VAE, DIT = "models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth", "diffusion_pytorch_model.safetensors"
TINY = golden.transformer(128, 96, 2)


def wan(**more: tuple[int, ...]) -> dict[str, Header]:
    """A small Wan2.1 transformer's tensors, and others; `__` stands for a dot."""
    shapes = TINY | {name.replace("__", "."): shape for name, shape in more.items()}
    return {name: Header(tuple(shape), "F32") for name, shape in shapes.items()}


def diffusers(tensors: dict[str, Header]) -> dict[str, Header]:
    return {keys.TRANSFORMER.to_diffusers(name): header for name, header in tensors.items()}


def prefixed(prefix: str, *names: str, shape: tuple[int, ...] = (8, 8)) -> dict[str, Header]:
    return {f"{prefix}{name}": Header(shape, "F16") for name in names}


LORA_PARTS = ("blocks.0.self_attn.q.lora_A.weight", "blocks.0.self_attn.q.lora_B.weight")
EXPERT = "wan2.2 expert"


@pytest.mark.parametrize(
    ("file", "tensors", "kind"),
    [
        ("wan2.1_t2v_1.3B_fp16", wan(), "transformer"),
        ("wan2.1_t2v_14b_lightx2v_4step", wan(), "transformer"),
        ("diffusion_pytorch_model", diffusers(wan()), "transformer"),
        ("a", {f"model.diffusion_model.{name}": header for name, header in wan().items()}, "transformer"),
        ("style", prefixed("diffusion_model.", *LORA_PARTS), "LoRA"),
        ("style", prefixed("diffusion_model.", "blocks.0.self_attn.q.lora_down.weight", "head.head.diff_b"), "LoRA"),
        ("style", prefixed("lora_unet_blocks_0_", "self_attn_q.lora_down.weight", "self_attn_q.alpha"), "LoRA"),
        ("style", prefixed("transformer.", "blocks.0.attn1.to_q.lora_A.weight"), "LoRA"),
        ("wan2.2_t2v_A14b_high_noise_lora_rank64", prefixed("diffusion_model.", *LORA_PARTS), "LoRA"),
        ("style", prefixed("blocks.0.self_attn.q.", "lora.down.weight", "lora.up.weight"), "LoRA"),
        ("style", prefixed("diffusion_model.blocks.0.self_attn.q.", "oft_blocks", "alpha"), "LoRA"),
        ("style", prefixed("base_model.model.blocks.0.self_attn.q.", "dora_scale"), "LoRA"),
        ("umt5_xxl_fp8_e4m3fn_scaled", prefixed("", "shared.weight", "scaled_fp8"), "text encoder"),
        ("a", {name: Header(header.shape, "F8_E4M3") for name, header in wan().items()}, "transformer"),
        ("a", wan(img_emb__proj__0__weight=(1280,), blocks__0__cross_attn__k_img__weight=(8, 8)), "transformer"),
        ("a", diffusers(wan()) | prefixed("condition_embedder.image_embedder.", "norm1.weight"), "transformer"),
        ("a", wan(img_emb__proj__0__weight=(1280,), img_emb__emb_pos=(1, 514, 1280)), "transformer"),
        ("a", wan(vace_blocks__0__before_proj__weight=(8, 8)), "vace"),
        ("a", wan(patch_embedding__weight=(128, 48, 1, 2, 2), head__head__weight=(192, 128)), "transformer"),
        ("a", wan(patch_embedding__weight=(128, 36, 1, 2, 2)), "wan2.2 image-to-video expert"),
        ("a", wan(patch_embedding__weight=(128, 52, 1, 2, 2)), "other channels"),
        ("Wan2.2-I2V-A14B-low", wan(patch_embedding__weight=(128, 36, 1, 2, 2)), "wan2.2 image-to-video expert"),
        ("a", wan(blocks__0__to_gate_compress__weight=(8, 8)), "transformer"),
        ("a", wan(blocks__0__self_attn__attn_op__local_attn__proj_l__weight=(8, 8)), "other attention"),
        ("a", wan(blocks__0__self_attn__gate_bias=(8,)), "other attention"),
        ("a", diffusers(wan(blocks__0__attn1__attn_impl__proj_l__weight=(8, 8))), "other attention"),
        (
            "TurboWan2.2-I2V-A14B-high",
            wan(blocks__0__self_attn__proj_l__weight=(8, 8), patch_embedding__weight=(128, 36, 1, 2, 2)),
            "other attention",
        ),
        ("a", wan(blocks__0__self_attn__proj_l__weight=(8, 8)), "other attention"),
        ("a", wan(control_adapter__conv__weight=(8, 8)), "control"),
        ("a", wan() | prefixed("vae.", "decoder.conv_in.weight"), "all in one"),
        ("diffusion_pytorch_model-00002-of-00006", prefixed("blocks.9.", "self_attn.q.weight"), "shard"),
        ("diffusion_pytorch_model-00001-of-00001", wan(), "transformer"),
        ("wan2.2_t2v_high_noise_14B_fp16", wan(), EXPERT),
        ("Wan2_2-T2V-A14B-LOW_fp16", wan(), EXPERT),
        ("low_noise_model/diffusion_pytorch_model", wan(), EXPERT),
        ("wan2.2/wan2.1_t2v_14B_fp16", wan(), "transformer"),  # one's own folder says nothing of the file
        ("wan2.1_t2v_1.3B_step2200", wan(), "transformer"),
        ("a", prefixed("blocks.9.", "self_attn.q.weight"), "transformer's part"),
        ("a", {name: Header((1,), "F32") for name in golden.vae()}, "VAE"),
        ("a", prefixed("", "encoder.conv_in.weight", "decoder.conv_in.weight"), "VAE"),
        ("a", {name: Header((1,), "F32") for name in golden.text_encoder()}, "text encoder"),
        ("a", prefixed("encoder.block.0.layer.0.SelfAttention.", "q.weight"), "text encoder"),
        ("a", prefixed("visual.", "conv1.weight"), "image encoder"),
        ("a", prefixed("embeddings.", "class_embedding"), "image encoder"),
        ("clip_vision_h", prefixed("vision_model.", "embeddings.class_embedding"), "image encoder"),
        ("a", prefixed("double_blocks.0.", "img_attn.qkv.weight"), "other"),
        ("umt5-xxl-encoder-Q4_K_M", prefixed("enc.blk.0.", "attn_rel_b.weight", "attn_q.weight"), "text encoder"),
        ("llama-3", prefixed("blk.0.", "attn_q.weight", "ffn_up.weight"), "language model"),
        ("llama-3", prefixed("model.layers.0.", "self_attn.q_proj.weight"), "language model"),
    ],
)
def test_a_files_kind_is_told_by_its_names_and_shapes(file: str, tensors: dict[str, Header], kind: str) -> None:
    assert kind_of(Contents(Path("folder") / f"{file}.safetensors", tensors)).name == kind


def test_metadata_tells_an_expert_too() -> None:
    told = {"modelspec.title": "Wan2.2-T2V-A14B high noise"}
    assert kind_of(Contents(Path("a.safetensors"), wan(), told)).name == EXPERT


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with nothing in it, on a machine with no model in the hub's cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    return tmp_path


def refused(file: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        models.find(str(file))
    told = str(caught.value)
    assert str(file) in told
    assert caught.value.hint
    assert "\n" not in told
    return caught.value


def archive(name: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr(name, "x")
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "says", "hint"),
    [
        ("a.safetensors", b"", "is empty", "fetch the file again"),
        ("a.safetensors", b"<!DOCTYPE html><title>Sign in</title>", "is a web page", "hf auth login"),
        ("a.safetensors", b"\n <html>", "is a web page", "hf auth login"),
        ("a.gguf", b"GGUF\x03\0\0\0", "is damaged: it ends within its header", "fetch the file again"),
        ("a.gguf", b"GGUF\0\0\0\x03" + bytes(16), "is a GGUF file of version", "fetch the file again"),
        ("a.safetensors.index.json", b'{"weight_map": {}}', "is a JSON file", "the folder"),
        ("a.pt", pickle.dumps({"a": 1}), "could run code", ".safetensors"),
        ("a.safetensors", archive("a/model.safetensors"), "is a zip archive", "unpack"),
        ("a.tar.gz", b"\x1f\x8b\x08\0", "is a packed archive", "unpack"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer", "git lfs pull"),
        ("a.safetensors", b"Found. Redirecting to https://\x1b", "does not begin as a .safetensors", "again"),
        ("a.safetensors", b"Found. Redirecting to https://a.b/c\n", 'begins with "Found. Redirecting', "hf auth login"),
        ("a.safetensors", b"MZ\x90\0" * 40, "does not begin as a .safetensors file does", "fetch the file again"),
        ("a.mp4", b"\0\0\0\x20ftypisom" * 20, "a.mp4 is not a .safetensors file", "model's weights"),
        ("a.safetensors", (900).to_bytes(8, "little") + b"{" * 100, "ends after 108 bytes, within its", "again"),
    ],
)
def test_files_without_tensors_are_called_what_they_are(
    alone: Path, name: str, content: bytes, says: str, hint: str
) -> None:
    (alone / name).write_bytes(content)
    error = refused(alone / name)
    assert says in str(error)
    assert hint in (error.hint or "")


@pytest.mark.parametrize("padding", [0x20, 0x09, 0x0A])
def test_a_headers_length_that_reads_like_another_format_is_a_length(alone: Path, padding: int) -> None:
    """A header of 0x7b20 bytes begins with a blank and a brace, as JSON does."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    length = 0x7B00 + padding
    content = length.to_bytes(8, "little") + header + b" " * (length - len(header)) + bytes(4)
    (alone / "a.safetensors").write_bytes(content)
    assert "its tensors are called a" in str(refused(alone / "a.safetensors"))


def test_a_cut_file_says_where_it_ends(alone: Path) -> None:
    file = alone / "a.safetensors"
    save_file({"a": torch.zeros(1000)}, file)
    whole = file.stat().st_size
    file.write_bytes(file.read_bytes()[:1000])
    assert f"it ends after 1,000 of {whole:,} bytes" in str(refused(file))


def test_a_pickled_transformer_is_called_one(alone: Path) -> None:
    torch.save({name: torch.zeros(shape) for name, shape in TINY.items()}, alone / "a.pth")
    assert "a transformer in a pickled file" in str(refused(alone / "a.pth"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_is_not_waited_for(alone: Path) -> None:
    os.mkfifo(alone / "a.safetensors")
    assert "not a regular file" in str(refused(alone / "a.safetensors"))
    (alone / "b.safetensors").symlink_to("/dev/zero")
    assert "not a regular file" in str(refused(alone / "b.safetensors"))


def test_a_folder_of_another_kind_names_its_file(both_formats: dict[str, Path], alone: Path) -> None:
    """Whole original folder, but its one transformer is one that edits videos."""
    for part in both_formats["original"].iterdir():
        if part.suffix != ".safetensors":
            (alone / part.name).symlink_to(part)
    state = {name: torch.zeros(shape) for name, shape in TINY.items()} | {"vace_x": torch.zeros(1)}
    save_file(state, alone / "edit.safetensors")
    with pytest.raises(ModelError, match=r"edit\.safetensors is a Wan VACE model"):
        models.find(str(alone))


@pytest.mark.parametrize("names", ["high_noise_model", "low_noise_model"])
def test_a_folder_of_half_a_wan22_is_called_so(alone: Path, names: str) -> None:
    (alone / "m" / names).mkdir(parents=True)
    with pytest.raises(ModelError, match=r"lacks (high|low)_noise_model") as caught:
        models.find(str(alone / "m"))
    assert "two experts" in (caught.value.hint or "")


@pytest.mark.parametrize("part", ["transformer", "transformer_2"])
def test_half_of_a_wan22_in_diffusers_format_is_not_taken_for_a_wan21(
    both_formats: dict[str, Path], alone: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Its shapes are Wan2.1's, and text encoder, VAE and tokenizer would be found in the hub's cache."""
    monkeypatch.setattr("fpsgen.weights.shared.folders", lambda: iter([both_formats["diffusers"]]))
    (alone / "m" / part).mkdir(parents=True)
    (alone / "m" / part / DIT).symlink_to(both_formats["original"] / DIT)
    index = {"_class_name": "WanPipeline", "transformer_2": ["diffusers", "WanTransformer3DModel"]}
    (alone / "m" / "model_index.json").write_text(json.dumps(index))
    assert "half a model" in str(refused(alone / "m" / part / DIT))


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "model."])
def test_what_stands_before_a_transformers_names_is_no_fault(
    both_formats: dict[str, Path], alone: Path, prefix: str
) -> None:
    file = beside(both_formats["original"], alone / "a")
    state = load_file(file)
    file.unlink()
    save_file({f"{prefix}{name}": tensor for name, tensor in state.items()}, file)
    load.check(models.find(str(file)).checkpoint)


def test_a_part_that_is_another_kind_is_named_and_called_what_it_is(both_formats: dict[str, Path], alone: Path) -> None:
    original = both_formats["original"]
    beside(original, alone / "a", without=(T5,))
    (alone / "a" / T5).symlink_to(original / VAE)
    with pytest.raises(ModelError, match=f"{T5} should be the text encoder, but is a VAE$"):
        models.find(str(alone / "a"))


@pytest.mark.parametrize("name", ["config.json", "google/umt5-xxl/tokenizer.json"])
def test_pointers_and_pages_are_told_in_place_of_json_too(
    both_formats: dict[str, Path], alone: Path, name: str
) -> None:
    shutil.copytree(both_formats["original"], alone / "a")
    for content, says in ((b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"), (b"<html>", "web page")):
        (alone / "a" / name).write_bytes(content)
        with pytest.raises(ModelError, match=says):
            models.find(str(alone / "a"))


def test_a_folder_is_told_by_its_files_before_what_lacks_beside_them(
    both_formats: dict[str, Path], alone: Path
) -> None:
    (alone / "m").mkdir()
    save_file({"diffusion_model.blocks.0.ffn.0.lora_A.weight": torch.zeros(1)}, alone / "m" / "style.safetensors")
    with pytest.raises(ModelError, match=r"style\.safetensors is a LoRA"):
        models.find(str(alone / "m"))
    (alone / "m" / "style.safetensors").rename(alone / "style.safetensors")
    (alone / "m" / "a.gguf").write_bytes(b"GGUF\3\0\0\0")
    with pytest.raises(ModelError, match=r"single files, such as a\.gguf"):
        models.find(str(alone / "m"))
    with pytest.raises(ModelError) as caught:
        models.find(str(both_formats["diffusers"] / "transformer"))
    assert str(both_formats["diffusers"]) in (caught.value.hint or "")


def beside(original: Path, folder: Path, *, without: tuple[str, ...] = (), name: str = "mine.safetensors") -> Path:
    """A transformer under another name with the parts of an original folder, but for some."""
    folder.mkdir(exist_ok=True)
    for part in original.iterdir():
        if part.name not in (*without, DIT, "config.json"):
            (folder / part.name).symlink_to(part)
    (folder / name).symlink_to(original / DIT)
    return folder / name


def test_parts_beside_a_file_are_used_before_the_hub_is_mentioned(both_formats: dict[str, Path], alone: Path) -> None:
    original = both_formats["original"]
    for file in (original / DIT, both_formats["diffusers"] / "transformer" / DIT, beside(original, alone / "a")):
        found = models.find(str(file)).checkpoint
        assert found.transformer == [file]
        assert found.config.dim == 128
    assert models.find(str(alone / "a" / "mine.safetensors")).checkpoint.vae == [alone / "a" / VAE]
    (alone / "a" / "another.safetensors").symlink_to(original / DIT)  # which of two is said: the folder is in no doubt
    assert models.find(str(alone / "a" / "another.safetensors")).checkpoint.tokenizer.is_relative_to(alone)


@pytest.mark.parametrize(
    ("without", "says"),
    [
        ((T5, VAE, "google"), "its text encoder, VAE and tokenizer are neither beside it nor in the hub's cache"),
        ((T5,), "its text encoder is neither beside it"),
        (("google",), "its tokenizer is neither beside it"),
    ],
)
def test_only_what_is_nowhere_is_asked_for(
    both_formats: dict[str, Path], alone: Path, without: tuple[str, ...], says: str
) -> None:
    error = refused(beside(both_formats["original"], alone / "a", without=without))
    assert says in str(error)
    assert "fpsgen models pull " in (error.hint or "")


def test_what_is_not_beside_a_file_comes_from_the_hubs_cache(
    both_formats: dict[str, Path], alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = both_formats["diffusers"]
    monkeypatch.setattr("fpsgen.weights.shared.folders", lambda: iter([elsewhere]))
    found = models.find(str(beside(both_formats["original"], alone / "a", without=(T5,)))).checkpoint
    assert found.vae == [alone / "a" / VAE]
    assert found.text_encoder[0].is_relative_to(elsewhere)


def test_a_vae_of_another_name_beside_a_file_is_found(both_formats: dict[str, Path], alone: Path) -> None:
    original = both_formats["original"]
    file = beside(original, alone / "a", without=(VAE,))
    save_file(torch.load(original / VAE, weights_only=True), alone / "a" / "wan_2.1_vae.safetensors")
    assert models.find(str(file)).checkpoint.vae == [alone / "a" / "wan_2.1_vae.safetensors"]
