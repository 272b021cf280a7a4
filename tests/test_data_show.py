"""`data show` writes what is masked, what a pair is and what a decoder writes."""

import numpy as np

from llmasos_jax.cli.rows import describe_row, legend
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config, DataConfig, ObjectiveConfig
from llmasos_jax.data.batch import Batch
from llmasos_jax.data.objectives import span_corruption
from llmasos_jax.data.pipeline import stack
from llmasos_jax.data.tokenizers.vocabulary import Vocabulary

PIECES = "[PAD] [CLS] [SEP] [MASK] the cat sat on mat walk ##ing dog <0> <1> <2> <3>".split()
IS_INSIDE = np.array([piece.startswith("##") for piece in PIECES])
VOCABULARY = Vocabulary(16, 1, 2, 3, 0, (0, 1, 2, 3, 12, 13, 14, 15), IS_INSIDE, (12, 13, 14, 15))


class Words:
    """Decodes as WordPiece does: special tokens are left out."""

    def decode(self, ids) -> str:
        words = " ".join(PIECES[i] for i in ids if i not in VOCABULARY.special_ids)
        return words.replace(" ##", "")


def _ids(text: str) -> list[int]:
    return [PIECES.index(piece) for piece in text.split()]


def _batch(**extra) -> Batch:
    read = _ids("[CLS] the [MASK] dog on the mat [SEP] walk [MASK] the [SEP] [PAD] [PAD]")
    segments = np.array([[1] * 12 + [0, 0]])
    targets = np.array([_ids("cat sat mat ##ing") + [0]])
    extra = {"masked_positions": np.array([[2, 3, 6, 9, 0]])} | extra
    weights = np.array([[1.0, 1.0, 1.0, 1.0, 0.0]])
    return Batch(np.array([read]), targets, weights, segments, segments, extra)


def _describe(batch: Batch, objective: str) -> dict:
    return describe_row(batch, 0, Words(), VOCABULARY, objective)  # type: ignore[arg-type]


def test_masked_tokens_are_marked() -> None:
    row = _describe(_batch(), "mlm")
    expected = "[CLS] the ⟦cat⟧ ⟦sat→dog⟧ on the ⟦mat=⟧ [SEP] walk⟦##ing⟧ the [SEP]"
    assert row == {"tokens": 12, "segments": 1, "predicted": 4, "text": expected}
    assert "⟦word→other⟧" in (legend(_batch()) or "")


def test_pairs_say_what_they_are() -> None:
    for label, nsp, sop in ((0, "follows", "as in"), (1, "another document", "swapped")):
        batch = _batch(next_sentence=np.array([label]))
        assert nsp in _describe(batch, "mlm_nsp")["pair"]
        assert sop in _describe(batch, "mlm_sop")["pair"]


def test_spans_name_their_sentinels() -> None:
    cfg = Config(
        ModelConfig(16, 8, 1),
        data=DataConfig(sequence_length=8),
        objective=ObjectiveConfig(name="span_corruption", mask_rate=0.3),
    )
    _, prepare = span_corruption(cfg, VOCABULARY)
    text = np.array(_ids("the cat sat on the mat the dog"), dtype=np.int32)
    batch = stack([prepare(text, np.random.default_rng(0))])
    row = _describe(batch, "span_corruption")
    assert row["text"].endswith("[SEP]") and "<0>" in row["text"]
    assert row["decoder"].startswith("<0> ") and row["decoder"].endswith("[SEP]")
    words = sorted((row["text"] + " " + row["decoder"]).split())
    assert sorted([*"the cat sat on the mat the dog <0> <0> [SEP] [SEP]".split()]) == words


def test_prefixes_end_with_a_mark() -> None:
    tokens = np.array([_ids("the cat sat on the mat")])
    ones = np.ones_like(tokens)
    prefix = np.array([[1, 1, 0, 1, 0, 0]])
    batch = Batch(tokens, tokens, ones, ones, ones, {"prefix": prefix})
    assert _describe(batch, "prefix_lm")["text"] == "the cat ‖ sat on ‖ the mat"
