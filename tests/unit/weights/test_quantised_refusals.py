"""Files in fewer than 16 bits that cannot be read: one sentence each, before a weight is."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from fpsgen.errors import ModelError
from fpsgen.weights import headers, load, models
from tests.tools.cli import models as command
from tests.tools.quantised import DIALECTS, FP8, State, note, write, write_gguf

DIT = "diffusion_pytorch_model.safetensors"
Q, OUT = "blocks.0.self_attn.q", "blocks.0.self_attn.o"
Change = Callable[[State], object]


def refused(file: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load.check(models.find(str(file)).checkpoint)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


def put(**tensors: torch.Tensor) -> Change:
    return lambda state: state.update({f"{Q}.{name}": value for name, value in tensors.items()})


@pytest.mark.parametrize(
    ("dialect", "change", "says"),
    [
        ("lightx2v", lambda s: s.pop(f"{Q}.weight_scale"), f"lacks the scales of 8-bit weights, 1 in all: {Q}.weight"),
        (
            "lightx2v int8",
            lambda s: s.pop(f"{Q}.weight_scale"),
            f"lacks the scales of 8-bit weights, 1 in all: {Q}.weight",
        ),
        (
            "comfy, old",
            lambda s: s.pop(f"{Q}.scale_weight"),
            f"lacks the scales of 8-bit weights, 1 in all: {Q}.weight",
        ),
        ("fp8", lambda s: s.update(scaled_fp8=torch.zeros(2)), "lacks the scales of"),
        (
            "lightx2v",
            put(weight_scale=torch.ones(3)),
            f"neither one number nor one for each row, 1 in all: {Q}.weight_scale [3]",
        ),
        ("lightx2v", put(weight_scale=torch.ones(1, 128)), "neither one number nor one for each row"),
        ("lightx2v", put(weight_scale=torch.ones(128, 2)), "neither one number nor one for each row"),
        ("lightx2v", put(weight=torch.zeros(128, 128)), f"has scales of no 8-bit weight, 1 in all: {Q}.weight_scale"),
        ("lightx2v", lambda s: s.pop(f"{OUT}.weight"), f"has scales of no 8-bit weight, 1 in all: {OUT}.weight_scale"),
        ("lightx2v", put(weight=torch.zeros(64, 128).to(FP8), weight_scale=torch.ones(64)), "1 of another shape"),
        ("lightx2v", put(weight_scale=torch.ones(128, 8).to(FP8)), "one scale for every few numbers"),
        ("lightx2v", put(scale_weight=torch.ones(())), f"has two scales of a weight, 1 in all: {Q}."),
        ("lightx2v", put(weight_scale_2=torch.ones(())), "holds weights in 4 bits (NVFP4)"),
        ("lightx2v", put(weight_scale_inv=torch.ones(1, 1)), f"1 unexpected: {Q}.weight_scale_inv"),
        ("comfy", put(comfy_quant=note(format="nvfp4")), "holds weights in nvfp4"),
        ("comfy", put(comfy_quant=note(format="mxfp8")), "holds weights in mxfp8"),
        ("comfy", put(comfy_quant=note(format="\x1b[2J")), "holds weights in "),
        ("comfy int8", put(comfy_quant=note(format="int8_tensorwise", convrot=True)), "rotated (ConvRot)"),
        ("comfy int8", put(comfy_quant=note(format="int8_tensorwise", params={"convrot": True})), "rotated (ConvRot)"),
        ("comfy, old", put(weight=torch.zeros(128, 128, dtype=torch.int32)), "has scales of no 8-bit weight"),
    ],
)
def test_scales_that_do_not_fit_are_named(
    original: Path, state: State, dialect: str, change: Change, says: str
) -> None:
    written = DIALECTS[dialect](state)
    change(written)
    error = refused(write(original / "mine.safetensors", written))
    assert says in str(error)
    assert "\x1b" not in str(error)
    assert str(original / "mine.safetensors") in str(error)


def test_formats_in_metadata_are_read(original: Path, state: State) -> None:
    layers = {"layers": {Q: {"format": "nvfp4"}}}
    written = DIALECTS["comfy"](state)
    file = write(original / "mine.safetensors", written, {"_quantization_metadata": json.dumps(layers)})
    assert "holds weights in nvfp4" in str(refused(file))
    for text in ("{", "[]", '{"layers": 3}', '{"layers": {"a": 1}}', "[" * 5000):
        write(file, written, {"_quantization_metadata": text})
        load.check(models.find(str(file)).checkpoint)


@pytest.mark.parametrize("keep", [10, 100, 0.05, 0.5, 0.999])
def test_a_cut_gguf_file_says_so(original: Path, state: State, keep: float) -> None:
    file = original / "mine.gguf"
    write_gguf(file, state, "Q8_0")
    content = file.read_bytes()
    file.write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    assert "mine.gguf is damaged: it ends " in str(refused(file))


def pairs(*told: tuple[str, int, bytes]) -> bytes:
    """A GGUF file's header without tensors: metadata of (key, type, bytes)."""
    text = b"".join(
        struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + raw for key, kind, raw in told
    )
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(told)) + text


