"""Reads an LLMasOS model of format 1 and runs it, in NumPy alone.

A second implementation, written from `docs/format.md` and sharing no code with `llmasos_jax`. It is
slow and clear, computes in float64, and gives the kit's expected values. As a command it answers
`check.py`:

    python conformance/numpy_reader.py MODEL_DIR REQUEST.json ANSWER.json
"""

import copy
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import head_reader
import numpy as np
import position_reader as positions
from file_reader import GATED, SCALING, RefusedError, need, read
from text_reader import encode, encode_input


def activation(kind: str, x: np.ndarray) -> np.ndarray:
    """What the MLP applies between its products (4.6)."""
    if kind in ("swiglu", "silu"):
        return x / (1 + np.exp(-x))
    if kind in ("geglu", "gelu"):
        return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
    if kind in ("geglu_tanh", "gelu_tanh"):
        return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    need(kind in ("reglu", "relu"), f"mlp {kind}")
    return np.maximum(x, 0)


def choose(o: dict, logits: np.ndarray, bias: np.ndarray | float) -> dict[int, float]:
    """The weight of each expert that one token goes to (4.7)."""
    soft = np.exp(logits - logits.max())
    s = 1 / (1 + np.exp(-logits)) if o["router"] == "sigmoid" else soft / soft.sum()
    r = (s + bias).reshape(o["groups"], -1)
    best = np.sort(r, axis=1)[:, -(2 if o["group_score"] == "top2" else 1) :].sum(axis=1)
    if o["groups"] > 1:
        r[np.argsort(-best, kind="stable")[o["groups_per_token"] :]] = -np.inf
    chosen = np.argsort(-r.reshape(-1), kind="stable")[: o["per_token"]]
    normal = o["normalize"] or o["router"] == "softmax_chosen"
    total = s[chosen].sum() if normal else 1.0
    return {int(e): o["scale"] * s[e] / total for e in chosen}


