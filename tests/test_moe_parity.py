"""Our experts against the sparse blocks of transformers, each class with its own router."""

import importlib
import re

import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import SIMPLE

from llmasos_jax.config.experts import Experts
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.nn.moe import MoE
from llmasos_jax.nn.runtime import Runtime

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:::(torch|transformers)")]
torch = pytest.importorskip("torch", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")

D, F = 24, 20
SHARED = {"hidden_size": D, "num_experts_per_tok": 3}
WIDTH = {**SHARED, "moe_intermediate_size": F}
V2 = {
    **WIDTH,
    "num_attention_heads": 2,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "routed_scaling_factor": 2.5,
}
V2_GROUPS = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
V3 = {**WIDTH, "n_routed_experts": 16, "n_group": 4, "topk_group": 2, "n_shared_experts": 1}
PLAIN = {"normalize": False, "scale": 2.5, "shared_ffn_dim": 2 * F}
CASES = {
    "mixtral": (
        *("Mixtral", "MixtralSparseMoeBlock"),
        {**SHARED, "num_local_experts": 8, "intermediate_size": F},
        Experts(8, 3, F, router="softmax_chosen"),
    ),
    "qwen2": (
        *("Qwen2Moe", "Qwen2MoeSparseMoeBlock"),
        {**WIDTH, "num_experts": 8, "shared_expert_intermediate_size": 28},
        Experts(8, 3, F, normalize=False, shared_ffn_dim=28, shared_gate=True),
    ),
    "qwen3": (
        *("Qwen3Moe", "Qwen3MoeSparseMoeBlock"),
        {**WIDTH, "num_experts": 8, "norm_topk_prob": True},
        Experts(8, 3, F),
    ),
    "deepseek v2": ("DeepseekV2", "DeepseekV2Moe", V2, Experts(8, 3, F, **PLAIN)),
    "deepseek v2, groups": (
        *("DeepseekV2", "DeepseekV2Moe", {**V2, **V2_GROUPS}),
        Experts(8, 3, F, groups=4, groups_per_token=2, **PLAIN),
    ),
    "deepseek v3": (
        *("DeepseekV3", "DeepseekV3MoE", V3),
        Experts(16, 3, F, (), "sigmoid", True, 2.5, True, 4, 2, "top2", F),
    ),
}


def fill(ours, name: str, value: np.ndarray) -> None:
    param = getattr(ours, name)
    assert param.shape == value.shape, name
    param[...] = jnp.asarray(value)


def convert(ours: MoE, theirs) -> None:
    """Every weight of theirs, [out, in], into ours."""
    tensors = {n: t.detach().numpy() for n, t in theirs.state_dict().items()}
    take = lambda name: np.ascontiguousarray(np.swapaxes(tensors.pop(name), -1, -2))
    fill(ours, "router", take("gate.weight"))
    gate_up = take("experts.gate_up_proj")
    fill(ours, "gate", gate_up[..., :F])
    fill(ours, "up", gate_up[..., F:])
    fill(ours, "down", take("experts.down_proj"))
    if ours.router_bias is not None:
        fill(ours, "router_bias", tensors.pop("gate.e_score_correction_bias"))
    if ours.shared is not None:
        stem = "shared_expert." if "shared_expert.up_proj.weight" in tensors else "shared_experts."
        for name in ("gate", "up", "down"):
            fill(ours.shared, name, take(f"{stem}{name}_proj.weight"))
    if ours.shared_gate is not None:
        fill(ours, "shared_gate", take("shared_expert_gate.weight"))
    assert not tensors, "weights of theirs that have no place in ours"


@pytest.mark.parametrize("name", CASES)
def test_equals_the_sparse_block_of_transformers(name: str) -> None:
    family, block, options, experts = CASES[name]
    block_folder = re.sub(r"(?<=[a-z0-9])(Moe|V\d)$", r"_\1", family).lower()
    theirs_cfg = getattr(transformers, f"{family}Config")(**options)
    theirs_cfg._experts_implementation = "eager"
    folder = f"transformers.models.{block_folder}"
    module = importlib.import_module(f"{folder}.modeling_{block_folder}")
    theirs = getattr(module, block)(theirs_cfg).eval()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for tensor in theirs.state_dict().values():
            noise = rng.normal(size=tensor.shape) * (0.5 if tensor.ndim > 1 else 0.1)
            tensor.copy_(torch.from_numpy(noise.astype(np.float32)))
    ours = MoE(ModelConfig(16, D, 1, num_heads=1, ffn_dim=99, experts=experts))
    convert(ours, theirs)
    x = rng.normal(size=(2, 30, D)).astype(np.float32)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(x)).numpy()
    found, _ = ours(jnp.asarray(x), jnp.ones((2, 30), bool), Runtime())
    assert np.abs(wanted).max() > 1
    np.testing.assert_allclose(found, wanted, rtol=SIMPLE, atol=SIMPLE * np.abs(wanted).max())