def tensor(*shape: int, kind: int = 0, offset: int = 0, count: int = 1) -> bytes:
    """A header of tensors that all have one name."""
    one = struct.pack("<Q", 1) + b"a" + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return b"GGUF" + struct.pack("<IQQ", 3, count, 0) + (one + struct.pack("<IQ", kind, offset)) * count


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "of version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "ends within its header"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "ends within its header"),
        (pairs(("a", 9, struct.pack("<IQ", 4, 1 << 60))), "ends within its header"),
        (pairs(("a", 9, struct.pack("<IQ", 8, 1 << 60))), "ends within its header"),
        (pairs(("a", 9, struct.pack("<IQ", 9, 1 << 60) + struct.pack("<IQ", 9, 1) * 5000)), "ends within its header"),
        (pairs(("a", 8, struct.pack("<Q", 1 << 63))), "ends within its header"),
        (pairs(("a", 77, b"")), "metadata of an unknown type, 77"),
        (pairs(("general.alignment", 4, struct.pack("<I", 0))), "its alignment is no count"),
        (pairs(("general.alignment", 8, struct.pack("<Q", 1) + b"a")), "its tensors are called nothing"),
        (tensor(4, kind=4242), "of a type that fpsgen does not know, 4242"),
        (tensor(4, kind=24), "holds I8 numbers, which fpsgen does not read"),
        (tensor(33, kind=8), "rows of 33 numbers are no blocks of 32"),
        (tensor(1 << 62, 1 << 62), "is damaged: it ends after"),
        (tensor(4, offset=1 << 63), "is damaged: it ends after"),
        (tensor(*[1] * 9), "of more than 8 dimensions"),
        (tensor(4, count=2), "names a tensor twice"),
    ],
)
def test_hostile_gguf_headers_end_at_once(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    assert says in str(refused(tmp_path / "a.gguf"))


@pytest.mark.parametrize(
    ("arch", "names", "says"),
    [
        ("llama", ["token_embd.weight", "blk.0.attn_q.weight"], "is a language model"),
        ("flux", ["double_blocks.0.img_attn.qkv.weight"], "its tensors are called double_blocks.0"),
        ("t5encoder", ["token_embd.weight", "enc.blk.0.attn_rel_b.weight"], "is a text encoder"),
    ],
)
def test_gguf_files_of_other_models_are_called_what_they_are(
    tmp_path: Path, arch: str, names: list[str], says: str
) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", arch)
    for name in names:
        writer.add_tensor(name, np.zeros((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert says in str(refused(tmp_path / "a.gguf"))


def test_a_wrong_shape_in_metadata_is_told(original: Path, state: State) -> None:
    write_gguf(original / "mine.gguf", {f"{Q}.weight": state[f"{Q}.weight"]}, "Q4_K")
    content = (original / "mine.gguf").read_bytes()
    place = content.index(b"orig_shape") + len(f"orig_shape.{Q}.weight") + 16
    (original / "mine.gguf").write_bytes(content[:place] + struct.pack("<i", 3) + content[place + 4 :])
    assert "are to be a tensor of shape [3, 128]" in str(refused(original / "mine.gguf"))


def test_a_shape_in_metadata_is_of_whole_numbers(original: Path, state: State) -> None:
    """Others would equal a parameter's, and fail once it is read."""
    write_gguf(original / "mine.gguf", {f"{Q}.weight": state[f"{Q}.weight"]}, "Q4_K")
    content = (original / "mine.gguf").read_bytes()
    place = content.index(b"orig_shape") + len(f"orig_shape.{Q}.weight") + 4
    floats = struct.pack("<IQff", 6, 2, *state[f"{Q}.weight"].shape)
    (original / "mine.gguf").write_bytes(content[:place] + floats + content[place + len(floats) :])
    (found,) = headers.headers([original / "mine.gguf"]).values()
    assert all(type(length) is int for length in found.shape)


def test_gguf_tensors_that_overlap_are_refused(tmp_path: Path) -> None:
    """Else a small file could ask for any amount of memory."""
    names = [struct.pack("<Q", 1) + name + struct.pack("<IQIQ", 1, 400, 0, 0) for name in (b"a", b"b")]
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2, 0) + b"".join(names) + bytes(1700))
    assert "is damaged: its tensors overlap" in str(refused(tmp_path / "a.gguf"))


@pytest.mark.parametrize("name", ["mine.safetensors", "mine.gguf"])
def test_files_of_fewer_bits_are_not_converted(original: Path, state: State, tmp_path: Path, name: str) -> None:
    if name == "mine.gguf":
        write_gguf(original / name, state, "Q8_0")
    else:
        write(original / name, DIALECTS["lightx2v"](state))
    result = command("convert", original / name, tmp_path / "out")
    assert result.exit_code == 2
    kind = "Q8_0" if name == "mine.gguf" else "F8_E4M3"
    assert f"its transformer is in {kind}, which the other format has no place for" in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()
