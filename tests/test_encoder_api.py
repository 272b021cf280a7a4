"""What a user asks of an encoder: masks, next sentences, vectors, labels, scores."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from small_bert import BERT, SPECIAL, WORDS, word_pieces
from small_model import written
from tolerances import SIMPLE, WHOLE_MODEL

from llmasos_jax.config.heads import Classifier
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import GenerationError
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.generate.answers import Filled, Label, LabelledToken
from llmasos_jax.generate.load import init_model, load_model
from llmasos_jax.generate.model import Model

CAT, DOG = "the cat sat on a mat .", "the dog ran ."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("bert") / "model", BERT, word_pieces())


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load_model(folder)


def weight(model: Model, name: str) -> np.ndarray:
    return model._weights.stored()[name].read().astype(np.float64)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def last_state(model: Model, text: str, pair: str | None = None) -> np.ndarray:
    """The last hidden state of what an encoder reads, by itself and without padding."""
    assert model.tokenizer is not None
    ids, types = model.tokenizer.encode_input(text, pair)  # pyright: ignore[reportAttributeAccessIssue]
    return np.asarray(model.hidden_states([ids], None, [types])[-1][0], np.float64)


def test_encode_gives_what_an_encoder_reads(model: Model) -> None:
    assert model.encode("the cat") == [2, 5, 6, 3]
    assert model.encode("the cat", "a dog") == [2, 5, 6, 3, 11, 7, 3]
    assert model.decode(model.encode("the cats")) == "the cats"


def test_fill_mask_gives_the_softmax_of_the_mlm_logits(model: Model) -> None:
    text = "the [MASK] sat on a [MASK] ."
    ids = model.encode(text)
    places = [2, 6]
    assert [ids[p] for p in places] == [4, 4]
    num_ids = len(SPECIAL) + len(WORDS)
    logits = np.asarray(model.logits([ids])[0], np.float64)[places, :num_ids]
    wanted = softmax(logits)
    filled = model.fill_mask(text, top_k=4)
    assert isinstance(filled, Filled) and len(filled) == 2
    for mask, candidates in enumerate(filled):
        order = np.argsort(-wanted[mask])[:4]
        assert [c.id for c in candidates] == order.tolist()
        found = [c.probability for c in candidates]
        np.testing.assert_allclose(found, wanted[mask][order], rtol=WHOLE_MODEL)
    best = [row.argmax() for row in wanted]
    assert filled.text == model.decode([*ids[:2], best[0], *ids[3:6], best[1], *ids[7:]])
    second = filled[1][2]
    assert second.text == model.decode([*ids[:2], best[0], *ids[3:6], second.id, *ids[7:]])
    assert second.token == (*SPECIAL, *WORDS)[second.id]


def test_rows_beyond_the_tokenizer_are_no_candidates(tmp_path: Path) -> None:
    other = load_model(written(tmp_path / "model", BERT, word_pieces()))
    num_ids = len(SPECIAL) + len(WORDS)
    head = other._weights.params["head"]
    head["bias"] = head["bias"].at[num_ids:].set(100.0)
    candidates = other.fill_mask("the [MASK] .", top_k=num_ids)[0]
    assert {c.id for c in candidates} == set(range(num_ids))
    assert sum(c.probability for c in candidates) == pytest.approx(1.0)


def test_fill_mask_of_a_list_prints_well(model: Model) -> None:
    texts = ["the [MASK] ran .", "[MASK]", "a [MASK] [MASK] was wet"]
    found = model.fill_mask(texts, top_k=2)
    assert [len(each) for each in found] == [1, 1, 2]
    for text, each in zip(texts, found, strict=True):
        for mine, alone in zip(each, model.fill_mask(text, top_k=2), strict=True):
            assert [c.id for c in mine] == [c.id for c in alone]
            assert mine[0].probability == pytest.approx(alone[0].probability, rel=SIMPLE)
    lines = str(found[2]).splitlines()
    assert lines[0] == found[2].text and lines[1] == "mask 1" and lines[4] == "mask 2"
    assert lines[2].endswith(found[2].text) and "%" in lines[2]


def test_next_sentence_is_the_poolers_score_by_hand(model: Model) -> None:
    def by_hand(a: str, b: str) -> float:
        first = last_state(model, a, b)[0]
        pooled = np.tanh(first @ weight(model, "pooler.w") + weight(model, "pooler.bias"))
        scores = pooled @ weight(model, "next_sentence.w") + weight(model, "next_sentence.bias")
        return softmax(scores)[0]

    wanted = [by_hand(CAT, DOG), by_hand(DOG, "it was wet")]
    assert abs(wanted[0] - wanted[1]) > 1e-3
    assert model.next_sentence(CAT, DOG) == pytest.approx(wanted[0], abs=SIMPLE)
    both = model.next_sentence([CAT, DOG], [DOG, "it was wet"])
    assert isinstance(both, list)
    assert both == pytest.approx(wanted, abs=SIMPLE)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_embed_pools_the_last_state(tmp_path: Path, pooling: str) -> None:
    cfg = BERT.replace(pooling=pooling)
    other = load_model(written(tmp_path / "model", cfg, word_pieces()))
    texts = [CAT, DOG, "rain"]
    states = [last_state(other, text) for text in texts]
    wanted = np.stack([x.mean(axis=0) if pooling == "mean" else x[0] for x in states])
    plain = other.embed(texts, normalize=False)
    assert plain.dtype == np.float32 and plain.shape == (3, 16)
    np.testing.assert_allclose(plain, wanted, atol=SIMPLE)
    lengths = np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(other.embed(texts), wanted / lengths, atol=SIMPLE)


def test_a_vector_does_not_depend_on_its_neighbours(model: Model) -> None:
    others = ["rain fell on the mat", "it was good .", "a dog", "the rain was bad"]
    here = model.embed([CAT, *others[:3]])[0]
    there = model.embed([*others[1:], CAT])[3]
    np.testing.assert_array_equal(here, there)  # one shape, four rows of 16 tokens
    np.testing.assert_allclose(model.embed(CAT), here, atol=SIMPLE)  # one row
    many = model.embed([CAT, *["the " * 20] * 3, *others * 10])
    np.testing.assert_allclose(many[0], here, atol=SIMPLE)
    assert many.shape == (44, 16) and np.isfinite(many).all()
    np.testing.assert_allclose(many[4:8], many[8:12], atol=SIMPLE)


def test_a_text_beyond_the_context_is_refused_or_cut(model: Model) -> None:
    long = "the cat " * 20
    with pytest.raises(GenerationError, match="text 1 has 42 tokens; the model's context holds 24"):
        model.embed([CAT, long])
    cut = model.embed([CAT, long], truncate=True)[1]
    # 22 words fit between [CLS] and [SEP].
    np.testing.assert_allclose(cut, model.embed(" ".join(long.split()[:22])), atol=SIMPLE)
    unknown = model.embed("the cat " * 10 + "zebra " * 9, truncate=True)
    wanted = model.embed("the cat " * 10 + "zebra zebra")
    np.testing.assert_allclose(unknown, wanted, atol=SIMPLE)
    assert len(model.classify(long, truncate=True)) == 3


def test_classify_gives_labels_by_probability(model: Model) -> None:
    first = last_state(model, CAT)[0]
    pooled = np.tanh(first @ weight(model, "pooler.w") + weight(model, "pooler.bias"))
    scores = pooled @ weight(model, "classifier.w") + weight(model, "classifier.bias")
    wanted = softmax(scores)
    found = model.classify(CAT)
    assert [label.label for label in found] == [
        BERT.classifier.labels[i] for i in np.argsort(-wanted)
    ]
    np.testing.assert_allclose(
        [label.probability for label in found], np.sort(wanted)[::-1], atol=SIMPLE
    )
    assert model.classify([DOG, CAT], top_k=1)[1] == [
        Label(found[0].label, pytest.approx(found[0].probability, abs=SIMPLE))
    ]


def test_classify_labels_tokens(tmp_path: Path) -> None:
    cfg = BERT.replace(classifier=Classifier(("other", "animal"), "token"))
    other = load_model(written(tmp_path / "model", cfg, word_pieces()))
    text = "the cats sat"
    states = last_state(other, text)
    scores = states @ weight(other, "classifier.w") + weight(other, "classifier.bias")
    wanted = softmax(scores)[1:-1]
    found = other.classify(text)
    assert [t.token for t in found] == ["the", "cat", "##s", "sat"]
    assert all(isinstance(t, LabelledToken) and len(t.labels) == 2 for t in found)
    assert [t.label for t in found] == [("other", "animal")[i] for i in wanted.argmax(axis=1)]
    np.testing.assert_allclose([t.probability for t in found], wanted.max(axis=1), atol=SIMPLE)
    assert len(other.classify([text], top_k=1)[0][0].labels) == 1
    unknown = other.classify("the zebra")
    assert [t.token for t in unknown] == ["the", "[UNK]"]  # a word, though not a known one


def test_logits_read_token_types_and_mask(model: Model) -> None:
    ids, types = [2, 5, 6, 3, 7, 3], [0, 0, 0, 0, 1, 1]
    found = model.logits([ids], None, [types])
    assert found.shape == (1, 6, BERT.vocab_size) and found.dtype == np.float32
    assert np.abs(np.asarray(found) - np.asarray(model.logits([ids]))).max() > 1e-2
    left = [[0, 0, *ids], [*ids, 0, 0]]
    mask = [[0, 0, *[1] * 6], [*[1] * 6, 0, 0]]
    padded = np.asarray(model.logits(left, mask, [[0, 0, *types], [*types, 0, 0]]))
    np.testing.assert_allclose(padded[0, 2:], found[0], atol=WHOLE_MODEL)
    np.testing.assert_allclose(padded[1, :6], found[0], atol=WHOLE_MODEL)


def test_a_mesh_gives_the_same(folder: Path, model: Model) -> None:
    """The table and its bias are cut along the vocabulary, 26 rows on two devices."""
    mesh = jax.make_mesh((2,), ("tensor",), devices=jax.devices()[:2])
    other = load_model(folder, mesh=mesh)
    bias = other._weights.params["head"]["bias"]
    assert {shard.data.shape for shard in bias.addressable_shards} == {(BERT.vocab_size // 2,)}
    np.testing.assert_allclose(other.embed([CAT, DOG]), model.embed([CAT, DOG]), atol=SIMPLE)
    assert other.next_sentence(CAT, DOG) == pytest.approx(model.next_sentence(CAT, DOG), abs=SIMPLE)
    pairs = zip(other.classify(CAT), model.classify(CAT), strict=True)
    assert all(a.probability == pytest.approx(b.probability, abs=SIMPLE) for a, b in pairs)
    mine, theirs = (m.fill_mask("the [MASK] ran .", 3)[0] for m in (other, model))
    assert [c.id for c in mine] == [c.id for c in theirs]
    assert [c.probability for c in mine] == pytest.approx(
        [c.probability for c in theirs], abs=SIMPLE
    )
    ids = [model.encode(CAT)]
    np.testing.assert_allclose(other.logits(ids), model.logits(ids), atol=WHOLE_MODEL)


BARE = BERT.replace(head=None, pooler=False, next_sentence=False, classifier=Classifier())


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Model:
    where = tmp_path_factory.mktemp("bare") / "model"
    return load_model(written(where, BARE, word_pieces(mask=False)))


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda m: m.fill_mask(CAT), r"text 0 \('the cat.*has no mask; write \[MASK\]"),
        (lambda m: m.fill_mask(["[MASK]", CAT]), "text 1 .* has no mask"),
        (lambda m: m.fill_mask("[MASK]", top_k=0), "top_k=0"),
        (lambda m: m.fill_mask("[MASK]", top_k=2.5), "top_k=2.5"),
        (lambda m: m.fill_mask("[MASK]", top_k=99), "top_k=99 is not possible.* 23 ids"),
        (lambda m: m.fill_mask(3), "text is a int; give a text"),
        (lambda m: m.fill_mask([]), "text is an empty list"),
        (lambda m: m.fill_mask("[MASK] " * 30), "text 0 has 32 tokens; .* holds 24: shorten it$"),
        (lambda m: m.next_sentence(CAT, [DOG]), "two texts, or two lists"),
        (lambda m: m.next_sentence([CAT], [DOG, DOG]), "a has 1 texts, b 2"),
        (lambda m: m.next_sentence(CAT, None), "two texts, or two lists"),
        (lambda m: m.next_sentence(CAT, "the " * 20), "text 0 has 30 tokens; .* holds 24"),
        (lambda m: m.embed([CAT, 5]), r"texts\[1\] is a int"),
        (lambda m: m.embed(CAT, normalize=1), "normalize=1 is not possible"),
        (lambda m: m.embed(CAT, truncate="yes"), "truncate='yes' is not possible"),
        (lambda m: m.embed(b"raw"), "texts is a bytes"),
        (lambda m: m.classify(CAT, top_k=0), "top_k=0"),
        (
            lambda m: m.classify(CAT, top_k=9),
            "top_k=9 is not possible; .* has 3 labels",
        ),
        (
            lambda m: m.classify("the " * 30),
            "holds 24: shorten it, or cut it: truncate=True",
        ),
        (lambda m: m.logits([[2, 3]] * 2, [[1, 1], [0, 0]]), "attention_mask has no 1 in row 1"),
        (lambda m: m.classify(None), "texts is a NoneType"),
        (lambda m: m.encode(3), "encode was given a int"),
        (lambda m: m.encode(CAT, 3), "encode was given a int"),
        (lambda m: m.logits([[2, 3]], None, [[0, 2]]), "token_type_ids reach from 0 to 2"),
        (lambda m: m.logits([[2, 3]], decoder_ids=[[1]]), "decoder_ids are for encoder-decoders"),
        (lambda m: m.generate_text("a"), "reads in both directions"),
    ],
)
def test_wrong_input_is_one_clear_line(model: Model, ask: Any, words: str) -> None:
    with pytest.raises(GenerationError, match=words) as raised:
        ask(model)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda m: m.fill_mask("[MASK]"), "no MLM head"),
        (lambda m: m.next_sentence(CAT, DOG), "no score for a next sentence"),
        (lambda m: m.classify(CAT), "no classifier"),
        (lambda m: m.logits([[2, 3]]), "no output layer"),
    ],
)
def test_a_trunk_says_what_it_lacks(bare: Model, ask: Any, words: str) -> None:
    with pytest.raises(GenerationError, match=words):
        ask(bare)


def test_a_tokenizer_without_a_mask_is_named(model: Model) -> None:
    other = Model(model.manifest, model._weights, word_pieces(mask=False))
    with pytest.raises(GenerationError, match="no mask token.*mask_id"):
        other.fill_mask("[MASK]")
    with pytest.raises(GenerationError, match="has no tokenizer"):
        Model(model.manifest, model._weights).embed(CAT)


def test_damaged_weights_are_said_to_be(model: Model) -> None:
    params = {**model._weights.params, "embed": dict(model._weights.params["embed"])}
    params["embed"]["table"] = params["embed"]["table"].at[6].set(float("nan"))
    weights = dataclasses.replace(model._weights, params=params)
    other = Model(model.manifest, weights, model.tokenizer)
    for ask in (lambda: other.embed(CAT), lambda: other.next_sentence(CAT, DOG)):
        with pytest.raises(GenerationError, match="not finite"):
            ask()


def test_a_decoder_reads_as_before() -> None:
    model = init_model(Manifest("m", ModelConfig(259, 16, 1), tokenizer={"kind": "bytes"}))
    assert model.encode("a") == [256, 97]  # no end
    with pytest.raises(GenerationError, match="is a decoder and reads one text"):
        model.encode("a", "b")
    vector = model.embed("ab", normalize=False)
    states = np.asarray(model.hidden_states([[256, 97, 98]])[-1][0])
    np.testing.assert_allclose(vector, states.mean(axis=0), atol=SIMPLE)
