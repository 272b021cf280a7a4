"""Looking inside: what is said must be what the model computes.

Models that are cut over devices are in test_evals_on_a_mesh.py.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_programs import quick  # noqa: F401
from small_model import FAMILIES
from tolerances import SIMPLE, WHOLE_MODEL

from llmasos_jax.errors import GenerationError
from llmasos_jax.evals.interpret.attention import attention_maps
from llmasos_jax.evals.interpret.attribution import gradient_times_input, integrated_gradients
from llmasos_jax.evals.interpret.lens import logit_lens
from llmasos_jax.evals.interpret.patching import Patching, activation_patching
from llmasos_jax.evals.interpret.path import NODES, integrate
from llmasos_jax.evals.interpret.probes import linear_probe, probe_layers
from llmasos_jax.evals.interpret.rows import call, read_row
from llmasos_jax.evals.interpret.scores import TokenScores, token_logprobs
from llmasos_jax.evals.interpret.watch import HEADS, MODEL, Place, run_watched
from llmasos_jax.format.manifest import Generation, Manifest
from llmasos_jax.format.names import expected
from llmasos_jax.format.tensorfile import stored
from llmasos_jax.generate.model import Model
from llmasos_jax.generate.weights import Placing, place_tensors
from llmasos_jax.models.definition import file_def
from llmasos_jax.models.zoo import preset

CLEAN, CORRUPTED = [5, 6, 7, 8, 9], [5, 6, 30, 8, 9]
# One of each kind of stack that looks different from within.
ZOO = {"bert": "bert-base-uncased", "t5": "t5-v1_1-small", "deepseek": "deepseek-v3"}


@functools.cache
def model_of(name: str) -> Model:
    """Random weights, drawn by NumPy: a program that draws them takes longer to compile."""
    cfg = preset(ZOO[name]).tiny if name in ZOO else FAMILIES[name]
    rng, tensors = np.random.default_rng(1), {}
    for tensor, spec in expected(cfg).items():
        array = rng.normal(float(tensor.endswith("scale")), 0.1, spec.shape)
        tensors[tensor] = stored(array.astype(np.float32))
    generation = Generation(decoder_start_id=0 if name == "t5" else None)
    weights = place_tensors(Placing(file_def(cfg), None), tensors, None)
    return Model(Manifest(name, cfg, generation=generation), weights)


def written(name: str) -> list[int] | None:
    """What a decoder with an encoder has written."""
    return [0, 3, 4] if name == "t5" else None


@functools.cache
def output(name: str) -> np.ndarray:
    more = {"decoder_ids": [written(name)]} if name == "t5" else {}
    return np.asarray(model_of(name).logits([CLEAN], **more)[0])


@pytest.mark.parametrize("name", ("windows", "t5", "deepseek"))
def test_the_maps_times_the_values_are_what_the_heads_gather(name: str) -> None:
    model = model_of(name)
    found = attention_maps(model, CLEAN, written(name))
    row = read_row(model, CLEAN, written(name))
    num = len(row.scored_ids)
    heads, values = call(model, _gathered, row.arrays)
    values = np.repeat(values, heads.shape[2] // values.shape[2], axis=2)[:, :num]
    ours = np.einsum("lnts,lsnz->ltnz", found.maps, values)
    np.testing.assert_allclose(ours, heads[:, :num], atol=SIMPLE * np.abs(heads).max())
    np.testing.assert_allclose(found.maps.sum(-1), 1, atol=SIMPLE)
    later = np.triu(found.maps, 1)
    assert (later == 0).all() if model.config.causal else (later > 0).any()
    if name == "t5":
        assert found.cross is not None and found.encoder is not None
        assert found.cross.shape[-2:] == (3, 5) and found.encoder.shape[-2:] == (5, 5)
        np.testing.assert_allclose(found.cross.sum(-1), 1, atol=SIMPLE)


def _gathered(definition: Any, runtime: Any, params: Any, arrays: Any) -> Any:
    seen = run_watched(definition, runtime, params, arrays)
    layers = range(definition.cfg.num_layers)
    return [jnp.stack([seen.values[Place(MODEL, n, i)][0] for i in layers]) for n in (HEADS, "v")]


@pytest.mark.parametrize("name", ("windows", "bert", "t5"))
def test_the_last_layer_of_the_lens_is_the_output(name: str) -> None:
    model = model_of(name)
    found = logit_lens(model, CLEAN, written(name), with_logits=True)
    assert found.logits is not None
    assert len(found.logits) == model.config.num_layers + 1
    np.testing.assert_allclose(found.logits[-1], output(name), atol=WHOLE_MODEL)
    assert np.abs(found.divergences[-1]).max() < 1e-6 < found.divergences[0].max()
    np.testing.assert_array_equal(found.top_ids[..., 0], found.logits.argmax(-1))


@pytest.mark.parametrize("name", ("windows", "bert", "t5"))
def test_integrated_gradients_sum_to_the_difference(name: str) -> None:
    model = model_of(name)
    found = integrated_gradients(model, CLEAN, 9, against=3, decoder=written(name))
    logits = output(name)[-1]
    assert found.score == pytest.approx(logits[9] - logits[3], abs=WHOLE_MODEL)
    assert found.score != found.baseline
    assert found.values.sum() == pytest.approx(found.score - found.baseline, rel=0.01)
    assert found.gap <= 0.01
    assert len(found.values) == len(found.tokens) == (8 if name == "t5" else 5)


def test_what_jumps_has_no_integral() -> None:
    """Along the path a router chooses other experts, and the score jumps."""
    with pytest.raises(GenerationError, match="choose other experts along the path"):
        integrated_gradients(model_of("deepseek"), CLEAN, 9, max_evaluations=200)


def test_a_baseline_equal_at_a_token_leaves_it_nothing() -> None:
    found = integrated_gradients(model_of("windows"), CLEAN, 9, baseline=CORRUPTED)
    assert found.values[2] == pytest.approx(found.score - found.baseline, rel=0.01)
    assert (found.values[[0, 1, 3, 4]] == 0).all()
    with pytest.raises(GenerationError, match="2 tokens, the text 5"):
        integrated_gradients(model_of("windows"), CLEAN, 9, baseline=[1, 2])
    with pytest.raises(GenerationError, match="give another baseline .of a deep model none near"):
        integrated_gradients(model_of("windows"), CLEAN, 9, max_evaluations=20, tolerance=1e-9)


def test_a_path_begins_where_it_is_told_to() -> None:
    """With the mean of all embeddings, or an array; its score is the model's on just that."""
    model = model_of("windows")
    table = np.asarray(model._weights.stored()["embed.table"].read())
    for baseline in (None, np.zeros(48), np.full(48, 0.05, np.float32)):
        found = integrated_gradients(model, CLEAN, 9, baseline=baseline)
        tensors = dict(model._weights.stored())
        # The output layer is tied to the table, so what is read is put into one row of it alone.
        own = table.mean(0) if baseline is None else baseline.astype(np.float32)
        changed = table.copy()
        changed[200] = own
        weights = place_tensors(
            model._weights.placing, {**tensors, "embed.table": stored(changed)}, None
        )
        logits = np.asarray(Model(model.manifest, weights).logits([[200] * 5])[0, -1])
        assert found.baseline == pytest.approx(logits[9], abs=SIMPLE)
        assert found.gap <= 0.01
    for wrong in (np.zeros(47), np.full(48, np.nan), np.zeros(48, np.int32)):
        with pytest.raises(GenerationError, match="give finite floats .48., which stand at each"):
            integrated_gradients(model, CLEAN, 9, baseline=wrong)


