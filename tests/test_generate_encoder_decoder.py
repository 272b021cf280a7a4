"""Generation where a prompt is read both ways: encoder-decoders, and `prefix_lm` models."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from small_model import SMALL, loud, small_model, start
from small_run import Record, small_config
from tolerances import SIMPLE

import llmasos_jax
from llmasos_jax.cli.main import main
from llmasos_jax.config.heads import Encoder
from llmasos_jax.errors import GenerationError
from llmasos_jax.format.manifest import Generation
from llmasos_jax.generate.load import load_model
from llmasos_jax.generate.model import Model
from llmasos_jax.generate.request import make_requests, read_options
from llmasos_jax.generate.weights import Placing, place_tensors
from llmasos_jax.models.definition import file_def

OPTIMIZED = True  # conftest.py: programs as users have them

START = 258  # padding of the bytes
PAIR = SMALL.replace(
    **dict(encoder=Encoder(2), position="relative", attention_scale=1.0, num_kv_heads=4),
    **dict(relative_buckets=8, relative_max_distance=20, tie_embeddings=False),
)
PROMPTS = ["The cat", "a dog and a rather long tail of words behind it", "你好"]


def pair(cfg: Any = PAIR, **options: Any) -> Model:
    given = Generation(decoder_start_id=START, **options)
    return loud(small_model(cfg, generation=given))


@pytest.fixture(scope="module")
def model() -> Model:
    return pair()


@pytest.fixture(scope="module")
def prefix() -> Model:
    return loud(small_model(SMALL.replace(prefix_lm=True, context_length=400)))


def greedy_by_forward(model: Model, text: str, num: int) -> tuple[list[int], list[float]]:
    """Greedy tokens from whole forward passes, and by how much each one won."""
    ids, margins = [START], []
    source = [model.encode(text)]
    for _ in range(num):
        logits = model.logits(source, decoder_ids=[ids])
        scores = np.asarray(logits)[0, -1, : model.tokenizer.vocab_size]
        second, first = np.sort(scores)[-2:]
        margins.append(float(first - second))
        ids.append(int(scores.argmax()))
    return ids[1:], margins


def new_ids(run: Any) -> list[list[int]]:
    while not run.is_done:
        run.advance(50)
    return run.new_ids()


def test_what_the_decoder_writes_is_what_whole_passes_give(model: Model) -> None:
    for prompt in PROMPTS[:2]:
        wanted, margins = greedy_by_forward(model, prompt, 8)
        ours = new_ids(start(model, [prompt], 8, temperature=0.0))[0]
        ends = wanted.index(257) if 257 in wanted else len(wanted)
        assert min(margins[: ends + 1]) > 1e-4
        assert ours == wanted[:ends]


def test_the_encoder_reads_once_and_is_not_read_again(model: Model) -> None:
    fresh = Model(model.manifest, model._weights, model.tokenizer)
    session, called = fresh.session, []
    plain = session._call
    session._call = lambda name, *args, **more: called.append(name) or plain(name, *args, **more)
    wanted = new_ids(start(model, PROMPTS, 20, temperature=0.0))
    run = start(fresh, PROMPTS, 20, temperature=0.0)
    assert called == ["cache", "encode", "prefill", "begin"]
    params = fresh._weights.params
    broken = {**params, "encoder": jax.tree.map(lambda x: x * jnp.nan, params["encoder"])}
    session._params = broken
    assert new_ids(run) == wanted and set(called[4:]) == {"decode"}
    with pytest.raises(GenerationError, match="not finite"):
        new_ids(start(fresh, PROMPTS, 20, temperature=0.0))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_neighbours_change_no_bit(model: Model, temperature: float) -> None:
    options = dict(max_length=12, temperature=temperature, seed=3)
    one = model.generate_text([PROMPTS[0], "x", "a longer one by far"], **options)
    other = model.generate_text([PROMPTS[0], "quite another", "y"], **options)
    assert one[0] == other[0]
    runs = [
        start(model, [PROMPTS[0], *others], 4, temperature=temperature, seed=9)
        for others in (["x", "yy"], ["zzzzzzz", "three"])
    ]
    for run in runs:
        run.advance(3)
    cross = [run.state.cache.cross.layers["prefix"]["1"].k_rhs for run in runs]
    rows = [np.asarray(x).reshape(4, 4, 12, -1)[:, 0] for x in cross]  # [K, B, H, S]
    np.testing.assert_array_equal(rows[0], rows[1])
    tokens = [np.asarray(run.state.tokens_bs)[0] for run in runs]
    np.testing.assert_array_equal(*tokens)


@pytest.mark.parametrize("deterministic", [False, True])
def test_streaming_gives_the_same_text(model: Model, deterministic: bool) -> None:
    options = dict(max_length=20, seed=5, deterministic=deterministic)
    texts = model.generate_text(PROMPTS, **options)
    streamed = [""] * len(PROMPTS)
    for i, piece in model.generate_text(PROMPTS, stream=True, **options):
        streamed[i] += piece
    assert streamed == texts and all(texts)
    assert len(set(texts)) == len(texts)


def test_deterministic_is_one_shape_and_exact(model: Model) -> None:
    fresh = Model(model.manifest, model._weights, model.tokenizer)
    options = dict(seed=1, temperature=0.0, deterministic=True)
    alone = fresh.generate_text(PROMPTS[0], max_length=9, **options)
    num = fresh.session.num_compiled
    assert fresh.generate_text(PROMPTS, max_length=30, **options)[0].startswith(alone)
    assert fresh.session.num_compiled == num == 5  # cache, encode, prefill, begin, decode


def test_a_second_generation_compiles_nothing(model: Model) -> None:
    fresh = Model(model.manifest, model._weights, model.tokenizer)
    fresh.generate_text("Hello", max_length=10, seed=0)
    num = fresh.session.num_compiled
    fresh.generate_text("Another", max_length=14, seed=1, temperature=0.5, top_k=3)
    assert fresh.session.num_compiled == num == 5
    fresh.generate_text("One that is longer than sixteen tokens", max_length=10, seed=0)
    assert fresh.session.num_compiled == num + 4  # the empty cache does not know the encoder


def test_stop_strings_end_a_text(model: Model) -> None:
    text = model.generate_text(PROMPTS[0], max_length=30, seed=2)
    stop = text[4:6]
    assert model.generate_text(PROMPTS[0], max_length=30, seed=2, stop=stop) == text.split(stop)[0]


def test_repetition_penalty_is_over_the_text_and_not_the_prompt(model: Model) -> None:
    """As in transformers: what the decoder read, the token that it starts with included."""
    run = start(model, ["abc"], 12, temperature=0.0, repetition_penalty=1e9)
    stands = run.state.seen
    seen = np.flatnonzero(np.asarray(stands.prompt_bv | (stands.count_bv > 0))[0])
    assert set(seen) == {START, *run.new_ids()[0]}
    assert ord("a") in model.encode("abc") and ord("a") not in seen
    ids = new_ids(start(model, ["abc"], 12, temperature=0.0, repetition_penalty=1e9))[0]
    assert len(set(ids)) == len(ids)


def test_lengths_are_bound_on_each_side(model: Model) -> None:
    length = PAIR.context_length
    fits = "x" * (length - 2)  # with the beginning and the end that the tokenizer adds
    assert isinstance(model.generate_text(fits, max_length=2, seed=0), str)
    with pytest.raises(GenerationError, match=f"has {length + 1} tokens.*reads 1 to {length} "):
        model.generate_text(fits + "x", max_length=2)
    run = start(model, [fits], 10_000, temperature=1.0)
    assert int(np.asarray(run.ends.max_new_b)[0]) == length - 1


def test_refused(model: Model) -> None:
    with pytest.raises(GenerationError, match="leave out echo"):
        model.generate_text("a", echo=True)
    manifest = model.manifest.replace(generation=Generation())
    unsaid = Model(manifest, model._weights, model.tokenizer)
    with pytest.raises(GenerationError, match="decoder_start_id"):
        unsaid.generate_text("a")
    with pytest.raises(GenerationError, match="no chat template"):
        model.chat([{"role": "user", "content": "Hi"}])
    encoder = small_model(SMALL.replace(causal=False))
    with pytest.raises(GenerationError, match="cannot continue a text"):
        encoder.generate_text("a")


def test_chat_ends_what_the_encoder_reads() -> None:
    model = pair(chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
    options = dict(max_length=8, seed=4)
    assert model.chat([{"role": "user", "content": "Hi"}], **options) == model.generate_text(
        "Hi", **options
    )


def test_on_a_mesh_the_same_tokens(model: Model) -> None:
    mesh = Mesh(np.array(jax.devices()[:2]), ("tensor",))
    cut = Model(model.manifest, loud_on(model, mesh)._weights, model.tokenizer)
    one = new_ids(start(model, PROMPTS, 16, temperature=0.0))
    assert new_ids(start(cut, PROMPTS, 16, temperature=0.0)) == one and any(one)


def loud_on(model: Model, mesh: Mesh) -> Model:
    placing = Placing(file_def(model.config), mesh)
    tensors = model._weights.stored()
    return Model(model.manifest, place_tensors(placing, tensors, None), model.tokenizer)


def test_a_saved_model_writes_the_same(model: Model, tmp_path: Any) -> None:
    again = load_model(model.save(tmp_path / "model"))
    assert again.manifest.generation.decoder_start_id == START
    options = dict(max_length=10, seed=0)
    assert again.generate_text(PROMPTS, **options) == model.generate_text(PROMPTS, **options)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("length", [3, 70, 300])
def test_a_prefix_is_read_in_both_directions(
    prefix: Model, length: int, deterministic: bool
) -> None:
    """Whatever its length, in one piece: chunks would see what stands before them alone."""
    text = ("A prompt whose words see each other, the first the last. " * 9)[: length - 1]
    ids = prefix.encode(text)
    weights = prefix._weights
    tokens = jnp.asarray([ids], jnp.int32)

    def whole(params: Any, is_prefix: bool) -> np.ndarray:
        bound = weights.definition.bind(params)
        prefix_bt = jnp.ones_like(tokens) if is_prefix else None
        hidden = bound.hidden(tokens, prefix_bt=prefix_bt, runtime=weights.runtime)
        return np.asarray(bound.logits(hidden.x_btd[:, -1:], weights.runtime))[0, 0]

    session, logits = prefix.session, []
    plain = session._call

    def watched(name: str, shape: Any, *args: Any, **options: Any) -> Any:
        out = plain(name, shape, *args, **options)
        if name == "prefill":
            logits.append(np.asarray(out[0])[0])
        return out

    session._call = watched
    try:
        run = session.start(requests(prefix, [text]), deterministic=deterministic)
    finally:
        del session._call
    (ours,) = logits  # one call
    wanted, causal = whole(weights.params, True), whole(weights.params, False)
    scale = np.abs(wanted).max()
    assert np.abs(ours - wanted[: ours.size]).max() <= SIMPLE * scale
    assert np.abs(wanted - causal).max() > 100 * SIMPLE * scale
    first = run.new_ids()[0][0]
    run.advance(1)
    assert first == int(wanted[: ours.size].argmax())


def requests(model: Model, prompts: list[str], num: int = 4) -> Any:
    return make_requests(prompts, read_options(num, 0.0), model.tokenizer, model.manifest)


def test_what_follows_a_prefix_is_causal(prefix: Model) -> None:
    """Greedy tokens are those of whole passes in which the prompt alone is the prefix."""
    wanted, weights = prefix.encode("Two words"), prefix._weights
    num, width = len(wanted), len(wanted) + 8
    prefix_bt = jnp.arange(width)[None] < num

    @jax.jit
    def scores(params: Any, tokens: jax.Array) -> jax.Array:
        bound = weights.definition.bind(params)
        hidden = bound.hidden(tokens, prefix_bt=prefix_bt, runtime=weights.runtime)
        return bound.logits(hidden.x_btd, weights.runtime)[0, :, :259]

    for at in range(num, width):  # what stands behind is not seen
        tokens = jnp.asarray([[*wanted, *[0] * (width - at)]], jnp.int32)
        wanted.append(int(scores(weights.params, tokens)[at - 1].argmax()))
    for deterministic in (False, True):
        run = prefix.session.start(requests(prefix, ["Two words"], 8), deterministic=deterministic)
        assert new_ids(run)[0] == wanted[num:]


def test_a_run_of_span_corruption_writes_samples_and_generates(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").mkdir()
    letters = np.random.default_rng(0).choice(list("abcdefghijklmnop  "), (12, 2000))
    for number, row in enumerate(letters):
        (tmp_path / "text" / f"{number:02d}.txt").write_text("".join(row))
    config = small_config(
        tmp_path,
        2,
        model=dict(
            **dict(vocab_size=384, context_length=48, position="relative", num_layers=1),
            encoder={"num_layers": 1},
        ),
        tokenizer={"kind": "tokenizers", "model_type": "unigram"},
        objective={"name": "span_corruption"},
        sample={"prompt": "abc def", "max_length": 6, "every_steps": 2},
    )
    record = Record()
    llmasos_jax.train(config, tmp_path / "run", (record,))
    sampled = [event for event in record.events if event[0] == "sample"]
    assert len(sampled) == 1 and "abc def" not in sampled[0][-1]
    model = llmasos_jax.load_model(tmp_path / "run")
    assert model.manifest.generation.decoder_start_id == model.tokenizer.pad_id
    text = model.generate_text("abc def g", max_length=6, seed=1)
    words = ["generate", str(tmp_path / "run"), "abc def g", "--max-length=6", "--seed=1"]
    assert main(words) in (0, None)
    assert capsys.readouterr().out.strip() == text.strip()
    assert main([*words, "--echo"]) == 2
    assert "leave out echo" in capsys.readouterr().err
