"""What to change where a step does not fit: which field, to what, and how much that may save.

Savings are closed-form estimates of one device; only compiling again says whether they are enough
(`llmasos plan --search` does that).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmasos_jax.config.schema import Config
from llmasos_jax.plan.figures import Figures

_GIB = 1 << 30
KEPT = {
    "full": ("block",),
    "dots": ("block", "q", "k", "v", "attention_out", "gate", "up", "mlp_out"),
}


@dataclass(frozen=True)
class Advice:
    """One change.

    Attributes:
      change: dotted field -> new value.
      saves: bytes of one device, an estimate.
      text: the change and what it costs, in words.
    """

    change: dict[str, object]
    saves: int
    text: str

    def __str__(self) -> str:
        fields = ", ".join(f"{path}={value!r}" for path, value in self.change.items())
        return f"{fields}: {self.text} (saves about {self.saves / _GIB:.1f} GiB)"


def advise(cfg: Config, figures: Figures, available: int) -> tuple[Advice, ...]:
    """Changes for a step that does not fit, the ones that cost least time first.

    Args:
      cfg: the run, as it was compiled.
      figures: with what the compiler said.
      available: bytes of HBM.
    """
    trouble = figures.out_of_memory
    state = figures.state.parameters + figures.state.optimizer
    over = (trouble.needed - trouble.available) if trouble else 0
    if trouble and trouble.what == "temporaries":
        over += state
    found = [*_loss(cfg, figures), *_remat(cfg, figures), *_moments(cfg, figures)]
    found += _parts(cfg, figures, over, available)
    found += _mesh(cfg, figures)
    enough = [advice for advice in found if advice.saves > 0.01 * available]
    return tuple(enough or found)


def kept_bytes(cfg: Config, tag: str, rows: int, tensor: int, context: int) -> int:
    """Of one tensor that the backward pass finds kept, all layers of one device.

    Example:
      >>> from llmasos_jax.config.model import ModelConfig
      >>> cfg = Config(ModelConfig(256, 64, 2))
      >>> kept_bytes(cfg, "block", rows=1, tensor=1, context=1)  # 2 layers x 256 x 64 x 4 bytes
      131072
    """
    model, size = cfg.model, 4 if cfg.precision.dtype == "float32" else 2
    widths = {
        "q": model.query_heads * model.head_width // tensor,
        "k": model.kv_heads * model.head_width // tensor,
        "v": model.kv_heads * model.value_width // tensor,
        "attention": model.query_heads * model.value_width // tensor,
        "gate": model.ffn_width // tensor if model.is_gated else 0,
        "up": model.ffn_width // tensor,
    }
    width = widths.get(tag, model.embedding_dim)
    tokens = rows * cfg.data.sequence_length // context
    return model.num_layers * tokens * width * size


def row_sizes(cfg: Config, figures: Figures) -> tuple[int, int, int]:
    """Rows of a device in one part of a batch, and the ways of tensor and context.

    Args:
      cfg: the run.
      figures: of its step.
    """
    mesh = figures.mesh
    tensor, context = mesh.get("tensor", 1), mesh.get("context", 1)
    ways = math.prod(mesh.values()) // (tensor * context)
    return max(1, cfg.train.batch_size // ways // cfg.train.accumulate_steps), tensor, context


def _loss(cfg: Config, figures: Figures) -> list[Advice]:
    rows, tensor, context = row_sizes(cfg, figures)
    length = cfg.data.sequence_length // context
    if cfg.train.loss_chunk is not None or length < 256 or cfg.objective.name != "causal":
        return []
    chunk = max(128, length // 8)
    logits = rows * length * cfg.model.vocab_size * 4 // tensor
    saves = int(logits * (1 - chunk / length))
    text = f"scores {chunk} tokens of a sequence at once in place of {length}"
    return [Advice({"train.loss_chunk": chunk}, saves, text)]


def _remat(cfg: Config, figures: Figures) -> list[Advice]:
    rows, tensor, context = row_sizes(cfg, figures)
    size = lambda tag: kept_bytes(cfg, tag, rows, tensor, context)
    train = cfg.train
    if train.remat == "tags":
        saves = sum(size(tag) for tag in train.remat_save if tag != "block")
        names = ", ".join(train.remat_save)
        change: dict[str, object] = {"train.remat": "full", "train.remat_save": ()}
        if train.remat_offload:
            change["train.remat_offload"] = ()
        return [Advice(change, saves, f"computes {names} again")] if saves else []
    if train.remat == "full":
        return []
    saves = sum(size(tag) for tag in KEPT["dots"] if tag != "block")
    if train.remat == "none":
        saves += size("attention") + size("gate") + size("block")  # beside products, also these
    text = "computes each block again in the backward pass (a third more products)"
    some = [
        Advice(
            {"train.remat": "tags", "train.remat_save": ("q", "k", "v")},
            saves - sum(map(size, "qkv")),
            "computes all again but q, k and v",
        )
    ]
    return [*some, Advice({"train.remat": "full"}, saves, text)]


def _moments(cfg: Config, figures: Figures) -> list[Advice]:
    if cfg.precision.moments != "float32" or cfg.optim.name not in ("adamw", "lion"):
        return []
    half = figures.state.optimizer // 2
    narrow = figures.state.optimizer * 3 // 4
    return [
        Advice({"precision.moments": "bfloat16"}, half, "keeps the moments in 16 bits"),
        Advice({"precision.moments": "int8"}, narrow, "keeps the moments in 8 bits"),
    ]


def _parts(cfg: Config, figures: Figures, over: int, available: int) -> list[Advice]:
    """Smaller parts of a batch: what is kept shrinks with the rows, what the state takes does not.

    The need is known from the compiler, so how many parts it takes can be said.
    """
    rows = row_sizes(cfg, figures)[0]
    state = figures.state.parameters + figures.state.optimizer
    temporaries = available + over - state
    if rows == 1 or temporaries <= 0:
        return []
    steps = [n for n in range(2, rows + 1) if rows % n == 0]
    room = available - state
    times = next((n for n in steps if temporaries / n <= room), rows)
    saves = int(temporaries * (1 - 1 / times))
    batch = cfg.train.batch_size
    return [
        Advice(
            {"train.accumulate_steps": cfg.train.accumulate_steps * times},
            saves,
            f"the same batch in parts, {rows // times} row{'s' * (rows > times)} of a device at "
            f"once in place of {rows}; weights are gathered {times} times as often",
        ),
        Advice(
            {"train.batch_size": batch // times}, saves, f"a smaller batch, in place of {batch}"
        ),
    ]


def _mesh(cfg: Config, figures: Figures) -> list[Advice]:
    mesh, state = figures.mesh, figures.state.parameters + figures.state.optimizer
    found = []
    if mesh.get("data", 1) > 1 and cfg.mesh.preset is None:
        ways = mesh["data"]
        found.append(
            Advice(
                {"mesh.data": 1, "mesh.fsdp": (*(n for n in cfg.mesh.fsdp if n > 1), ways)},
                state - state // ways,
                f"cuts weights and optimizer over the {ways} replicas too",
            )
        )
    heads = math.gcd(cfg.model.query_heads, cfg.model.kv_heads)
    fsdp = cfg.mesh.fsdp
    if mesh.get("tensor", 1) == 1 and heads % 2 == 0 and fsdp[-1] % 2 == 0:
        temporaries = figures.out_of_memory.needed if figures.out_of_memory else 0
        found.append(
            Advice(
                {"mesh.tensor": 2, "mesh.fsdp": (*fsdp[:-1], fsdp[-1] // 2)},
                # Rows of a device double where the batch stays.
                int(0.25 * temporaries) if row_sizes(cfg, figures)[0] > 1 else temporaries // 3,
                "cuts heads, MLP and vocabulary in two, with more traffic; halve the batch with it",
            )
        )
    return found
