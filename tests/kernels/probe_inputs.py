"""What the probes read: where rounding, saturation and layouts can go wrong, and seeded random words besides."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

Words = np.ndarray  # uint32 [rows, columns]

A_ROWS, K = 64, 128
EXACT = 4  # patterns of E4M3 operands, the first, of which sums are exact
# Bits of zeros, subnormal numbers at both ends, the least and the largest normal numbers, one, infinities and NaN;
# then their negatives.
_FLOATS = (0, 1, 0x7FFFFF, 0x800000, 0x3F800000, 0x7F7FFFFF, 0x7F800000, 0x7FC00000, 0x7F800001, 0x7FFFFFFF)
_HALVES = (0, 1, 0x3FF, 0x400, 0x3C00, 0x7BFF, 0x7C00, 0x7E00, 0x7C01, 0x7FFF)
FLOATS = np.array([*_FLOATS, *(x | 1 << 31 for x in _FLOATS)], np.uint32)
HALVES = np.array([*_HALVES, *(x | 1 << 15 for x in _HALVES)], np.uint32)


def words(rows: int, columns: int) -> Callable[[np.random.Generator], Words]:
    return lambda random: random.integers(0, 1 << 32, (rows, columns), np.uint32)


def conditions(_: np.random.Generator) -> Words:
    """For a warp's vote: nobody, everybody, a thread of each of two warps, all but one thread of a warp."""
    found = np.zeros((4, 128), np.uint32)
    found[1] = 7
    found[2, [0, 95]] = 1, 1 << 31
    found[3, 32:63] = 1
    return found


def offsets(_: np.random.Generator) -> Words:
    """From one operand to others: along K, and by groups of eight rows."""
    return np.array([[0, 32, 64, 96, *(1024 * i for i in range(1, 8)), 1024 + 32, 7 * 1024 + 96]], np.uint32)


# ---- floats ---------------------------------------------------------------------------------------------------------


def bits(x: np.ndarray) -> Words:
    return np.asarray(x, np.float32).view(np.uint32)


def around(numbers: np.ndarray) -> Words:
    """Numbers of a shorter format, the ties between them, and what is beside a tie; of both signs."""
    numbers = np.unique(np.abs(numbers.astype(np.float64)))
    ties = ((numbers[1:] + numbers[:-1]) / 2).astype(np.float32)
    with np.errstate(over="ignore"):  # beside the largest float32 is infinity
        x = np.concatenate([numbers, ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(np.inf))])
        x = bits(x)
    return np.concatenate([x, x | np.uint32(1 << 31)])