def test_the_integral_of_what_turns_sharply_is_right_and_of_what_overflows_refused() -> None:
    """Of tanh(alpha / 1e-4): all of its change is in a ten-thousandth of the way."""

    def run(nodes: np.ndarray, weights: np.ndarray) -> Any:
        slope = float(np.sum(weights * 1e4 / np.cosh(np.minimum(nodes * 1e4, 40.0)) ** 2))
        return np.tanh(nodes * 1e4), {"model": np.full((1, 1), slope, np.float32)}, slope

    found = integrate(run, 1e-3, 2048)
    assert found.integral["model"][0, 0] == pytest.approx(1, abs=1e-3)
    assert (found.first, found.last) == (0.0, 1.0) and 100 < found.evaluations < 1000
    broken = lambda nodes, weights: (nodes, {}, np.float32(np.nan))
    with pytest.raises(GenerationError, match="gradients are beyond float32"):
        integrate(broken, 1e-3, 2048)


def test_gradient_times_input_is_the_slope_towards_the_text() -> None:
    model = model_of("windows")
    found = gradient_times_input(model, CLEAN, 9)
    near = integrated_gradients(model, CLEAN, 9, tolerance=1e-4)
    assert found.score == pytest.approx(near.score, abs=SIMPLE)
    # Towards the text the slope is the sum of the gradients' products with it: see the path.
    from llmasos_jax.evals.interpret import attribution

    row, wanted = attribution._ask(model, CLEAN, 9, None, -1, None)
    end = call(model, attribution._embedded, row.arrays)
    points = np.zeros((2, NODES + 2), np.float32)  # as many as pieces have: compiled already
    points[0, :2] = 0.98, 1.02
    start = attribution._zeros(end)
    values, _, _ = call(model, attribution._path, row.arrays, wanted, end, start, tuple(points))
    slope = float(values[1] - values[0]) / 0.04
    assert found.values.sum() == pytest.approx(slope, rel=0.01)


@pytest.mark.parametrize("name", ("windows", "bert", "deepseek"))
def test_patching_every_layer_restores_the_clean_score(name: str) -> None:
    found = activation_patching(model_of(name), CLEAN, CORRUPTED, 9)
    assert found.clean == pytest.approx(output(name)[-1, 9], abs=WHOLE_MODEL)
    near = near_of(found)
    assert found.everywhere == near(1)
    assert found.layers.tolist() == [near(1)] * len(found.layers)
    # Before the first block the texts differ at one token alone.
    assert found.effects[0].tolist() == [near(0), near(0), near(1), near(0), near(0)]


