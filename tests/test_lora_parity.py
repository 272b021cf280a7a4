"""Ten steps of LoRA here and in PEFT with torch: the same model, start, data and optimizer.

Of experts PEFT has one A for gate and up, which are one parameter in transformers, and here each
has its own: those two say the same (`test_expert_adapters`) and learn otherwise, so the experts of
this test learn in their third product, and in the router.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import SIMPLE
from tuned_runs import config_on

from llmasos_jax.config.schema import Config, OptimConfig, TrainConfig
from llmasos_jax.data.batch import Batch
from llmasos_jax.format.names import expected, place_of
from llmasos_jax.hub.open import open_model
from llmasos_jax.interop.hf.peft import read_adapter
from llmasos_jax.interop.hf.peftconfig import read_peft_config
from llmasos_jax.interop.lowrank import LowRank
from llmasos_jax.models.layout import Layout
from llmasos_jax.nn.adapters import LORA
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.train.pretrained import frozen_weights
from llmasos_jax.train.step import make_trainer
from llmasos_jax.types import Tree

STEPS, ROWS, LENGTH = 10, 4, 16
RATE, BETAS, EPS = 1e-2, (0.9, 0.95), 1e-8
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES: dict[str, Any] = {
    **{"vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32},
    **{"initializer_range": 0.2, "bos_token_id": None, "eos_token_id": None},
}
# The model's class in transformers, what PEFT is told beside rank and alpha, what we are.
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "lora": ("Llama", {"target_modules": TARGETS}, {}),
    "dora": ("Llama", {"target_modules": TARGETS, "use_dora": True}, {"dora": True}),
    "experts": (
        "Mixtral",
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.experts.down_proj", "mlp.gate.weight"],
        },
        {"targets": ("attn.q", "moe.down", "moe.router")},
    ),
}


def losses_of_peft(home: Path, ids: np.ndarray, kind: str, **options: Any) -> list[float]:
    """Torch's losses; the base and the adapter that was started with stay in the folder."""
    peft = pytest.importorskip("peft", reason="needs the extra `parity`")
    import torch
    import transformers

    torch.manual_seed(0)
    cfg = getattr(transformers, f"{kind}Config")(**SIZES)
    model = getattr(transformers, f"{kind}ForCausalLM")(cfg).float()
    model.save_pretrained(home / "base")
    config = peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **options)
    adapted = peft.get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = "../base"
    adapted.save_pretrained(home / "adapter")
    moved = [weight for weight in adapted.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(moved, lr=RATE, betas=BETAS, eps=EPS, weight_decay=0.0)
    given, losses = torch.from_numpy(ids), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = adapted(input_ids=given, labels=given).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def tree_of(changes: dict[str, LowRank], layout: Layout) -> Tree:
    """The adapters' weights as a run of ours has them."""
    rows: dict[str, list[np.ndarray]] = {}
    for name, change in changes.items():
        path, row = place_of(name, layout)
        assert row is not None
        parts = {"a": change.a, "b": change.b, "magnitude": change.magnitude}
        for part, tensor in parts.items():
            if tensor is not None:
                rows.setdefault(f"{path}{LORA}/{part}", []).append(tensor.read())
    tree: Tree = {}
    for path, layers in rows.items():
        *above, last = path.split("/")
        node = tree
        for key in above:
            node = node.setdefault(key, {})
        node[last] = jnp.asarray(np.stack(layers))
    return tree


def losses_of_ours(home: Path, ids: np.ndarray, **options: Any) -> list[float]:
    given, base = config_on(home / "base", rank=4, alpha=8.0, **options)
    optim = OptimConfig(
        learning_rate=RATE,
        schedule="constant",
        warmup_steps=0,
        weight_decay=0.0,
        beta1=BETAS[0],
        beta2=BETAS[1],
        eps=EPS,
        clip_norm=None,
    )
    train = TrainConfig(steps=STEPS, batch_size=ROWS)
    objective = dataclasses.replace(given.objective, router_balance=0.0, router_z=0.0)
    config: Config = dataclasses.replace(given, optim=optim, train=train, objective=objective)
    trainer = make_trainer(config, make_mesh(config.mesh, jax.devices()[:1]))
    folder, manifest = home / "adapter", open_model(home / "base").manifest
    adapter = read_adapter(folder, read_peft_config(folder), manifest)
    in_order = {n: adapter.changes[n] for n in expected(config.model) if n in adapter.changes}
    start = tree_of(in_order, trainer.definition.layout)
    state = trainer.start(jax.random.key(0), start)
    frozen = frozen_weights(trainer, base)
    tokens, targets = ids[:, :-1].astype(np.int32), ids[:, 1:].astype(np.int32)
    ones = np.ones_like(tokens)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    batch = trainer.put(Batch(tokens, targets, ones.astype(np.float32), ones, positions))
    losses = []
    for _ in range(STEPS):
        state, metrics = trainer.step(state, batch, frozen)
        losses.append(float(metrics.loss))
    return losses


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:::(torch|transformers|peft)")
@pytest.mark.parametrize("kind", KINDS)
def test_ten_steps_are_those_of_peft_and_torch(kind: str, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (ROWS, LENGTH))
    model, their_options, our_options = KINDS[kind]
    theirs = losses_of_peft(tmp_path, ids, model, **their_options)
    with jax.default_matmul_precision("highest"):
        ours = losses_of_ours(tmp_path, ids, **our_options)
    apart = np.abs(np.array(ours) - np.array(theirs))
    print(f"{kind}: losses {theirs[0]:.4f} to {theirs[-1]:.4f}, apart by {apart.max():.1e}")
    assert theirs[-1] < theirs[0] - 0.5
    assert apart.max() < SIMPLE
