"""Encoders and what they read: token types, masks on either side, states after each layer."""

import numpy as np
import pytest
from tolerances import SIMPLE

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import ConfigError, GenerationError
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.format.tensorfile import stored
from llmasos_jax.generate.load import init_model
from llmasos_jax.generate.model import Model
from llmasos_jax.generate.request import read_options
from llmasos_jax.generate.weights import Placing, place_tensors
from llmasos_jax.models.count import count_parameters
from llmasos_jax.models.definition import file_def
from llmasos_jax.nn.runtime import Runtime

ENCODER = ModelConfig(
    61,
    24,
    3,
    context_length=12,
    num_heads=4,
    ffn_dim=40,
    causal=False,
    norm="layernorm",
    norm_eps=1e-12,
    norm_placement="post",
    final_norm=False,
    embedding_norm=True,
    token_types=2,
    position="learned",
    qkv_bias=True,
    attention_out_bias=True,
    mlp="gelu",
    mlp_bias=True,
    head=None,
)
TYPES = np.array([[0, 0, 0, 1, 1, 1, 1, 0], [0, 1, 0, 1, 1, 0, 0, 0]])
LENGTHS = (8, 5)
MASK = (np.arange(8)[None] < np.array(LENGTHS)[:, None]).astype(np.int64)
IDS = np.random.default_rng(0).integers(0, 61, (2, 8))


def filled(cfg: ModelConfig, arrays: dict[str, np.ndarray] | None = None) -> Model:
    """A model whose weights are all random, norms and biases included, or those given."""
    definition = file_def(cfg)
    if arrays is None:
        model = init_model(cfg)
        rng = np.random.default_rng(1)
        tensors = model._weights.stored()
        arrays = {
            name: (0.3 * rng.normal(size=t.shape) + ("scale" in name)).astype(np.float32)
            for name, t in tensors.items()
        }
    tensors = {name: stored(array) for name, array in arrays.items()}
    return Model(Manifest("filled", cfg), place_tensors(Placing(definition, None), tensors, None))


@pytest.fixture(scope="module")
def model() -> Model:
    return filled(ENCODER)


def states(model: Model, *args: object, **kwargs: object) -> np.ndarray:
    """All layers, [L + 1, B, T, D]."""
    return np.stack([np.asarray(x) for x in model.hidden_states(*args, **kwargs)])


def test_padding_on_either_side_changes_nothing(model: Model) -> None:
    whole = states(model, IDS[1:, :5], token_type_ids=TYPES[1:, :5])
    right = states(model, IDS, MASK, TYPES)
    left = states(
        model,
        np.roll(IDS[1:], 3, axis=1),
        np.roll(MASK[1:], 3, axis=1),
        np.roll(TYPES[1:], 3, axis=1),
    )
    assert whole.shape == (4, 1, 5, 24) and whole.dtype == np.float32
    np.testing.assert_allclose(right[:, 1:, :5], whole, atol=SIMPLE)
    np.testing.assert_allclose(left[:, :, 3:], whole, atol=SIMPLE)
    # An encoder reads ahead: a mask that hides the last token changes the first one's state.
    other = states(model, IDS[1:, :5], np.array([[1, 1, 1, 1, 0]]), TYPES[1:, :5])
    assert np.abs(other[-1, 0, 0] - whole[-1, 0, 0]).max() > 0.01


def test_padding_makes_no_positions(model: Model) -> None:
    """Twelve positions, twenty columns: only tokens count."""
    wide = np.pad(IDS, [(0, 0), (12, 0)])
    mask = np.pad(np.ones_like(IDS), [(0, 0), (12, 0)])
    found = states(model, wide, mask)[:, :, 12:]
    np.testing.assert_allclose(found, states(model, IDS), atol=SIMPLE)
    with pytest.raises(GenerationError, match="20 tokens in a row, the model 12 positions"):
        model.hidden_states(wide)