def near_of(found: Patching) -> Any:
    """Shares as near as two logits of one model are."""
    return functools.partial(pytest.approx, abs=SIMPLE / abs(found.clean - found.corrupted))


def test_of_a_decoder_that_reads_another_text_no_layer_is_the_first_to_know() -> None:
    """Its texts are the same before the first block: what differs comes in from the encoder."""
    found = activation_patching(model_of("t5"), CLEAN, CORRUPTED, 9, decoder=written("t5"))
    assert found.effects.shape == (model_of("t5").config.num_layers, 3)
    near = near_of(found)
    assert found.effects[0].tolist() == [near(0)] * 3
    assert found.effects[1, 2] != near(0) and found.everywhere != near(1)


def test_patching_what_attention_adds_is_enough_and_what_mlps_add_is_not() -> None:
    """What is read is the same token in both: all that differs there came through attention."""
    model = model_of("windows")
    found = activation_patching(model, CLEAN, CORRUPTED, 9, place="attention")
    assert found.effects.shape == (2, 5)
    near = near_of(found)
    assert found.everywhere == near(1)
    assert activation_patching(model, CLEAN, CORRUPTED, 9, place="mlp").everywhere != near(1)
    # Causal: what comes before is the same.
    assert found.effects[0, :2].tolist() == [near(0)] * 2
    with pytest.raises(GenerationError, match='did you mean "mlp"'):
        activation_patching(model, CLEAN, CORRUPTED, 9, place="mpl")
    with pytest.raises(GenerationError, match="same score"):
        activation_patching(model, CLEAN, CLEAN, 9)


def test_log_probabilities_are_those_of_the_logits() -> None:
    found = token_logprobs(model_of("windows"), CLEAN)
    logprobs = np.asarray(jax.nn.log_softmax(output("windows")))
    np.testing.assert_allclose(
        found.logprobs[1:], logprobs[np.arange(4), CLEAN[1:]], atol=WHOLE_MODEL
    )
    assert np.isnan(found.logprobs[0]) and found.ranks[0] == -1
    assert found.ranks[1] == np.sum(logprobs[0] > logprobs[0, CLEAN[1]])
    entropy = -np.sum(np.exp(logprobs[0]) * logprobs[0])
    assert found.entropies[1] == pytest.approx(entropy, abs=WHOLE_MODEL)
    with pytest.raises(GenerationError, match="both directions"):
        token_logprobs(model_of("bert"), CLEAN)


def test_probes_read_what_is_there_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    states = rng.normal(size=(200, 8)) * 10 + 3
    probe = linear_probe(states, np.where(states[:, 3] - states[:, 5] > 0, "yes", "no"))
    assert probe.accuracy >= 0.94 and probe.control < 0.75
    assert set(probe.predict(states)) == {"yes", "no"}
    assert linear_probe(states, rng.integers(0, 2, 200)).accuracy < 0.7
    # Whether a text ends with a small id is in its last token's embedding, not in its first's.
    texts = rng.integers(10, 300, (40, 4))
    texts[:, -1] = rng.integers(10, 12, 40)
    labels = texts[:, -1] == 10
    found = probe_layers(model_of("windows"), texts.tolist(), labels)
    assert found.accuracies.shape == (3,) and found.accuracies[0] == 1.0
    with pytest.raises(GenerationError, match="one class"):
        linear_probe(states, np.zeros(200))


def test_views_hold_all_that_they_show() -> None:
    model = model_of("windows")
    nasty = TokenScores(
        ("</script><b>", "b"),
        np.arange(2, dtype=np.int32),
        np.array([np.nan, -1.5], np.float32),
        np.array([-1, 3], np.int32),
        np.array([np.nan, 1.0], np.float32),
    )
    page = nasty.html()
    assert page.count("</script>") == 1 and "-1.5" in page and "null" in page
    shown = [attention_maps(model, CLEAN), logit_lens(model, CLEAN, with_logits=True), nasty]
    for each in shown:
        assert "http" not in each.html() and "src=" not in each.html()
        assert each._repr_html_().startswith("<iframe") and '"allow-scripts"' in each._repr_html_()
    assert attention_maps(model, CLEAN).svg(0, 1).count("<rect") == 25
    assert gradient_times_input(model, CLEAN, 9).svg().count("<rect") == 5


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    model = model_of("windows")
    with pytest.raises(GenerationError, match="position=5 is none of the 5 tokens"):
        gradient_times_input(model, CLEAN, 9, position=5)
    with pytest.raises(GenerationError, match="token 300 is none"):
        gradient_times_input(model, CLEAN, 300)
    with pytest.raises(GenerationError, match="no tokenizer"):
        token_logprobs(model, "text")