def rows(x: Words, count: int) -> Words:
    """The same words in several rows, each begun elsewhere: operands of one conversion that differ."""
    return np.stack([np.roll(x, i * len(x) // count) for i in range(count)])


def for_e4m3(random: np.random.Generator) -> Words:
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    beyond = bits(np.array([464, 465, 480, 512, 1e9, -464, -465, -480, -512, -1e9]))
    return rows(np.concatenate([around(codes), beyond, FLOATS, random.integers(0, 1 << 32, 1 << 14, np.uint32)]), 4)


def for_bf16(random: np.random.Generator) -> Words:
    numbers = (np.arange(0x7F80, dtype=np.uint32) << 16).view(np.float32)
    largest = np.array([0x7F7F7FFF, 0x7F7F8000, 0xFF7F7FFF, 0xFF7F8000], np.uint32)  # the last become infinity
    return rows(np.concatenate([around(numbers), largest, FLOATS, random.integers(0, 1 << 32, 1 << 14, np.uint32)]), 2)


def for_half(random: np.random.Generator) -> Words:
    numbers = np.append(np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64), 65536)
    return np.concatenate([around(numbers), FLOATS, random.integers(0, 1 << 32, 1 << 14, np.uint32)])[None]


def exponents(random: np.random.Generator) -> Words:
    spread = random.uniform(-150, 130, 1 << 14)
    near_zero = np.exp2(random.uniform(-30, 0, 1 << 12)) * random.choice([-1, 1], 1 << 12)
    found = [bits(spread), bits(near_zero), bits(np.arange(-160, 140)), FLOATS]
    return np.concatenate([*found, random.integers(0, 1 << 32, 1 << 12, np.uint32)])[None]


def float_triples(random: np.random.Generator) -> Words:
    """a, b, c of a b + c: sums in and around [0, 1], each of FLOATS with each, subnormal results, any bits."""
    plain = bits(random.uniform(-1.5, 1.5, (3, 1 << 14)))
    special = np.stack(np.meshgrid(FLOATS, FLOATS, FLOATS)).reshape(3, -1)
    a, b = np.exp2(random.uniform(-80, -50, (2, 1 << 12)))
    small = bits(np.stack([a, b, np.exp2(random.uniform(-130, -110, 1 << 12)) * random.choice([-1, 0, 1], 1 << 12)]))
    return np.concatenate([plain, special, small, random.integers(0, 1 << 32, (3, 1 << 12), np.uint32)], 1)


# ---- pairs of FP16 --------------------------------------------------------------------------------------------------


def paired(x: np.ndarray) -> Words:
    """FP16 bits [rows, columns] as words: each number in the lower half, and another one of its row above it."""
    x = x.astype(np.uint32)
    return x | np.roll(x, len(x[0]) // 3, 1) << 16


def every_half(random: np.random.Generator) -> np.ndarray:
    return random.permutation(1 << 16)


def all_halves(random: np.random.Generator) -> Words:
    return paired(every_half(random)[None])


def half_bits(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, np.float16).view(np.uint16).astype(np.uint32)


def half_pairs(random: np.random.Generator) -> Words:
    """All numbers with all in another order, twice; with their own selves and negatives; each of HALVES with each."""
    a, b, c = (every_half(random) for _ in range(3))
    special = np.stack(np.meshgrid(HALVES, HALVES)).reshape(2, -1)
    return paired(np.concatenate([[a, b], [b, c], [a, a], [c, c ^ 0x8000], special], 1))


def half_triples(random: np.random.Generator) -> Words:
    """a, b, c of a b + c: any bits; sums in and around [0, 1]; each of HALVES with each; and sums that float32 would
    round to a tie of FP16, which show who rounds twice."""
    anything = np.stack([every_half(random) for _ in range(3)])
    plain = half_bits(random.uniform(-1.5, 1.5, (3, 1 << 15)))
    special = np.stack(np.meshgrid(HALVES, HALVES, HALVES)).reshape(3, -1)
    # (1 + 2^-i) (1 + 2^-j) with i + j = 11 is half an ulp off; and a product just short of 2^-12, half an ulp of 1/2.
    ties = [(1 + 2.0**-i, 1 + 2.0 ** (i - 11), c * 2.0**-24) for i in range(1, 11) for c in (-3, -2, -1, 1, 2, 3)]
    ties += [(1 + 2.0**-9, 2.0**-12 * (1 - 2.0**-9), 0.5 + odd * 2.0**-11) for odd in range(1, 1000, 2)]
    ties += [(-a, b, -c) for a, b, c in ties]
    return paired(np.concatenate([anything, plain, special, half_bits(np.array(ties).T)], 1))


# ---- operands of products -------------------------------------------------------------------------------------------


def selections(rows: int, one: int) -> tuple[np.ndarray, np.ndarray]:
    """Operands that pick bytes of the other one: A [2, 64, 128], rows for even and odd K, and B [rows, 128]."""
    a, b = np.zeros((2, A_ROWS, K), np.uint8), np.zeros((rows, K), np.uint8)
    a[0, np.arange(A_ROWS), 2 * np.arange(A_ROWS)] = one
    a[1, np.arange(A_ROWS), 2 * np.arange(A_ROWS) + 1] = one
    b[np.arange(rows), np.arange(rows) % K] = one
    return a, b


def as_words(patterns: list[tuple[np.ndarray, np.ndarray]]) -> Words:
    """Bytes of A and B, [64, 128] and [rows, 128], as a row for each pattern."""
    return np.stack([np.concatenate([a, b]).astype(np.uint8).reshape(-1).view(np.uint32) for a, b in patterns])


def spread(codes: np.ndarray, rows: int) -> np.ndarray:
    """All codes, over and over, begun elsewhere in each row."""
    return codes[(37 * np.arange(rows)[:, None] + np.arange(K)) % len(codes)]


def e4m3_codes(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(np.asarray(x, np.float32)).to(torch.float8_e4m3fn).view(torch.uint8).numpy()


def e4m3_operands(random: np.random.Generator, rows: int, wide: bool) -> Words:
    """Every code but NaN, picked from B, then from A; small integers: all exact. Then rounded sums, `wide`: of codes of
    any size."""
    codes = np.delete(np.arange(256), [0x7F, 0xFF])
    a, b = selections(rows, 0x38)
    picked = [(a[0], spread(codes, rows)), (a[1], spread(codes, rows)), (spread(codes, A_ROWS), b)]
    integers = integer_codes(random, rows)
    normal = tuple(e4m3_codes(np.clip(4 * random.standard_normal((n, K)), -16, 16)) for n in (A_ROWS, rows))
    any_size = tuple(random.choice(codes, (n, K)) for n in (A_ROWS, rows))
    return as_words([*picked, integers, normal, *([any_size] if wide else [])])


def integer_codes(random: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """-4 to 4: any sum of 128 products is at most 2048, which FP16 holds and so do 13 bits."""
    a, b = (e4m3_codes(random.integers(-4, 5, (n, K))) for n in (A_ROWS, rows))
    return a, b


def integer_operands(random: np.random.Generator) -> Words:
    return as_words([integer_codes(random, 128)])


def int8_operands(random: np.random.Generator, rows: int) -> Words:
    """Every byte picked from B and from A, any bytes, and the largest sum."""
    codes = np.arange(256)
    a, b = selections(rows, 1)
    anything = tuple(random.integers(0, 256, (n, K)) for n in (A_ROWS, rows))
    largest = tuple(np.full((n, K), 0x80) for n in (A_ROWS, rows))
    return as_words([(a[0], spread(codes, rows)), (spread(codes, A_ROWS), b), anything, largest])


def matrices(words: Words, rows: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """`codes` as float64."""
    numbers = (
        torch.from_numpy(x).view(torch.float8_e4m3fn if kind == "e4m3" else torch.int8) for x in codes(words, rows)
    )
    a, b = (x.double().numpy() for x in numbers)
    return a, b


def codes(words: Words, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """A [patterns, 64, 128] and B [patterns, rows, 128] of a probe's words, bytes."""
    both = words.view(np.uint8).reshape(len(words), A_ROWS + rows, K)
    return both[:, :A_ROWS].copy(), both[:, A_ROWS:].copy()


def fragments(d: np.ndarray, per_word: int) -> np.ndarray:
    """[patterns, 64, rows] in the order in which threads hold it: [patterns, thread, register, number in it].

    PTX ISA, accumulator D of wgmma m64nNk32: a warp has 16 rows, four threads share a row and the one eight further
    down, and have two neighbouring columns of every eight.
    """
    patterns, _, columns = d.shape
    split = d.reshape(patterns, 4, 2, 8, columns // 8, 4, 2)  # warp, lower half, row, eight, quad, column
    held = split.transpose(0, 1, 3, 5, 4, 2, 6)  # warp, row, quad: the thread; then eight, lower half, column
    return np.ascontiguousarray(held).reshape(patterns, 128, columns // 2 // per_word, per_word)
