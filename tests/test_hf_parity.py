"""Variants of Hugging Face folders beyond `test_families.py`: their logits are transformers'."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tolerances import WHOLE_MODEL

from llmasos_jax.generate.load import load_model
from llmasos_jax.interop.hf import open_hf
from llmasos_jax.interop.hf.families import FAMILIES
from llmasos_jax.interop.tables import unbind

OPTIMIZED = True  # conftest.py: programs as users have them

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:::(torch|transformers)")]
torch = pytest.importorskip("torch", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")

WINDOW, LENGTH = 7, 24
NO_IDS = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
WIDTHS: dict[str, Any] = {
    **dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3),
    **dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, **NO_IDS),
}
VISION = dict(
    **dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2),
    **dict(image_size=28, patch_size=14),
)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dots1": (
        "Dots1Config",
        dict(
            **dict(n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=2, n_group=4),
            **dict(topk_group=2, moe_intermediate_size=12, first_k_dense_replace=1),
            **dict(norm_topk_prob=True, routed_scaling_factor=1.7, attention_bias=True),
            **dict(sliding_window=WINDOW, max_window_layers=1, head_dim=12),
        ),
    ),
    "qwen2-moe-windows-every-other-layer-sparse": (
        "Qwen2MoeConfig",
        dict(
            **dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
            **dict(shared_expert_intermediate_size=24, decoder_sparse_step=2),
            **dict(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=3),
        ),
    ),
    "qwen3-moe-windows": (
        "Qwen3MoeConfig",
        dict(
            **dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
            **dict(use_sliding_window=True, sliding_window=WINDOW, attention_bias=True),
        ),
    ),
    "mixtral-fused": ("MixtralConfig", dict(num_local_experts=3, num_experts_per_tok=2)),
    "gemma-3-score-cap": (
        "Gemma3TextConfig",
        dict(head_dim=12, attn_logit_softcapping=0.5, final_logit_softcapping=4.0),
    ),
    "gemma-biases": ("GemmaConfig", dict(head_dim=12, attention_bias=True)),
    "olmo2-yarn": (
        "Olmo2Config",
        dict(
            rope_parameters=dict(
                **dict(rope_type="yarn", rope_theta=1e4, factor=4.0),
                original_max_position_embeddings=10,
            )
        ),
    ),
    "gemma-3-for-images": (
        "Gemma3Config",
        dict(
            text_config={**WIDTHS, "head_dim": 12, "sliding_window": WINDOW},
            vision_config=VISION,
            mm_tokens_per_image=4,
            **dict(image_token_index=60, boi_token_index=61, eoi_token_index=62),
        ),
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_the_way_back(name: str, tmp_path: Path) -> None:
    kind, options = VARIANTS[name]
    nested = "text_config" in options
    config = getattr(transformers, kind)(**({} if nested else WIDTHS), **options)
    classes = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    model = classes[type(config)](config).float().eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for part, weight in model.state_dict().items():
            std = 0.1 if "correction" in part else 0.3
            mean = float("norm" in part and "gemma" not in name)
            weight.normal_(mean, 1.5 / weight.shape[-1] ** 0.5 if weight.ndim > 1 else std)
    model.save_pretrained(tmp_path, save_original_format="fused" not in name)
    tokens = np.random.default_rng(0).integers(2, 60, (2, LENGTH))
    with torch.no_grad():
        wanted = model(torch.from_numpy(tokens)).logits.numpy()
    ours = np.asarray(load_model(tmp_path).logits(tokens))
    assert wanted.std() >= 1
    assert np.abs(ours - wanted).max() <= WHOLE_MODEL * np.abs(wanted).max()

    files = open_hf(tmp_path)
    family = next(f for f in FAMILIES if f.model_type == config.model_type)
    cfg = files.manifest.parameters
    back = unbind(family.table(cfg), cfg, files.tensors)
    theirs = {n.replace("language_model.", ""): t for n, t in model.state_dict().items()}
    same = [n for n in back if n in theirs]
    assert len(same) > cfg.num_layers  # transformers holds experts of a layer as one tensor
    for part in same:
        np.testing.assert_array_equal(back[part].read(), theirs[part].numpy(), strict=True)
