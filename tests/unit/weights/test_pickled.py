"""Headers of `.pth` files, read without torch, against what torch reads; and pickles made to be followed astray."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fpsgen.errors import ModelError
from fpsgen.weights.headers import headers

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.bool: "BOOL"}


def states() -> dict[str, dict[str, torch.Tensor]]:
    base = torch.arange(24.0).reshape(4, 6)
    module = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    return {
        "module": module.state_dict(),  # an OrderedDict with versions, and a number of no dimensions
        "parameters": OrderedDict(module.named_parameters()),
        "views": {"a": base[1:, 2:], "b": base.t(), "c": base, "d": base[0, 0], "e": base.expand(3, 4, 6)},
        "dtypes": {name: torch.zeros(2, 3).to(dtype) for dtype, name in NAMES.items()},
        "empty": {"a": torch.zeros(0, 7), "b": torch.zeros(3)},
        "many": {f"layer.{n}.weight": torch.zeros(n % 5 + 1, 2) for n in range(400)},  # long numbers in its memo
    }


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", sorted(states()))
def test_headers_are_what_torch_reads(tmp_path: Path, kind: str, protocol: int) -> None:
    state, file = states()[kind], tmp_path / "a.pth"
    torch.save(state, file, pickle_protocol=protocol)
    found = headers([file])
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].shape == tuple(tensor.shape)
        assert found[name].dtype == NAMES[tensor.dtype]


def test_dtypes_without_a_storage_of_their_own_are_named(tmp_path: Path) -> None:
    dtypes = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "float8_e5m2fnuz": torch.float8_e5m2fnuz}
    torch.save({name: torch.zeros(3).to(dtype) for name, dtype in dtypes.items()}, tmp_path / "a.pth")
    found = headers([tmp_path / "a.pth"])
    assert {name: header.dtype for name, header in found.items()} == {name: name for name in dtypes}


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    """torch can leave them out, and reads such files."""
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert headers([tmp_path / "a.pth"])["a"].shape == (3,)


class Calls:
    def __init__(self, function: Callable, *arguments: object):
        self.made = function, arguments

    def __reduce__(self) -> tuple:
        return self.made


def with_description(file: Path, description: bytes) -> None:
    content = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, content)
    with zipfile.ZipFile(content) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, description if name.endswith("data.pkl") else old.read(name))


def nested(depth: int) -> bytes:
    """A tuple of a tuple of …, each twice its own: whoever walks through it never ends."""
    return b"\x80\x02" + b"(t" + b"q\0" + b"".join(b"h\0h\0\x86q\0" for _ in range(depth)) + b"."


@pytest.mark.parametrize(
    "description",
    [
        pickle.dumps({"a": Calls(os.system, "true")}, 2),
        pickle.dumps({"a": Calls(eval, "1")}, 4),
        pickle.dumps(os.system, 2),
        nested(500),
        b"\x80\x02}" + nested(500)[2:-1] + b"K\1s.",
        b"\x80\x02)q\0" + b"h\0h\0\x86q\0" * 100 + b"}h\0K\1s.",  # as a key, which torch would hash for ever
        b"\x80\x02r\xff\xff\xff\x7f.",
        b"\x80\x02K\1r\xff\xff\xff\x7f.",  # 34 GB of memo in Python's own reader
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02" + b"(" * 200_000 + b"t" * 200_000 + b".",  # hours, if each end is looked for from the beginning
        b"\x80\x02" + b"t.",
        b"",
        b"\x80\x02.",
        b"\x80\x02I1\n.",
        b"c__builtin__\neval\n(S'1'\ntR.",
    ],
)
def test_pickles_that_lead_astray_end_in_a_sentence(tmp_path: Path, description: bytes) -> None:
    with_description(tmp_path / "a.pth", description)
    with pytest.raises(ModelError, match=r"a\.pth"):
        headers([tmp_path / "a.pth"])


def test_values_that_repeat_endlessly_are_damage(tmp_path: Path) -> None:
    """Four terabytes, of which four bytes are stored."""
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "a.pth")
    with pytest.raises(ModelError, match="far larger than what is stored"):
        headers([tmp_path / "a.pth"])


def test_a_tensor_beyond_its_storage_is_damage(tmp_path: Path) -> None:
    """Shape [300] becomes [65535], of a storage that has 300."""
    torch.save({"a": torch.zeros(300)}, tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    assert content.count(b"M\x2c\x01\x85") == 1  # BININT2 300, TUPLE1
    (tmp_path / "a.pth").write_bytes(content.replace(b"M\x2c\x01\x85", b"M\xff\xff\x85"))
    with pytest.raises(ModelError, match="damaged"):
        headers([tmp_path / "a.pth"])
