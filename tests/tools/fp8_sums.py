"""The rule of fpsgen/attention/sums.py once more: in integers, from the bytes, and by other people's words alone."""

from __future__ import annotations

import ml_dtypes
import numpy as np


def parts(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sign, significand m and exponent e of E4M3 bytes: each is ± m 2^(e - 3)."""
    codes = codes.astype(np.int64)
    field, mantissa = codes >> 3 & 15, codes & 7
    return np.where(codes & 128, -1, 1), np.where(field > 0, 8 + mantissa, mantissa), np.maximum(field, 1) - 7


def instruction(c: np.ndarray, a: np.ndarray, b: np.ndarray, where: str = "aligned", keep: int = 13) -> np.ndarray:
    """float64 [...]: c + Σ a b before it is rounded. c: float64 [...]; a, b: E4M3 bytes [..., 32]."""
    (sign_a, m_a, e_a), (sign_b, m_b, e_b) = parts(a), parts(b)
    exponents = e_a + e_b  # of products m_a m_b 2^(e - 6)
    top = exponents.max(-1)
    if where == "aligned":
        top = np.where(c != 0, np.maximum(top, np.frexp(c)[1] - 1), top)
    gap = np.minimum(top[..., None] - exponents, 62)
    total = (sign_a * sign_b * ((m_a * m_b << (keep - 6)) >> gap)).sum(-1)
    if where == "aligned":
        return np.ldexp(total + np.trunc(np.ldexp(c, keep - top)), top - keep)
    return np.ldexp(total.astype(float), top - keep) + c


def shortened(x: np.ndarray, keep: int = 13) -> np.ndarray:
    """What is left of float64 numbers behind so many bits after the leading one."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.trunc(np.ldexp(mantissa, keep + 1)), exponent - keep - 1)


def product(a: np.ndarray, b: np.ndarray, half: bool, where: str = "aligned", how: str = "rounded") -> np.ndarray:
    """float64 [..., rows, columns]: a bᵀ by instructions of 32; a, b: E4M3 bytes [..., rows or columns, n]."""
    c = np.zeros((*a.shape[:-1], b.shape[-2]))
    for start in range(0, a.shape[-1], 32):
        own, other = (x[..., start : start + 32] for x in (a[..., :, None, :], b[..., None, :, :]))
        if how == "exact":
            numbers = [x.view(ml_dtypes.float8_e4m3fn).astype(float) for x in (own, other)]
            d = c + (numbers[0] * numbers[1]).sum(-1)
        else:
            d = instruction(c, *np.broadcast_arrays(own, other), where)
        if not half:
            c = shortened(d)
            continue
        c = d.astype(np.float16)
        if how == "cut":
            c = np.where(np.abs(c) > np.abs(d), np.nextafter(c, np.float16(0)), c)
        c = c.astype(float)
    return c
