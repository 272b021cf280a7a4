"""Names of weights as different programs and years have spelled them: the same model each time."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_hf import written

from llmasos_jax.errors import FormatError
from llmasos_jax.interop.hf import open_hf

Tensors = dict[str, np.ndarray]
WIDTHS = {"vocab_size": 24, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
N_WIDTHS = {"vocab_size": 24, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 8}


def config(architecture: str, model_type: str, **keys: Any) -> dict[str, Any]:
    return {"architectures": [architecture], "model_type": model_type, **keys}


CONFIGS = {
    "gpt2": config("GPT2LMHeadModel", "gpt2", **N_WIDTHS),
    "gptj": config("GPTJForCausalLM", "gptj", **N_WIDTHS, rotary_dim=2),
    "neox": config(
        "GPTNeoXForCausalLM", "gpt_neox", **WIDTHS, intermediate_size=12, rotary_pct=0.5
    ),
    "bloom": config("BloomForCausalLM", "bloom", vocab_size=24, n_embed=8, n_layer=2, n_head=2),
    "mpt": config("MPTForCausalLM", "mpt", vocab_size=24, d_model=8, n_layers=2, n_heads=2),
    "opt": config("OPTForCausalLM", "opt", **WIDTHS, ffn_dim=12, max_position_embeddings=6),
    "llama": config("LlamaForCausalLM", "llama", **WIDTHS, intermediate_size=12),
    "mixtral": config(
        *("MixtralForCausalLM", "mixtral"),
        **WIDTHS,
        **{"num_key_value_heads": 1, "intermediate_size": 12, "num_local_experts": 3},
    ),
    "bert": config(
        "BertForMaskedLM", "bert", **WIDTHS, intermediate_size=12, max_position_embeddings=6
    ),
    "roberta": config(
        *("RobertaForMaskedLM", "roberta"),
        **WIDTHS,
        **{"intermediate_size": 12, "max_position_embeddings": 8, "type_vocab_size": 1},
    ),
    "distilbert": config(
        *("DistilBertForMaskedLM", "distilbert"),
        **{"vocab_size": 24, "dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 12},
        max_position_embeddings=6,
    ),
    "modernbert": config(
        *("ModernBertForMaskedLM", "modernbert"),
        **WIDTHS,
        **{"intermediate_size": 12, "max_position_embeddings": 8, "local_attention": 4},
    ),
}


def cut(prefix: str) -> Callable[[Tensors], Tensors]:
    """Names as the class without a head has them."""
    return lambda tensors: {n.removeprefix(prefix): t for n, t in tensors.items()}


def renamed(pattern: str, other: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {re.sub(pattern, other, n): t for n, t in tensors.items()}


def more(**added: np.ndarray) -> Callable[[Tensors], Tensors]:
    """Tensors that older files have besides; "__" stands for a dot."""
    return lambda tensors: tensors | {n.replace("__", "."): t for n, t in added.items()}


def repeated(name: str, table: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: tensors[table].copy()}


def fused(tensors: Tensors) -> Tensors:
    """A mixture as transformers 5 writes it without the older names."""
    made = renamed("block_sparse_moe", "mlp")(tensors)
    for layer in range(2):
        stem = f"model.layers.{layer}.mlp.experts."
        w1, w2, w3 = (
            np.stack([made.pop(f"{stem}{e}.w{i}.weight") for e in range(3)]) for i in (1, 2, 3)
        )
        made |= {f"{stem}gate_up_proj": np.concatenate([w1, w3], 1), f"{stem}down_proj": w2}
    return made


MASK = np.tril(np.ones((1, 1, 8, 8), bool))
LOW = np.array(-1e9, np.float32)
SPELLINGS: dict[str, tuple[str, Callable[[Tensors], Tensors]]] = {
    "gpt2, base class": ("gpt2", cut("transformer.")),
    "gpt2, masks": (
        "gpt2",
        more(transformer__h__0__attn__bias=MASK, transformer__h__1__attn__masked_bias=LOW),
    ),
    "gpt2, the hub's own": (
        "gpt2",
        lambda t: more(h__0__attn__bias=MASK.astype(np.float32))(cut("transformer.")(t)),
    ),
    "gpt2, head repeated": ("gpt2", repeated("lm_head.weight", "transformer.wte.weight")),
    "gptj, masks": (
        "gptj",
        more(transformer__h__0__attn__bias=MASK, transformer__h__0__attn__masked_bias=LOW),
    ),
    "neox, today's head": ("neox", renamed("^embed_out", "lm_head")),
    "neox, masks and frequencies": (
        "neox",
        more(
            gpt_neox__layers__0__attention__bias=MASK,
            gpt_neox__layers__0__attention__masked_bias=LOW,
            gpt_neox__layers__1__attention__rotary_emb__inv_freq=np.ones(1, np.float32),
        ),
    ),
    "mixtral, fused": ("mixtral", fused),
    "bloom, base class": ("bloom", cut("transformer.")),
    "mpt, base class": ("mpt", cut("transformer.")),
    "opt, base class": ("opt", cut("model.")),
    "opt, head repeated": ("opt", repeated("lm_head.weight", "model.decoder.embed_tokens.weight")),
    "bert, base class": ("bert", cut("bert.")),
    "bert, 2018": (
        "bert",
        lambda t: renamed(r"LayerNorm\.bias", "LayerNorm.beta")(
            renamed(r"LayerNorm\.weight", "LayerNorm.gamma")(t)
        ),
    ),
    "bert, counters": ("bert", more(bert__embeddings__position_ids=np.arange(6))),
    "bert, output layer repeated": (
        "bert",
        lambda t: repeated("cls.predictions.decoder.bias", "cls.predictions.bias")(
            repeated("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight")(t)
        ),
    ),
    "bert, bias in the decoder": (
        "bert",
        renamed(r"cls\.predictions\.bias", "cls.predictions.decoder.bias"),
    ),
    "roberta, base class": ("roberta", cut("roberta.")),
    "roberta, output layer repeated": (
        "roberta",
        lambda t: more(roberta__embeddings__position_ids=np.arange(8))(
            repeated("lm_head.decoder.bias", "lm_head.bias")(
                repeated("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight")(t)
            )
        ),
    ),
    "distilbert, output layer repeated": (
        "distilbert",
        repeated("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),
    ),
    "modernbert, output layer repeated": (
        "modernbert",
        repeated("decoder.weight", "model.embeddings.tok_embeddings.weight"),
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_each_spelling_is_the_same_model(spelling: str, tmp_path: Path) -> None:
    name, spell = SPELLINGS[spelling]
    folder = written(tmp_path / "model", CONFIGS[name])
    wanted = {n: t.read().copy() for n, t in open_hf(folder).tensors.items()}
    tensors = load_file(folder / "model.safetensors")
    spelled = spell(dict(tensors))
    assert spelled.keys() != tensors.keys()
    save_file({n: np.array(t) for n, t in spelled.items()}, folder / "model.safetensors")
    found = open_hf(folder).tensors
    assert found.keys() == wanted.keys()
    for n, tensor in found.items():
        np.testing.assert_array_equal(tensor.read(), wanted[n], strict=True)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "scores by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scaled alike"),
    "cross attention": ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    "another activation": ("gpt2", {"activation_function": "mish"}, "mish"),
    "two widths": ("gpt2", {"hidden_size": 16}, "n_embd"),
    "odd rotation": ("gptj", {"rotary_dim": 3}, "must be even"),
    "rotation too wide": ("gptj", {"rotary_dim": 6}, "at most the 4"),
    "a tied head with a bias": ("gptj", {"tie_word_embeddings": True}, "tie_word_embeddings"),
    "no learned sine": ("neox", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
    "residual after the norm": (
        *("bloom", {"apply_residual_connection_post_layernorm": True}, "post_layernorm"),
    ),
    "clipping": ("mpt", {"attn_config": {"clip_qkv": 6.0}}, "attn_config.clip_qkv"),
    "one key head": ("mpt", {"attn_config": {"attn_type": "multiquery_attention"}}, "attn_type"),
    "no slopes": ("mpt", {"attn_config": {"alibi": False}}, "alibi"),
    "biases": ("mpt", {"no_bias": False}, "no_bias"),
    "norms after": ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before"),
    "narrow embeddings": ("opt", {"word_embed_proj_dim": 4}, "word_embed_proj_dim"),
    "a decoder": ("bert", {"is_decoder": True}, "is_decoder"),
    "relative positions": ("bert", {"position_embedding_type": "relative_key"}, "relative_key"),
    "another padding": ("roberta", {"pad_token_id": 0}, "pad_token_id"),
    "another head": (
        *("bert", {"architectures": ["BertForQuestionAnswering"]}, "another task's head"),
    ),
    "a new key": ("opt", {"embed_scale_factor": 2.0}, "embed_scale_factor"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_computed_is_refused_by_name(case: str, tmp_path: Path) -> None:
    name, changes, says = REFUSED[case]
    folder = written(tmp_path / "model", CONFIGS[name])
    open_hf(folder)
    (folder / "config.json").write_text(json.dumps({**CONFIGS[name], **changes}))
    with pytest.raises(FormatError, match=re.escape(says)) as caught:
        open_hf(folder)
    assert "\n" not in str(caught.value)


def test_positions_of_opt_and_roberta_count_from_two(tmp_path: Path) -> None:
    for name, table, rows in (
        ("opt", "model.decoder.embed_positions.weight", 6),
        ("roberta", "roberta.embeddings.position_embeddings.weight", 6),
    ):
        folder = written(tmp_path / name, CONFIGS[name])
        stored = load_file(folder / "model.safetensors")[table]
        assert stored.shape == (rows + 2, 8)
        files = open_hf(folder)
        assert files.manifest.parameters.context_length == rows
        np.testing.assert_array_equal(files.tensors["embed.positions"].read(), stored[2:])


def test_a_base_class_without_its_own_head_is_refused(tmp_path: Path) -> None:
    for name, saved in (("llama", "LlamaModel"), ("gptj", "GPTJModel")):
        folder = written(tmp_path / name, CONFIGS[name])
        spelled = CONFIGS[name] | {"architectures": [saved]}
        (folder / "config.json").write_text(json.dumps(spelled))
        tensors = load_file(folder / "model.safetensors")
        headless = {n: t for n, t in tensors.items() if not n.startswith("lm_head.")}
        save_file(headless, folder / "model.safetensors")
        with pytest.raises(FormatError, match=f"{saved} is the model without .*ForCausalLM"):
            open_hf(folder)
        save_file(tensors, folder / "model.safetensors")
        assert "head.w" in open_hf(folder).tensors  # the tensors say more than the class


def test_errors_and_ignore_have_the_names_of_the_file(tmp_path: Path) -> None:
    folder = written(tmp_path / "model", CONFIGS["opt"])
    tensors = cut("model.")(load_file(folder / "model.safetensors"))
    norm = tensors.pop("decoder.final_layer_norm.weight")
    tensors["decoder.fc.weight"] = tensors["decoder.embed_tokens.weight"][:5].copy()
    tensors["decoder.embed_tokens.weight"] = tensors["decoder.embed_tokens.weight"][:7].copy()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(FormatError) as caught:
        open_hf(folder)
    says = str(caught.value)
    assert "model.decoder" not in says
    for name in ("embed_tokens.weight", "final_layer_norm.weight", "fc.weight"):
        assert f"  decoder.{name}: " in says

    tensors["decoder.final_layer_norm.weight"] = norm
    tensors["decoder.embed_tokens.weight"] = np.zeros((24, 8), np.float32)
    save_file(tensors, folder / "model.safetensors")
    for accepted in ("decoder.fc.weight", "decoder.fc.*", "model.decoder.fc.weight"):
        assert open_hf(folder, ignore=(accepted,)).tensors
