"""Numbers into GGUF's K types: 256 to a block, scales that are themselves small whole numbers.

Q4_K and Q5_K give each 32 numbers a scale and a least number, Q6_K each 16 a scale. They are found
as llama.cpp finds them: some twenty roundings are tried, for each the best scale is a weighted
least-squares fit, and the one with the least error is kept. Sums are taken in float32 in
llama.cpp's order, so that nearly all blocks are the same to the bit.
"""

from __future__ import annotations

import numpy as np

from llmasos_jax.interop.gguf.quants import block_layout

_TINY = np.float32(1e-15)  # below this a group is zero
_TRIES = {"Q4_K": (15, -1.0, 20), "Q5_K": (31, -0.5, 15)}  # top number, first shift, last try


def quantize_k(kind: str, rows: np.ndarray) -> np.ndarray:
    """The blocks of whole rows.

    Args:
      kind: "Q4_K", "Q5_K" or "Q6_K".
      rows: float32 [rows, columns], contiguous; columns are a multiple of 256.

    Returns:
      The blocks, of `quants.block_layout(kind)`.

    Example:
      >>> quantize_k("Q4_K", np.zeros((1, 256), np.float32)).nbytes
      144
    """
    out = np.empty(rows.size // 256, block_layout(kind))
    width = 16 if kind == "Q6_K" else 32
    # One column a group: all that follows is along rows of memory.
    x_wg = np.ascontiguousarray(rows.reshape(-1, width).T)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if kind == "Q6_K":
            _q6_k(x_wg, out)
        else:
            _with_least(kind, x_wg, out)
    return out


def _with_least(kind: str, x_wg: np.ndarray, out: np.ndarray) -> None:
    """Q4_K and Q5_K: x is about d * scale * q - dmin * least, for 8 groups of 32."""
    top, shift, tries = _TRIES[kind]
    scale_g, least_g = _fitted(x_wg, top, shift, tries)
    out["d"], scale_g = _six_bits(scale_g)
    out["dmin"], least_g = _six_bits(least_g)
    step_g = np.repeat(out["d"].astype(np.float32), 8) * scale_g
    below_g = np.repeat(out["dmin"].astype(np.float32), 8) * least_g
    q_wg = np.rint((x_wg + below_g) / np.where(step_g == 0, np.float32(np.inf), step_g))
    q_bgw = np.clip(q_wg, 0, top).astype(np.uint8).T.reshape(-1, 8, 32)
    low = q_bgw & np.uint8(15)
    out["q"] = (low[:, 0::2] | (low[:, 1::2] << np.uint8(4))).reshape(-1, 128)
    out["scales"] = _packed(scale_g.astype(np.uint8), least_g.astype(np.uint8))
    if kind == "Q5_K":
        out["high"] = np.packbits(q_bgw >> np.uint8(4), axis=1, bitorder="little")[:, 0]


def _fitted(x_wg: np.ndarray, top: int, shift: float, tries: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and what is subtracted (0 or above) of each group, float32 [groups].

    Large numbers weigh more: by their size and that of their neighbours. What is found to be better
    is where the next try starts from.
    """
    size = np.float32(len(x_wg))
    weight_wg = np.abs(x_wg)
    weight_wg += np.sqrt((x_wg * x_wg).sum(0) / size)
    wx_wg = weight_wg * x_wg
    sum_w, sum_x = weight_wg.sum(0), wx_wg.sum(0)
    least_g, most_g = np.minimum(x_wg.min(0), np.float32(0)), x_wg.max(0)
    flat_g = most_g == least_g
    most_g = np.where(flat_g, least_g + np.float32(1), most_g)
    flat_least_g = least_g
    scale_g = np.float32(1) / (np.float32(top) / (most_g - least_g))
    q_wg, work_wg = np.empty_like(x_wg), np.empty_like(x_wg)

    def round_with(shifted: np.float32) -> None:
        np.subtract(x_wg, least_g, out=q_wg)
        np.multiply(q_wg, shifted / (most_g - least_g), out=q_wg)
        np.rint(q_wg, out=q_wg)
        np.clip(q_wg, 0, top, out=q_wg)

    def error(scale_g: np.ndarray, low_g: np.ndarray) -> np.ndarray:
        np.multiply(q_wg, scale_g, out=work_wg)
        np.add(work_wg, low_g, out=work_wg)
        np.subtract(work_wg, x_wg, out=work_wg)
        np.multiply(work_wg, work_wg, out=work_wg)
        np.multiply(work_wg, weight_wg, out=work_wg)
        return work_wg.sum(0)

    round_with(np.float32(top))
    error_g = error(scale_g, least_g)
    for number in range(tries + 1):
        round_with(np.float32(shift) + np.float32(0.1) * np.float32(number) + np.float32(top))
        np.multiply(weight_wg, q_wg, out=work_wg)
        sum_q = work_wg.sum(0)
        np.multiply(work_wg, q_wg, out=work_wg)
        sum_qq = work_wg.sum(0)
        np.multiply(wx_wg, q_wg, out=work_wg)
        sum_xq = work_wg.sum(0)
        determinant = sum_w * sum_qq - sum_q * sum_q
        fit_g = (sum_w * sum_xq - sum_x * sum_q) / determinant
        low_g = (sum_qq * sum_x - sum_q * sum_xq) / determinant
        # A least number above zero cannot be stored; then the line goes through zero.
        above_g = low_g > 0
        fit_g = np.where(above_g, sum_xq / sum_qq, fit_g)
        low_g = np.where(above_g, np.float32(0), low_g)
        found_g = error(fit_g, low_g)
        better_g = (determinant > 0) & (found_g < error_g)
        error_g = np.where(better_g, found_g, error_g)
        scale_g = np.where(better_g, fit_g, scale_g)
        least_g = np.where(better_g, low_g, least_g)
    return np.where(flat_g, np.float32(0), scale_g), -np.where(flat_g, flat_least_g, least_g)


def _six_bits(values_g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A float16 unit for each block, and each group's value as a whole number up to 63 of it."""
    most_b = np.maximum(values_g.reshape(-1, 8).max(1), np.float32(0))
    inverse_b = np.where(most_b > 0, np.float32(63) / most_b, np.float32(0))
    six_g = np.clip(np.rint(np.repeat(inverse_b, 8) * values_g), 0, 63)
    return (most_b / np.float32(63)).astype(np.float16), six_g


def _packed(scale_g: np.ndarray, least_g: np.ndarray) -> np.ndarray:
    """Sixteen numbers of six bits in twelve bytes; see `quants._k_scales`."""
    scale, least = scale_g.reshape(-1, 8), least_g.reshape(-1, 8)
    first = scale[:, :4] | (scale[:, 4:] >> 4 << 6)
    second = least[:, :4] | (least[:, 4:] >> 4 << 6)
    third = (scale[:, 4:] & 15) | ((least[:, 4:] & 15) << 4)
    return np.concatenate([first, second, third], axis=1)


def _q6_k(x_wg: np.ndarray, out: np.ndarray) -> None:
    """Q6_K: x is about d * scale * q, for 16 groups of 16; q is -32 to 31."""
    scale_g = _symmetric(x_wg)
    scale_bg = scale_g.reshape(-1, 16)
    most_b = scale_bg[np.arange(len(scale_bg)), np.abs(scale_bg).argmax(1)]
    zero_b = np.abs(most_b) < _TINY
    inverse_b = np.where(zero_b, np.float32(0), np.float32(-128) / most_b)
    out["d"] = np.where(zero_b, np.float32(0), np.float32(1) / inverse_b)
    whole_bg = np.minimum(np.rint(inverse_b[:, None] * scale_bg), np.float32(127))
    out["scales"] = whole_bg
    step_g = (out["d"].astype(np.float32)[:, None] * whole_bg).reshape(-1)
    q_wg = np.rint(x_wg / np.where(step_g == 0, np.float32(np.inf), step_g))
    q_wg = np.clip(q_wg, -32, 31) + np.float32(32)
    q_bn = q_wg.T.reshape(-1, 2, 4, 32).astype(np.uint8)
    low, high = q_bn & np.uint8(15), q_bn >> np.uint8(4)
    out["q"] = (low[:, :, :2] | (low[:, :, 2:] << np.uint8(4))).reshape(-1, 128)
    places = np.array([0, 2, 4, 6], np.uint8)[:, None]
    out["high"] = np.bitwise_or.reduce(high << places, axis=2).reshape(-1, 64)


def _symmetric(x_wg: np.ndarray) -> np.ndarray:
    """The scale of each group that leaves the least error, weighted by x squared; [groups]."""
    place_g = np.abs(x_wg).argmax(0)
    most_g = x_wg[place_g, np.arange(x_wg.shape[1])]
    weight_wg = x_wg * x_wg
    wx_wg = weight_wg * x_wg
    q_wg, work_wg = np.empty_like(x_wg), np.empty_like(x_wg)

    def sums(top: np.float32) -> tuple[np.ndarray, np.ndarray]:
        np.multiply(x_wg, -top / most_g, out=q_wg)
        np.rint(q_wg, out=q_wg)
        np.clip(q_wg, -32, 31, out=q_wg)
        np.multiply(wx_wg, q_wg, out=work_wg)
        sum_xq = work_wg.sum(0)
        np.multiply(weight_wg, q_wg, out=work_wg)
        np.multiply(work_wg, q_wg, out=work_wg)
        return sum_xq, work_wg.sum(0)

    sum_xq, sum_qq = sums(np.float32(32))
    scale_g = np.where(sum_qq > 0, sum_xq / sum_qq, np.float32(0))
    best_g = scale_g * sum_xq
    for number in (*range(-9, 0), *range(1, 10)):
        sum_xq, sum_qq = sums(np.float32(32) + np.float32(0.1) * np.float32(number))
        better_g = (sum_qq > 0) & (sum_xq * sum_xq > best_g * sum_qq)
        fit_g = sum_xq / sum_qq
        scale_g = np.where(better_g, fit_g, scale_g)
        best_g = np.where(better_g, fit_g * sum_xq, best_g)
    return np.where(np.abs(most_g) < _TINY, np.float32(0), scale_g)
