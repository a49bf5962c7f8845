"""Damaged copies of bytes and of JSON values, seeded: what a fuzzer feeds to readers."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

_NUMBERS = [0, 1, 2, 7, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]
_TOKENS = [
    b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"{", b"}", b"[" * 3000, b'"', b"'''", b"\\", b"\\ud800", b"\n", b"\r",
    b"=", b"null", b"nan", b"-inf", b"1e999", b"-1", b"9" * 5000, b"0x1F", b"true", b"1979-05-27", b"a.b.c",
    "\u2028猫".encode(), b"[[", b"]]", b"#", b",", b":", b"%s", b"/../..", b"~nobody/a",
]  # fmt: skip
_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 10**30, 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan"), "", "a", "\ud800",
    "\0", "9" * 300, "../../etc", [], [1], [[]], [None, "a"], {}, {"a": 1}, {"sha256": 3, "path": []}, [0, 0, 0], "1x1",
]  # fmt: skip


def mutated(data: bytes, rng: random.Random, tokens: Sequence[bytes] = ()) -> bytes:
    """A copy with one to four damages."""
    own = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(own) + 1)
        other = rng.randrange(len(own) + 1)
        first, last = min(place, other), max(place, other)
        last = min(last, first + rng.choice((1, 8, 64, 1000)))
        match rng.randrange(9):
            case 0:
                own[place : place + 1] = rng.randbytes(1)
            case 1:
                own[place : place + 8] = rng.choice(_NUMBERS).to_bytes(8, "little")
            case 2:
                own[place : place + 4] = (rng.choice(_NUMBERS) % 2**32).to_bytes(4, rng.choice(("little", "big")))
            case 3:
                own[place:place] = rng.choice([*_TOKENS, *tokens])
            case 4:
                own[first:last] = rng.choice([*_TOKENS, *tokens])
            case 5:
                del own[first:last]
            case 6:
                own[place:place] = own[first:last]
            case 7 if tokens:  # a word of a text
                words = list(re.finditer(rb"[\w.\"-]+", own))
                if words:
                    own[slice(*rng.choice(words).span())] = rng.choice([*_TOKENS, *tokens])
            case _:
                if rng.random() < 0.3:
                    del own[place:]
    return bytes(own)


def json_mutated(value: Any, rng: random.Random) -> Any:
    """A copy in which one to three values are others, or gone."""
    own = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        inside = list(_inside(own))
        if not inside:
            return rng.choice(_VALUES)
        holder, key = rng.choice(inside)
        if rng.random() < 0.2:
            del holder[key]
        elif rng.random() < 0.2:
            other, same = rng.choice(inside)
            holder[key] = copy.deepcopy(other[same])
        else:
            holder[key] = copy.deepcopy(rng.choice(_VALUES))
    return own


def _inside(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each place of a value in lists and dictionaries."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _inside(value[key])
