"""What is in a cubin, by its bytes: nvdisasm is not installed where kernels are.

A cubin is a 64-bit ELF file with a section `.text.<entry>` for each entry function. An instruction of Hopper's is 16
bytes, and the low 9 bits of the first 8 say what it is; nvdisasm's listing has the names.
"""

from __future__ import annotations

import struct
from collections import Counter

_TENSOR_CORE = {0x1F0: "HGMMA", 0x1F1: "IGMMA", 0x1F3: "QGMMA"}  # wgmma in 16 bits, in INT8, in FP8
_SECTION = struct.Struct("<IIQQQQ")  # the first fields of a section's header: name, type, flags, address, offset, size


def tensor_core_instructions(cubin: bytes) -> dict[str, dict[str, int]]:
    """How many instructions of each kind are in each entry function; ValueError where `cubin` is none."""
    try:
        code = {name: body for name, body in sections(cubin).items() if name.startswith(".text.")}
        return {name.removeprefix(".text."): dict(sorted(count(body).items())) for name, body in code.items()}
    except (struct.error, IndexError, ValueError) as fault:
        raise ValueError(f"this is not a cubin: {fault}") from None


def count(code: bytes) -> Counter[str]:
    operations = (first & 0x1FF for first, _ in struct.iter_unpack("<QQ", code))
    return Counter(_TENSOR_CORE[operation] for operation in operations if operation in _TENSOR_CORE)


def sections(elf: bytes) -> dict[str, bytes]:
    """The sections of a 64-bit little-endian ELF file, by name."""
    if elf[:6] != b"\x7fELF\x02\x01":
        raise ValueError("it does not begin as a 64-bit ELF file")
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    each, many, of_names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [_SECTION.unpack_from(elf, table + number * each) for number in range(many)]
    names = elf[headers[of_names][4] :]
    return {
        names[name : names.index(b"\0", name)].decode(): elf[offset : offset + length]
        for name, _, _, _, offset, length in headers
    }