def test_the_embedding_is_a_sum_of_three_rows_and_a_norm(model: Model) -> None:
    w = {name: np.asarray(t.read()) for name, t in model._weights.stored().items()}
    x = w["embed.table"][IDS] + w["embed.positions"][:8] + w["embed.types"][TYPES]
    x = x - x.mean(-1, keepdims=True)
    x = x / x.std(-1, keepdims=True) * w["embed.norm.scale"] + w["embed.norm.bias"]
    np.testing.assert_allclose(states(model, IDS, None, TYPES)[0], x, atol=SIMPLE)
    np.testing.assert_array_equal(states(model, IDS), states(model, IDS, None, 0 * TYPES))


def test_the_last_state_is_after_the_final_norm() -> None:
    cfg = ENCODER.replace(norm_placement="pre", final_norm=True, causal=True, head="linear")
    model = filled(cfg)
    found = states(model, IDS)
    w = {name: np.asarray(t.read()) for name, t in model._weights.stored().items()}
    # A norm's output has the norm's scale and bias for spread and mean; the state before has not.
    last = (found[-1] - w["final_norm.bias"]) / w["final_norm.scale"]
    np.testing.assert_allclose(last.mean(-1), 0, atol=SIMPLE)
    np.testing.assert_allclose(last.std(-1), 1, rtol=1e-4)
    logits = np.asarray(model.logits(IDS))
    np.testing.assert_allclose(found[-1] @ w["embed.table"].T, logits, atol=10 * SIMPLE)
    assert len(found) == cfg.num_layers + 1


@pytest.mark.parity
@pytest.mark.parametrize("side", ["right", "left"])
def test_states_equal_those_of_bert_of_transformers(side: str) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=61,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=12,
        attn_implementation="eager",
    )
    theirs = transformers.BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            is_scale = "LayerNorm.weight" in name
            weight.normal_(float(is_scale), 0.3)
    model = filled(ENCODER, bert_arrays(theirs))
    turn = (lambda x: x) if side == "right" else (lambda x: np.roll(x, (0, 3), axis=(0, 1)))
    ids, mask, types = (turn(x[1:]) if side == "left" else x for x in (IDS, MASK, TYPES))
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    with torch.no_grad():
        out = theirs(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            token_type_ids=torch.from_numpy(types),
            position_ids=torch.from_numpy(positions),
            output_hidden_states=True,
        )
    expected = np.stack([x.numpy() for x in out.hidden_states])
    found, real = states(model, ids, mask, types), mask.astype(bool)
    assert len(found) == 4 and expected.std() > 0.9
    np.testing.assert_allclose(found[:, real], expected[:, real], atol=SIMPLE)


