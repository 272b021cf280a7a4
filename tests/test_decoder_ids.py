"""`logits` and `hidden_states` of models that read more than one row of ids, or read it whole."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from small_model import written
from tolerances import WHOLE_MODEL

from llmasos_jax.config.heads import Encoder
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
from llmasos_jax.errors import GenerationError
from llmasos_jax.format.manifest import Generation
from llmasos_jax.generate.inputs import read_prefix
from llmasos_jax.generate.load import load_model
from llmasos_jax.generate.model import Model


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Model:
    cfg = ModelConfig(259, 16, 2, num_heads=2, ffn_dim=24, encoder=Encoder(3))
    cfg = dataclasses.replace(cfg, position="relative")
    generation = Generation(decoder_start_id=258)
    where = tmp_path_factory.mktemp("t5") / "model"
    return load_model(written(where, cfg, ByteTokenizer(), generation=generation))


def test_an_encoder_decoder_reads_two_rows_of_ids(translator: Model) -> None:
    ids = translator.encode("ab")
    assert ids == [256, 97, 98, 257]
    written_so_far = [[258, 65, 66, 67, 68]]
    logits = np.asarray(translator.logits([ids], decoder_ids=written_so_far))
    assert logits.shape == (1, 5, 259)
    # Padding of the encoder's text changes nothing, another text does; the decoder is causal.
    padded = translator.logits([[*ids, 0, 0]], [[1, 1, 1, 1, 0, 0]], decoder_ids=written_so_far)
    np.testing.assert_allclose(padded, logits, atol=WHOLE_MODEL)
    other = np.asarray(translator.logits([[256, 99, 98, 257]], decoder_ids=written_so_far))
    assert np.abs(other - logits).max() > 1e-2
    short = np.asarray(translator.logits([ids], decoder_ids=[[258, 65]]))
    np.testing.assert_allclose(short, logits[:, :2], atol=WHOLE_MODEL)
    assert len(translator.hidden_states([ids])) == 4  # the encoder's three blocks
    layers = translator.hidden_states([ids], decoder_ids=written_so_far)
    assert [x.shape for x in layers] == [(1, 5, 16)] * 3


def test_an_encoder_decoder_without_decoder_ids_says_so(translator: Model) -> None:
    with pytest.raises(GenerationError, match="give decoder_ids too.*start id 258"):
        translator.logits([[1, 2]])
    with pytest.raises(GenerationError, match="decoder_ids have 2 rows, token_ids 1"):
        translator.logits([[1, 2]], decoder_ids=[[1], [2]])
    with pytest.raises(GenerationError, match="decoder_ids reach from 0 to 259"):
        translator.logits([[1, 2]], decoder_ids=[[0, 259]])


def test_a_prefix_is_seen_by_the_whole_row(tmp_path: Path) -> None:
    cfg = ModelConfig(40, 16, 2, num_heads=2, ffn_dim=24, prefix_lm=True)
    model = load_model(written(tmp_path / "model", cfg, None))
    ids, mask = [[0, 3, 5, 7, 9, 11]], [[0, 1, 1, 1, 1, 1]]
    other = [[0, 3, 5, 8, 9, 11]]  # another third token

    def change(prefix: int) -> np.ndarray:
        pair = (model.logits(x, mask, prefix_lengths=[prefix]) for x in (ids, other))
        a, b = (np.asarray(x)[0] for x in pair)
        return np.abs(a - b).max(axis=1) > 1e-3

    assert change(2).tolist() == [False, False, False, True, True, True]
    assert change(3)[1:].tolist() == [True] * 5
    plain = np.asarray(model.logits(ids, mask))
    np.testing.assert_array_equal(plain, model.logits(ids, mask, prefix_lengths=[0]))
    for lengths in ([6], [-1], [1, 1]):
        with pytest.raises(GenerationError, match=r"prefix_lengths are .*; give one for each row"):
            model.logits(ids, mask, prefix_lengths=lengths)
    for lengths in ([[1]], [[1], [1, 2]], 3, [True], [1.0], []):
        with pytest.raises(GenerationError, match=r"prefix_lengths is .* whole numbers \[B\]"):
            model.logits(ids, mask, prefix_lengths=lengths)
    with pytest.raises(GenerationError, match="for models with prefix_lm=True"):
        read_prefix(cfg.replace(prefix_lm=False), [1], np.ones((1, 2), np.int32))
