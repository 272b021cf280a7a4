"""How positions enter attention, in NumPy: part of the second implementation (`numpy_reader.py`).

Follows 4.4 and 4.5 of `docs/format.md`.
"""

import math

import numpy as np


def frequencies(p: dict, theta: float, scaling: dict, length: int) -> tuple[np.ndarray, float]:
    """Rotary frequencies [R/2] and the multiplier of sine and cosine (4.5)."""
    width = 2 * (int(p["head_dim"] * p["rope_fraction"]) // 2)
    width = p["latent"]["rope_dim"] if p["latent"]["kv_rank"] else width
    j = np.arange(width // 2)
    f, s, m = theta ** (-2.0 * j / width), scaling["factor"], 1.0
    if scaling["kind"] == "linear":
        f = f / s
    elif scaling["kind"] == "llama3":
        low, high = scaling["low_frequency"], scaling["high_frequency"]
        turns = scaling["original_length"] * f / (2 * math.pi)
        w = np.clip((turns - low) / (high - low), 0, 1)
        f = (1 - w) * f / s + w * f
    elif scaling["kind"] == "longrope":
        c = scaling["original_length"]
        f = f / np.array(scaling["long_factors" if length > c else "short_factors"])
        m = scaling["attention_factor"] or math.sqrt(1 + math.log(s) / math.log(c))
    elif scaling["kind"] == "yarn":
        c = scaling["original_length"]
        dim = [
            width * math.log(c / (2 * math.pi * r)) / (2 * math.log(theta))
            for r in (scaling["beta_fast"], scaling["beta_slow"])
        ]
        low, high = max(math.floor(dim[0]), 0), min(math.ceil(dim[1]), width - 1)
        w = np.clip((j - low) / max(high - low, 1e-3), 0, 1)
        f = w * f / s + (1 - w) * f
        m = scaling["attention_factor"] or 0.1 * math.log(s) + 1
    return f.astype(np.float32).astype(np.float64), m


def rotate(x: np.ndarray, f: np.ndarray, m: float, interleaved: bool) -> np.ndarray:
    """Rotates heads [T, N, H] by their positions (4.5)."""
    angle = (np.arange(len(x))[:, None] * f)[:, None, :]
    half, y = len(f), x.copy()
    first = slice(0, 2 * half, 2) if interleaved else slice(0, half)
    second = slice(1, 2 * half, 2) if interleaved else slice(half, 2 * half)
    a, b = x[..., first], x[..., second]
    y[..., first] = m * (a * np.cos(angle) - b * np.sin(angle))
    y[..., second] = m * (b * np.cos(angle) + a * np.sin(angle))
    return y


def slopes(n: int) -> np.ndarray:
    """The slope of each head for ALiBi (4.4)."""
    m = 1 << (n.bit_length() - 1)
    plain = [2.0 ** (-8 * (i + 1) / m) for i in range(m)]
    return np.array((plain + [2.0 ** (-4 * (2 * i + 1) / m) for i in range(m)])[:n])


def bucket(p: dict, behind: int) -> int:
    """Which row of `relative.buckets` a key so far behind its query has (4.4)."""
    count, most, first = p["relative_buckets"], p["relative_max_distance"], 0
    distance = max(behind, 0)
    if not p["causal"]:
        count, distance = count // 2, abs(behind)
        first = count if behind < 0 else 0
    exact = count // 2
    if distance < exact:
        return first + distance
    wide, last = count - exact, 0
    # In whole numbers: (distance / exact)^wide >= (most / exact)^j.
    while (
        last + 1 < wide and distance**wide * exact ** (last + 1) >= most ** (last + 1) * exact**wide
    ):
        last += 1
    return first + exact + last


def bias(p: dict, table: np.ndarray, size: int) -> np.ndarray:
    """What is added to the scores [N, T, T] from a table [buckets, N] (4.4)."""
    rows = [[bucket(p, t - u) for u in range(size)] for t in range(size)]
    return table[np.array(rows)].transpose(2, 0, 1)
