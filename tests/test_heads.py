"""Heads of encoders against the same formulas in NumPy."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import SIMPLE

from llmasos_jax.api import parity
from llmasos_jax.config.heads import Classifier
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.format.names import expected
from llmasos_jax.format.tensorfile import stored
from llmasos_jax.format.write import write_model
from llmasos_jax.models.count import count_parameters, flops_per_token, forward_flops_per_token
from llmasos_jax.models.definition import file_def
from llmasos_jax.models.transformer import Transformer
from llmasos_jax.nn.heads import pool
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.parallel.rules import Rules
from llmasos_jax.train.weights import decay_mask, matrix

BERT = ModelConfig(
    vocab_size=30,
    embedding_dim=12,
    num_layers=1,
    context_length=16,
    num_heads=2,
    ffn_dim=16,
    causal=False,
    norm="layernorm",
    norm_eps=1e-3,
    mlp="gelu",
    mlp_bias=True,
    head="mlm",
    pooler=True,
    next_sentence=True,
    classifier=Classifier(("bad", "fair", "good")),
)


def random_params(cfg: ModelConfig) -> Any:
    """Every weight at random, biases and scales too."""
    rng = np.random.default_rng(0)
    draw = lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32)
    return jax.tree.map(draw, file_def(cfg).shapes)


def bound(cfg: ModelConfig) -> tuple[Transformer, Any]:
    params = random_params(cfg)
    return file_def(cfg).bind(params), jax.tree.map(lambda a: np.asarray(a, np.float64), params)


def states(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize(
    ("changes", "act"),
    [
        ({}, gelu),
        ({"tie_embeddings": False}, gelu),
        ({"mlp": "geglu", "mlp_bias": False, "norm_bias": False}, gelu),
        ({"mlp": "swiglu"}, silu),
    ],
    ids=["tied", "own matrix", "no biases", "another activation"],
)
def test_mlm_logits_are_the_formula(changes: dict, act: Any) -> None:
    cfg = BERT.replace(**changes)
    model, params = bound(cfg)
    x_bmd = states(2, 3, 12)
    head, x = params["head"], np.asarray(x_bmd, np.float64)
    assert ("bias" in head["transform"]) == cfg.mlp_bias and ("w" in head) != cfg.tie_embeddings
    y = act(x @ head["transform"]["w"] + head["transform"].get("bias", 0.0))
    y = y - y.mean(-1, keepdims=True)
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + cfg.norm_eps) * head["norm"]["scale"]
    y = y + head["norm"].get("bias", 0.0)
    wanted = y @ (params["embed"]["table"].T if cfg.tie_embeddings else head["w"]) + head["bias"]
    found = model.logits(x_bmd, Runtime())
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, rtol=SIMPLE, atol=SIMPLE)


def test_mlm_logits_are_capped_and_scaled_after_the_bias() -> None:
    model, _ = bound(BERT)
    plain = np.asarray(model.logits(states(1, 2, 12), Runtime()))
    other, _ = bound(BERT.replace(logit_scale=0.5, logit_soft_cap=3.0))
    found = np.asarray(other.logits(states(1, 2, 12), Runtime()))
    np.testing.assert_allclose(found, 3.0 * np.tanh(0.5 * plain / 3.0), atol=SIMPLE)


def test_chosen_places_give_what_all_places_give_there() -> None:
    model, _ = bound(BERT)
    x_btd = states(2, 8, 12)
    places = np.array([[1, 5], [0, 7]])
    chosen = model.logits(jnp.take_along_axis(x_btd, places[..., None], axis=1), Runtime())
    whole = np.asarray(model.logits(x_btd, Runtime()))
    np.testing.assert_allclose(chosen, np.take_along_axis(whole, places[..., None], 1), atol=SIMPLE)


def test_pooler_reads_the_first_token_and_next_sentence_reads_the_pooler() -> None:
    model, params = bound(BERT)
    x_btd = states(2, 5, 12)
    mask_bt = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    first = np.stack([x_btd[0, 2], x_btd[1, 0]]).astype(np.float64)
    wanted = np.tanh(first @ params["pooler"]["w"] + params["pooler"]["bias"])
    pooled = model.pooled(x_btd, Runtime(), mask_bt)
    np.testing.assert_allclose(pooled, wanted, atol=SIMPLE)
    scores = model.next_sentence(pooled, Runtime())
    head = params["next_sentence"]
    np.testing.assert_allclose(scores, wanted @ head["w"] + head["bias"], atol=SIMPLE)
    assert scores.dtype == jnp.float32
    whole = np.tanh(
        np.asarray(x_btd, np.float64)[:, 0] @ params["pooler"]["w"] + params["pooler"]["bias"]
    )
    np.testing.assert_allclose(model.pooled(x_btd, Runtime()), whole, atol=SIMPLE)


def test_a_classifier_of_sequences_reads_what_is_pooled() -> None:
    model, params = bound(BERT)
    pooled = model.pooled(states(2, 5, 12), Runtime())
    head = params["classifier"]
    wanted = np.asarray(pooled, np.float64) @ head["w"] + head["bias"]
    np.testing.assert_allclose(model.classify(pooled, Runtime()), wanted, atol=SIMPLE)
    with pytest.raises(ValueError, match="sequence"):
        model.classify(states(2, 5, 12), Runtime())


def test_a_classifier_of_tokens_reads_each_token() -> None:
    model, params = bound(BERT.replace(classifier=Classifier(("a", "b"), "token")))
    x_btd, head = states(2, 5, 12), params["classifier"]
    wanted = np.asarray(x_btd, np.float64) @ head["w"] + head["bias"]
    np.testing.assert_allclose(model.classify(x_btd, Runtime()), wanted, atol=SIMPLE)
    with pytest.raises(ValueError, match="token"):
        model.classify(states(2, 12), Runtime())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_no_part_of_a_text(side: str) -> None:
    text_btd, padding = states(1, 3, 12), jnp.full((1, 2, 12), jnp.inf)
    parts = (padding, text_btd) if side == "left" else (text_btd, padding)
    mask_bt = np.array([[0, 0, 1, 1, 1]] if side == "left" else [[1, 1, 1, 0, 0]])
    x_btd = jnp.concatenate(parts, axis=1)
    for kind in ("mean", "cls"):
        alone = np.asarray(pool(text_btd, None, kind))
        np.testing.assert_allclose(pool(x_btd, mask_bt, kind), alone, atol=SIMPLE)
    np.testing.assert_array_equal(pool(x_btd, mask_bt, "cls")[0], text_btd[0, 0])


def test_without_a_pooler_the_pooled_state_is_the_poolings() -> None:
    changes = {"pooler": False, "next_sentence": False}
    x_btd = states(2, 5, 12)
    mean, _ = bound(BERT.replace(**changes))
    np.testing.assert_allclose(mean.pooled(x_btd, Runtime()), x_btd.mean(axis=1), atol=SIMPLE)
    cls, _ = bound(BERT.replace(**changes, pooling="cls"))
    np.testing.assert_array_equal(cls.pooled(x_btd, Runtime()), x_btd[:, 0])


def test_a_head_that_is_not_there_is_said_to_be_missing() -> None:
    bare = BERT.replace(head=None, pooler=False, next_sentence=False, classifier=Classifier())
    model, _ = bound(bare)
    with pytest.raises(ConfigError, match="no output layer"):
        model.logits(states(1, 2, 12), Runtime())
    with pytest.raises(ConfigError, match="no classifier"):
        model.classify(states(1, 12), Runtime())
    assert model.next_sentence is None and model.pooler is None


def test_tensors_of_the_heads_have_names_shapes_and_axes() -> None:
    specs = expected(BERT.replace(tie_embeddings=False))
    found = {n: (s.shape, s.axes) for n, s in specs.items() if n.split(".")[0] in HEADS}
    assert found == {
        "head.transform.w": ((12, 12), ("embed", None)),
        "head.transform.bias": ((12,), (None,)),
        "head.norm.scale": ((12,), (None,)),
        "head.norm.bias": ((12,), (None,)),
        "head.w": ((12, 30), ("embed", "vocab")),
        "head.bias": ((30,), ("vocab",)),
        "pooler.w": ((12, 12), ("embed", None)),
        "pooler.bias": ((12,), (None,)),
        "next_sentence.w": ((12, 2), ("embed", None)),
        "next_sentence.bias": ((2,), (None,)),
        "classifier.w": ((12, 3), ("embed", None)),
        "classifier.bias": ((3,), (None,)),
    }
    assert "head.w" not in expected(BERT)
    rules = Rules(embed="fsdp", vocab="tensor")
    assert tuple(rules.spec(*specs["head.bias"].axes)) == ("tensor",)


HEADS = ("head", "pooler", "next_sentence", "classifier")


def test_biases_start_at_zero_and_matrices_decay() -> None:
    inits, params = file_def(BERT).inits, file_def(BERT).shapes
    decays = decay_mask(params)
    for name in ("pooler", "next_sentence", "classifier"):
        assert inits[name] == {"w": "normal", "bias": "zeros"}
        assert decays[name] == {"w": True, "bias": False}
        assert matrix((name, "w")) == ((0,), (1,))
    assert inits["head"]["bias"] == "zeros" and inits["head"]["norm"]["scale"] == "ones"
    assert decays["head"]["transform"] == {"w": True, "bias": False}
    assert not decays["head"]["bias"]
    # Tied, the table is the output layer, and decays; only looked up, it does not.
    assert decays["embed"]["table"]
    assert not decay_mask(file_def(BERT.replace(tie_embeddings=False)).shapes)["embed"]["table"]


@pytest.mark.parametrize("level", ["sequence", "token"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_parameters_are_counted(level: str, is_tied: bool) -> None:
    labels = Classifier(("a", "b", "c"), level)
    cfg = BERT.replace(tie_embeddings=is_tied, classifier=labels)
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(file_def(cfg).shapes)]
    assert count_parameters(cfg) == sum(sizes)


def test_flops_charge_the_output_layer_with_the_predicted_places_alone() -> None:
    """By hand: D = 12, V = 30, 128 tokens of which 20 are predicted, a pooler's row once."""
    bare = BERT.replace(head=None, pooler=False, next_sentence=False, classifier=Classifier())
    trunk = forward_flops_per_token(bare, 128)
    heads = 2 * ((12 * 12 + 12 * 30) * 20 + 12 * 12 + 12 * 2 + 12 * 3) / 128
    found = forward_flops_per_token(BERT, 128, predicted_share=20 / 128)
    assert found == pytest.approx(trunk + heads, rel=1e-12)
    assert flops_per_token(BERT, 128, 20 / 128) == pytest.approx(3 * (trunk + heads), rel=1e-12)
    tokens = BERT.replace(classifier=Classifier(("a", "b", "c"), "token"))
    more = forward_flops_per_token(tokens, 128) - forward_flops_per_token(BERT, 128)
    assert more == pytest.approx(2 * 36 * (1 - 1 / 128), rel=1e-9)


def test_parity_finds_a_fault_in_a_head_and_names_heads_that_are_not_run(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.normal(size=spec.shape).astype(np.float32)
        for name, spec in expected(BERT).items()
    }

    def saved(name: str, **changes: np.ndarray) -> Path:
        tensors = {n: stored(a) for n, a in {**arrays, **changes}.items()}
        return write_model(tmp_path / name, Manifest(name, BERT), tensors)

    right = saved("right")
    found = parity(right, saved("transform", **{"head.transform.w": -arrays["head.transform.w"]}))
    assert not found.same and found.first == "logits" and found.explains_all
    assert found.hint is not None and "head.transform.w" in found.hint + str(found.weights)
    found = parity(right, saved("pooler", **{"pooler.w": -arrays["pooler.w"]}))
    assert not found.same and found.first is None and found.unreached == ("pooler.w",)


def test_one_label_of_texts_is_a_score() -> None:
    assert Classifier(("a",)).is_score
    assert not any(c.is_score for c in (Classifier(), Classifier(("a",), "token")))
    assert not Classifier(("a", "b")).is_score