def bert_arrays(theirs) -> dict[str, np.ndarray]:
    """Ours from theirs, every one of theirs used."""
    w = {name: weight.detach().numpy() for name, weight in theirs.named_parameters()}
    used: set[str] = set()

    def take(name: str) -> np.ndarray:
        used.add(name)
        return w[name]

    arrays = {
        "embed.table": take("embeddings.word_embeddings.weight"),
        "embed.positions": take("embeddings.position_embeddings.weight"),
        "embed.types": take("embeddings.token_type_embeddings.weight"),
        "embed.norm.scale": take("embeddings.LayerNorm.weight"),
        "embed.norm.bias": take("embeddings.LayerNorm.bias"),
    }
    for i in range(3):
        ours, at = f"layers.{i}.", f"encoder.layer.{i}."
        for part, name in (("q", "query"), ("k", "key"), ("v", "value")):
            stem = f"{at}attention.self.{name}"
            arrays[f"{ours}attn.{part}"] = take(f"{stem}.weight").T.reshape(24, 4, 6)
            arrays[f"{ours}attn.{part}_bias"] = take(f"{stem}.bias").reshape(4, 6)
        stem = f"{at}attention.output"
        arrays[f"{ours}attn.o"] = take(f"{stem}.dense.weight").T.reshape(4, 6, 24)
        arrays[f"{ours}attn.o_bias"] = take(f"{stem}.dense.bias")
        norms = (("attn_post_norm", stem), ("mlp_post_norm", f"{at}output"))
        for norm, stem in norms:
            arrays[f"{ours}{norm}.scale"] = take(f"{stem}.LayerNorm.weight")
            arrays[f"{ours}{norm}.bias"] = take(f"{stem}.LayerNorm.bias")
        for part, stem in (("up", f"{at}intermediate"), ("down", f"{at}output")):
            arrays[f"{ours}mlp.{part}"] = take(f"{stem}.dense.weight").T
            arrays[f"{ours}mlp.{part}_bias"] = take(f"{stem}.dense.bias")
    assert used == set(w)
    return arrays


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"token_type_ids": np.full_like(IDS, 2)}, "token_type_ids reach from 2 to 2.*0 to 1"),
        ({"token_type_ids": -TYPES}, "from -1"),
        (
            {"token_type_ids": TYPES[:, :3]},
            r"token_type_ids \[2, 3\] do not fit token_ids \[2, 8\]",
        ),
        ({"token_type_ids": 0.5 * TYPES}, "token_type_ids is float64"),
        ({"token_ids": IDS + (1 << 32)}, "token_ids reach from 429.*0 to 60"),
        ({"token_ids": IDS + 61}, "token_ids reach"),
        ({"attention_mask": MASK + (1 << 32)}, "attention_mask holds 42.*1 for tokens and 0 for"),
        ({"attention_mask": np.arange(16).reshape(2, 8) % 8 != 3}, "padding between tokens"),
        ({"attention_mask": MASK[:, 1:]}, r"attention_mask \[2, 7\] does not fit .* \[2, 8\]"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(model: Model, kwargs: dict, words: str) -> None:
    with pytest.raises(GenerationError, match=words):
        model.hidden_states(**{"token_ids": IDS, **kwargs})


def test_an_encoder_without_a_head_gives_no_logits_and_no_text(model: Model) -> None:
    with pytest.raises(GenerationError, match="no output layer, so no logits; call hidden_states"):
        model.logits(IDS)
    with pytest.raises(GenerationError, match="both directions"):
        model.generate_text("a")
    bound = model._weights.definition.bind(model._weights.params)
    with pytest.raises(ConfigError, match="model.head=None"):
        bound.logits(np.zeros((1, 1, 24), np.float32), Runtime())
    with pytest.raises(ConfigError, match="model.head=None.*causal=False"):
        ENCODER.replace(causal=True)


def test_random_weights_must_fit_in_memory_while_they_are_drawn(monkeypatch) -> None:
    from llmasos_jax.generate import weights

    cfg = ENCODER.replace(num_layers=1)
    num = count_parameters(cfg)
    for free in (6 * num - 1, 7 * num):  # less than the numbers take, then than the program does
        monkeypatch.setattr(weights, "free_bytes", lambda free=free: free)
        with pytest.raises(GenerationError, match="drawing the weights takes .* smaller model"):
            init_model(cfg, dtype="bfloat16")
    monkeypatch.setattr(weights, "free_bytes", lambda: 100 * num)
    assert init_model(cfg, dtype="bfloat16").num_parameters == num


def test_a_seed_may_be_a_number_of_numpy() -> None:
    cfg = ENCODER.replace(num_layers=1)
    one, other = (init_model(cfg, seed=seed) for seed in (7, np.uint32(7)))
    assert np.array_equal(one.hidden_states(IDS)[1], other.hidden_states(IDS)[1])
    for seed in (True, 1.0, -1, 1 << 32):
        with pytest.raises(GenerationError, match="give a whole number below"):
            init_model(cfg, seed=seed)


def test_options_are_checked_before_a_seed_is_shown(caplog) -> None:
    with caplog.at_level("INFO", logger="llmasos_jax"):
        for wrong in (np.array([1.0, 2.0]), "warm"):
            with pytest.raises(GenerationError, match="temperature="):
                read_options(temperature=wrong)
    assert not caplog.records


def test_a_model_without_token_types_takes_none() -> None:
    plain = ENCODER.replace(token_types=0)
    with pytest.raises(GenerationError, match="has no token types"):
        filled(plain).hidden_states(IDS, token_type_ids=TYPES)
    bound = file_def(plain).bind(file_def(plain).shapes)
    with pytest.raises(ValueError, match="without token types"):
        bound.hidden(IDS, token_types_bt=TYPES, runtime=Runtime())