class Model:
    """A model that has been read; refuses one whose tensors are not exactly its own."""

    def __init__(self, folder: Path) -> None:
        self.p, self.tensors = read(folder)
        self.used: set[str] = set()
        self.stem = ""  # of the names of this stack's tensors
        # A first run asks for every tensor there must be.
        x = self.hidden([0], decoder=[0] if self.p["encoder"]["num_layers"] else None)
        head_reader.use_all(self, x)
        if self.p["head"] is not None:
            self.scores(x)
        need(self.used == self.tensors.keys(), f"extra tensors {self.tensors.keys() - self.used}")

    def get(self, name: str, *shape: int) -> np.ndarray:
        """One tensor, which must be there and have this shape."""
        name = name if name.startswith("embed.") else self.stem + name
        need(name in self.tensors, f"{name} is missing")
        found = self.tensors[name]
        need(found.shape == shape, f"{name} has {found.shape}, not {shape}")
        self.used.add(name)
        return found

    def bias(self, there: bool, name: str, *shape: int) -> np.ndarray | float:
        """A bias, or 0 where the parameters say there is none."""
        return self.get(name, *shape) if there else 0.0

    def norm(self, x: np.ndarray, name: str, *shape: int, has_bias: bool = True) -> np.ndarray:
        """Normalises over the last axes (4.2)."""
        p, axes = self.p, tuple(range(-len(shape), 0))
        scale = self.get(f"{name}.scale", *shape) + (1.0 if p["norm_unit_offset"] else 0.0)
        if p["norm"] == "rmsnorm":
            return x / np.sqrt((x**2).mean(axes, keepdims=True) + p["norm_eps"]) * scale
        need(p["norm"] == "layernorm", f"norm {p['norm']}")
        c = x - x.mean(axes, keepdims=True)
        bias = self.bias(p["norm_bias"] and has_bias, f"{name}.bias", *shape)
        return c / np.sqrt((c**2).mean(axes, keepdims=True) + p["norm_eps"]) * scale + bias

    def heads(
        self, x: np.ndarray, source: np.ndarray, at: str, turn: Callable | None
    ) -> list[np.ndarray]:
        """Queries of x, keys and values of source [T, heads, width] (4.4, steps 1 to 3)."""
        p, parts = self.p, []
        d, n, k, h = (p[s] for s in ("embedding_dim", "num_heads", "num_kv_heads", "head_dim"))
        for name, heads, z in (("q", n, x), ("k", k, source), ("v", k, source)):
            y = np.einsum("td,dnh->tnh", z, self.get(at + name, d, heads, h))
            y = y + self.bias(p["qkv_bias"], f"{at}{name}_bias", heads, h)
            if p["qk_norm"] and name != "v":
                shape = (heads, h) if p["qk_norm"] == "full" else (h,)
                y = self.norm(y, f"{at}{name}_norm", *shape, has_bias=False)
            parts.append(y)
        if turn is not None:
            parts[:2] = [turn(y) for y in parts[:2]]
        return [parts[0], *(np.repeat(y, n // k, axis=1) for y in parts[1:])]

    def latent_heads(self, x: np.ndarray, at: str, turn: Callable) -> list[np.ndarray]:
        """The same for latent attention."""
        p, latent = self.p, self.p["latent"]
        d, n, h = (p[s] for s in ("embedding_dim", "num_heads", "head_dim"))
        r, rq, plain = latent["kv_rank"], latent["q_rank"], h - latent["rope_dim"]

        def rms(z: np.ndarray, name: str) -> np.ndarray:
            z = z / np.sqrt((z**2).mean(-1, keepdims=True) + latent["norm_eps"])
            return z * self.get(f"{at}{name}.scale", z.shape[-1])

        g = rms(x @ self.get(at + "q_down", d, rq), "q_down_norm") if rq else x
        q = np.einsum("tr,rnh->tnh", g, self.get(at + "q", g.shape[-1], n, h))
        q = np.concatenate([q[..., :plain], turn(q[..., plain:])], axis=-1)
        c = rms(x @ self.get(at + "kv_down", d, r), "kv_norm")
        key = np.einsum("tr,rnh->tnh", c, self.get(at + "k", r, n, plain))
        shared = turn((x @ self.get(at + "k_rope", d, h - plain))[:, None])
        key = np.concatenate([key, np.repeat(shared, n, axis=1)], axis=-1)
        return [q, key, np.einsum("tr,rnh->tnh", c, self.get(at + "v", r, n, p["value_width"]))]

    def attention(self, x: np.ndarray, i: int, prefix: int) -> np.ndarray:
        """Attention of layer i, [T, D] to [T, D]; all see the first `prefix` tokens (4.4)."""
        p, at = self.p, f"layers.{i}.attn."
        window, turn = p["attention_windows"][i % len(p["attention_windows"])], None
        if p["position"] == "rope":
            local = window is not None and p["rope_theta_local"] is not None
            theta = p["rope_theta_local"] if local else p["rope_theta"]
            f, m = positions.frequencies(p, theta, SCALING if local else p["rope_scaling"], len(x))
            turn = lambda y: positions.rotate(y, f, m, p["rope_interleaved"])
        latent = p["latent"]["kv_rank"]
        heads = self.latent_heads(x, at, turn) if latent else self.heads(x, x, at, turn)
        behind = np.arange(len(x))[:, None] - np.arange(len(x))
        add: np.ndarray | float = 0.0
        if p["position"] == "alibi":
            add = -positions.slopes(p["num_heads"])[:, None, None] * np.abs(behind)
        if p["position"] == "relative":
            shape = (p["relative_buckets"], p["num_heads"])
            add = positions.bias(p, self.get("relative.buckets", *shape), len(x))
        seen = (behind >= 0) | (np.arange(len(x)) < prefix) if p["causal"] else behind == behind
        if window is not None:
            seen = seen & (behind < window) & (behind > -window)
        return self.gather(heads, add, seen, at)

    def cross_attention(self, x: np.ndarray, states: np.ndarray, i: int) -> np.ndarray:
        """Attention of layer i to the encoder's states, [T, D] to [T, D] (4.4)."""
        at, seen = f"layers.{i}.cross_attn.", np.ones((len(x), len(states)), bool)
        return self.gather(self.heads(x, states, at, None), 0.0, seen, at)

    def gather(
        self, heads: list[np.ndarray], add: np.ndarray | float, seen: np.ndarray, at: str
    ) -> np.ndarray:
        """From queries, keys and values to what attention gives [T, D] (4.4, steps 4 to 9)."""
        p, (q, key, value) = self.p, heads
        d, n, h = (p[s] for s in ("embedding_dim", "num_heads", "head_dim"))
        scale = h**-0.5 if p["attention_scale"] is None else p["attention_scale"]
        s = np.einsum("tnh,unh->ntu", q, key) * scale
        if p["attention_soft_cap"] is not None:
            s = p["attention_soft_cap"] * np.tanh(s / p["attention_soft_cap"])
        s = np.where(seen, s + add, -np.inf)
        a = np.exp(s - s.max(-1, keepdims=True))
        y = np.einsum("ntu,unh->tnh", a / a.sum(-1, keepdims=True), value)
        out = np.einsum("tnh,nhd->td", y, self.get(at + "o", n, p["value_width"], d))
        return out + self.bias(p["attention_out_bias"], at + "o_bias", d)

    def mlp(self, x: np.ndarray, i: int) -> np.ndarray:
        """The MLP of layer i, or its experts, [T, D] to [T, D] (4.6, 4.7)."""
        p, at, d = self.p, f"layers.{i}.mlp.", self.p["embedding_dim"]
        gated = p["mlp"] in GATED
        f = p["ffn_dim"] or (64 * math.ceil(8 * d / 192) if gated else 4 * d)
        if p["experts"]["count"] and i not in p["experts"]["dense_layers"]:
            return self.experts(x, f"layers.{i}.moe.", p["experts"]["ffn_dim"] or f)
        up = x @ self.get(at + "up", d, f) + self.bias(p["mlp_bias"], at + "up_bias", f)
        if gated:
            gate = x @ self.get(at + "gate", d, f) + self.bias(p["mlp_bias"], at + "gate_bias", f)
        up = activation(p["mlp"], gate) * up if gated else activation(p["mlp"], up)
        return up @ self.get(at + "down", f, d) + self.bias(p["mlp_bias"], at + "down_bias", d)

    def experts(self, x: np.ndarray, at: str, f: int) -> np.ndarray:
        """The experts of a layer, [T, D] to [T, D] (4.7)."""
        o, d, kind = self.p["experts"], self.p["embedding_dim"], self.p["mlp"]
        e, fs, gated = o["count"], o["shared_ffn_dim"], kind in GATED
        up, down = self.get(at + "up", e, d, f), self.get(at + "down", e, f, d)
        gate = self.get(at + "gate", e, d, f) if gated else up

        def run(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
            return (activation(kind, x @ gate) * (x @ up if gated else 1.0)) @ down

        scores = x @ self.get(at + "router", d, e)
        bias = self.bias(o["router_bias"], at + "router_bias", e)
        y = np.zeros_like(x)
        for t, l in enumerate(scores):
            for n, w in choose(o, l, bias).items():
                y[t] += w * run(x[t], gate[n], up[n], down[n])
        if fs:
            up, down = self.get(at + "shared.up", d, fs), self.get(at + "shared.down", fs, d)
            shared = run(x, self.get(at + "shared.gate", d, fs) if gated else up, up, down)
            g = x @ self.get(at + "shared_gate", d, 1) if o["shared_gate"] else np.inf
            y += shared / (1 + np.exp(-g))
        return y

    def block(self, x: np.ndarray, i: int, prefix: int, states: np.ndarray | None) -> np.ndarray:
        """Layer i around the residual stream (4.3)."""
        p, kind = self.p, self.p["norm_placement"]

        def norm(y: np.ndarray, name: str, there: bool) -> np.ndarray:
            return self.norm(y, f"layers.{i}.{name}", p["embedding_dim"]) if there else y

        before = kind in ("pre", "sandwich")
        parts: dict[str, Callable] = {"attn": lambda y: self.attention(y, i, prefix)}
        if states is not None:
            parts["cross_attn"] = lambda y: self.cross_attention(y, states, i)
        parts["mlp"] = lambda y: self.mlp(y, i)
        if p["block"] != "sequential":
            y = norm(x, "attn_norm", True)
            z = y if p["block"] == "parallel" else norm(x, "mlp_norm", True)
            return x + parts["attn"](y) + parts["mlp"](z)
        for name, run in parts.items():
            is_first = name == "attn" and i == 0
            has_norm = before and (p["first_attn_norm"] or not is_first)
            y = run(norm(x, f"{name}_norm", has_norm))
            if kind == "post":
                x = norm(x + y, f"{name}_post_norm", True)
            else:
                x = x + norm(y, f"{name}_post_norm", kind != "pre")
        return x

    def hidden(
        self,
        ids: list[int],
        types: list[int] | None = None,
        decoder: list[int] | None = None,
        prefix: int = 0,
    ) -> np.ndarray:
        """The residual stream [T, D] after the last block and the final norm.

        Of an encoder-decoder that of `decoder`, where `ids` are what the encoder reads.
        """
        p, d, states = self.p, self.p["embedding_dim"], None
        if decoder is not None:
            ids, states = decoder, self.encoder().hidden(ids)
        x = self.get("embed.table", p["vocab_size"], d)[ids] * p["embedding_scale"]
        if p["position"] == "learned":
            x = x + self.get("embed.positions", p["context_length"], d)[: len(ids)]
        if p["token_types"]:
            x = x + self.get("embed.types", p["token_types"], d)[types or [0] * len(ids)]
        if p["embedding_norm"]:
            x = self.norm(x, "embed.norm", d)
        for i in range(p["num_layers"]):
            x = self.block(x, i, prefix, states)
        return self.norm(x, "final_norm", d) if p["final_norm"] else x

    def encoder(self) -> "Model":
        """The encoder of an encoder-decoder: another stack, the same embedding (4.3)."""
        stack = copy.copy(self)
        layers = self.p["encoder"]["num_layers"]
        more = {"num_layers": layers, "causal": False, "attention_windows": [None]}
        stack.p, stack.stem = {**self.p, **more}, "encoder."
        return stack

    def logits(self, ids: list[int], *more: Any, **options: Any) -> np.ndarray:
        """Scores [T, V] of what follows each id, or of what stands there by an MLM head."""
        return self.scores(self.hidden(ids, *more, **options))

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Scores [T, V] from the last states [T, D] (4.8)."""
        p, v, d = self.p, self.p["vocab_size"], self.p["embedding_dim"]
        table, is_mlm = self.get("embed.table", v, d), p["head"] == "mlm"
        if is_mlm:
            x = head_reader.mlm(self, x, lambda y: activation(p["mlp"], y))
        y = x @ (table.T if p["tie_embeddings"] else self.get("head.w", d, v))
        y = (y + self.bias(p["head_bias"] or is_mlm, "head.bias", v)) * p["logit_scale"]
        return y if (cap := p["logit_soft_cap"]) is None else cap * np.tanh(y / cap)

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """The best next id, `count` times."""
        if self.p["encoder"]["num_layers"]:
            ids = [self.p["decoder_start_id"]]
            for _ in range(count):
                ids.append(int(self.logits(prompt, None, ids)[-1].argmax()))
            return ids[1:]
        ids, prefix = list(prompt), len(prompt) if self.p["prefix_lm"] else 0
        for _ in range(count):
            ids.append(int(self.logits(ids, prefix=prefix)[-1].argmax()))
        return ids[len(prompt) :]


def rows(asked: dict) -> list[tuple]:
    """Of each sequence of a request its ids, token types, the decoder's ids, its prefix."""
    size = len(asked["sequences"])
    more = [asked.get(k) or [d] * size for k, d in (("token_types", None), ("decoder", None))]
    prefixes = asked.get("prefixes") or [0] * size
    return list(zip(asked["sequences"], *more, prefixes, strict=True))


def main(folder: str, request: str, answer: str) -> None:
    """Answers one request of `check.py`."""
    asked = json.loads(Path(request).read_text())
    model = Model(Path(folder))
    kind, run = ("hidden", model.hidden) if model.p["head"] is None else ("logits", model.logits)
    given: dict = {kind: [run(*row).tolist() for row in rows(asked)]}
    if asked.get("prompt"):
        given["greedy"] = model.greedy(asked["prompt"], asked["count"])
    if asked.get("texts"):
        if model.p["causal"]:
            given["ids"] = [encode(Path(folder), text) for text in asked["texts"]]
        else:
            read = lambda text, pair=None: encode_input(Path(folder), text, pair)
            given["ids"] = [read(text)[0] for text in asked["texts"]]
            given |= head_reader.answers(model, asked, read)
    Path(answer).write_text(json.dumps(given))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (RefusedError, KeyError, ValueError, TypeError, OSError) as error:
        sys.exit(f"refused: {error}")
