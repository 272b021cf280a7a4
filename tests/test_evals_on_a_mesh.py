"""Weights cut over 8 devices: what is said of a model is what one device says of it."""

import functools

import jax
import numpy as np
import pytest
from quick_programs import quick  # noqa: F401
from small_model import FAMILIES, loud, small_model
from tolerances import SIMPLE, WHOLE_MODEL

from llmasos_jax.config.schema import MeshConfig
from llmasos_jax.evals.interpret.attention import attention_maps
from llmasos_jax.evals.interpret.attribution import gradient_times_input, integrated_gradients
from llmasos_jax.evals.interpret.lens import logit_lens
from llmasos_jax.evals.interpret.patching import activation_patching
from llmasos_jax.evals.interpret.scores import token_logprobs
from llmasos_jax.evals.metrics.scorer import Question, scorer_of
from llmasos_jax.evals.tasks.run import fingerprint
from llmasos_jax.generate.model import Model
from llmasos_jax.parallel.mesh import make_mesh

CLEAN, CORRUPTED = [5, 6, 7, 8, 9], [5, 6, 30, 8, 9]
# Key heads in two halves over 2 x 2 x 2 devices, and whole on each of 4 that cut query heads.
MESHES = {
    "data_fsdp_tensor": MeshConfig(data=2, fsdp=(2,), tensor=2),
    "fsdp_tensor": MeshConfig(data=1, fsdp=(2,), tensor=4),
}


@functools.cache
def model_of(mesh: str | None = None) -> Model:
    one = small_model(FAMILIES["windows"])
    return loud(one, None if mesh is None else make_mesh(MESHES[mesh]))


@pytest.fixture(params=MESHES)
def pair(request: pytest.FixtureRequest) -> tuple[Model, Model]:
    """The model on one device, and cut over 8."""
    cut = model_of(request.param)
    q = cut._weights.params["prefix"]["0"]["attn"]["q"]
    assert len(q.addressable_shards) == 8 == jax.device_count()
    assert q.addressable_shards[0].data.shape[1] == 4 // MESHES[request.param].tensor
    return model_of(), cut


def test_a_cut_model_looks_the_same_inside(pair: tuple[Model, Model]) -> None:
    one, cut = pair
    maps = [attention_maps(model, CLEAN).maps for model in pair]
    np.testing.assert_allclose(maps[1], maps[0], atol=SIMPLE)
    assert np.ptp(maps[0][:, :, -1], axis=-1).max() > 0.1  # the heads look at something
    lenses = [logit_lens(model, CLEAN, with_logits=True) for model in pair]
    assert lenses[0].logits is not None and lenses[1].logits is not None
    size = np.abs(lenses[0].logits).max()
    np.testing.assert_allclose(lenses[1].logits, lenses[0].logits, atol=WHOLE_MODEL * size)
    np.testing.assert_array_equal(lenses[1].top_ids[..., 0], lenses[0].top_ids[..., 0])
    output = np.asarray(cut.logits([CLEAN])[0])
    np.testing.assert_allclose(lenses[1].logits[-1], output, atol=WHOLE_MODEL * size)
    found = [token_logprobs(model, CLEAN) for model in pair]
    np.testing.assert_allclose(found[1].logprobs, found[0].logprobs, atol=WHOLE_MODEL)
    np.testing.assert_array_equal(found[1].ranks, found[0].ranks)


def test_what_is_patched_into_a_cut_model_does_the_same(pair: tuple[Model, Model]) -> None:
    one, cut = (activation_patching(model, CLEAN, CORRUPTED, 9) for model in pair)
    apart = abs(one.clean - one.corrupted)
    assert apart > 0.01 and cut.clean == pytest.approx(one.clean, rel=WHOLE_MODEL)
    near = WHOLE_MODEL * max(1, abs(one.clean) / apart)
    np.testing.assert_allclose(cut.effects, one.effects, atol=near)
    np.testing.assert_allclose(cut.layers, one.layers, atol=near)
    assert cut.everywhere == pytest.approx(1, abs=near)
    assert np.ptp(one.effects) > 0.1


def test_gradients_through_a_cut_model_are_the_same() -> None:
    pair = model_of(), model_of("data_fsdp_tensor")
    slopes = [gradient_times_input(model, CLEAN, 9).values for model in pair]
    size = np.abs(slopes[0]).max()
    assert size > 0.01
    np.testing.assert_allclose(slopes[1], slopes[0], atol=WHOLE_MODEL * size)
    sums = [integrated_gradients(model, CLEAN, 9, baseline=CORRUPTED) for model in pair]
    assert sums[1].gap <= 0.01
    size = np.abs(sums[0].values).max()
    np.testing.assert_allclose(sums[1].values, sums[0].values, atol=WHOLE_MODEL * size)


def test_a_cut_model_scores_the_same(pair: tuple[Model, Model]) -> None:
    """One row, several of one token, and branches that read a cache which is cut by heads."""
    rng = np.random.default_rng(1)
    draw = lambda num: rng.integers(0, 256, num).tolist()
    shapes = [(17, [4]), (17, [1, 1, 1]), (17, [3, 1, 4, 2]), (16, [2, 2])]
    asked = [Question(draw(n), [draw(m) for m in more]) for n, more in shapes]
    one, cut = (scorer_of(model).score(asked) for model in pair)
    for ours, theirs in zip(cut, one, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a.tokens, b.tokens, rtol=WHOLE_MODEL)
            assert a.is_greedy == b.is_greedy
    totals = [scored.total for scores in one for scored in scores]
    assert np.ptp(totals) > 1
    assert fingerprint(pair[1]) == fingerprint(pair[0])
