"""Batches: the same bytes for any number of processes, resumable, and never short."""

import json
import math
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config, DataConfig, TrainConfig
from llmasos_jax.data.baselines import baselines
from llmasos_jax.data.batch import Batch
from llmasos_jax.data.objectives import causal
from llmasos_jax.data.packing import PackedRow
from llmasos_jax.data.pipeline import Data, open_data
from llmasos_jax.data.prepared import encode as encode_module
from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
from llmasos_jax.errors import ConfigError, DataError, TokenizerError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    texts = tmp_path / "texts"
    texts.mkdir()
    rng = np.random.default_rng(0)
    for i in range(30):
        letters = rng.choice(list("abcdefgh \n"), size=5 + 4 * i, p=[0.3, 0.2] + [0.0625] * 8)
        (texts / f"{i:02}.txt").write_text(f"{i} " + "".join(letters))
    return tmp_path


def _config(folder: Path, *, batch_size: int = 4, seed: int = 0, **data: object) -> Config:
    settings: dict = {"source": "text", "path": str(folder / "texts"), "heldout_fraction": 0.2}
    return Config(
        model=ModelConfig(vocab_size=259, embedding_dim=8, num_layers=1),
        data=DataConfig(**settings | {"sequence_length": 32, "seed": seed} | data),
        train=TrainConfig(batch_size=batch_size),
    )


def _open(folder: Path, cfg: Config | None = None, **more) -> Data:
    return open_data(cfg or _config(folder), ByteTokenizer(), folder / "cache", **more)


def _join(parts: list[Batch]) -> Batch:
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _same(a: Batch, b: Batch) -> bool:
    return all(
        x.tobytes() == y.tobytes() and x.shape == y.shape
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def noisy(row: PackedRow, rng: np.random.Generator) -> Batch:
    """An objective with noise and an array of its own."""
    batch = causal(row)
    return Batch(
        batch.tokens,
        batch.targets,
        batch.loss_weights,
        batch.segment_ids,
        batch.positions,
        extra={"noise": rng.random(3, dtype=np.float32)},
    )


@pytest.mark.parametrize("process_count", [2, 4])
def test_the_global_batch_does_not_depend_on_the_processes(
    folder: Path, process_count: int
) -> None:
    one = _open(folder, prepare=noisy)
    many = [
        _open(folder, process_index=p, process_count=process_count, prepare=noisy)
        for p in range(process_count)
    ]
    for step in (0, 1, 7, 40, 1000):
        assert _same(one.train[step], _join([data.train[step] for data in many]))
    for index in range(len(one.heldout)):
        assert _same(one.heldout[index], _join([data.heldout[index] for data in many]))


def test_reading_ahead_gives_the_same_batches_in_order(folder: Path) -> None:
    data = _open(folder, prepare=noisy)
    for step in range(30):
        assert _same(next(data.train), data.train[step])
    data.close()


def test_a_restored_run_goes_on_with_the_same_bytes(folder: Path) -> None:
    data = _open(folder)
    for _ in range(5):
        next(data.train)
    state = json.loads(json.dumps(data.state()))
    assert state["step"] == 5 and len(json.dumps(state)) < 200
    expected = [next(data.train) for _ in range(20)]
    again = _open(folder)
    again.restore(state)
    assert all(_same(next(again.train), batch) for batch in expected)
    data.restore(state)  # backwards, in the same process
    assert _same(next(data.train), expected[0])
    data.close()
    again.close()


def test_a_state_of_another_corpus_is_refused(folder: Path) -> None:
    state = _open(folder).state()
    (folder / "texts" / "00.txt").write_text("changed\n")
    with pytest.raises(DataError, match="give back the text, the tokenizer"):
        _open(folder).restore(state)


def _rows(data: Data, steps: int) -> list[bytes]:
    return [row.tobytes() for n in range(steps) for row in data.train[n].tokens]


def test_an_epoch_has_each_row_once_and_the_next_one_another_order(folder: Path) -> None:
    data = _open(folder, _config(folder, batch_size=1))
    length = -(-data.num_train_tokens // 32)
    first, second = _rows(data, length), _rows(data, 2 * length)[length:]
    assert sorted(first) == sorted(second) and len(set(first)) == length
    assert first != second
    read = sum(int((data.train[n].segment_ids > 0).sum()) for n in range(length))
    assert read == data.num_train_tokens


def test_seeds_share_no_epoch(folder: Path) -> None:
    """Epoch e is shuffled with seed + e: unhashed, seed 1 would begin with seed 0's second one."""
    zero = _open(folder, _config(folder, batch_size=1, heldout_fraction=0.0))
    one = _open(folder, _config(folder, batch_size=1, heldout_fraction=0.0, seed=1))
    length = -(-zero.num_train_tokens // 32)
    assert sorted(_rows(zero, length)) == sorted(_rows(one, length))
    assert _rows(zero, 2 * length)[length:] != _rows(one, length) != _rows(zero, length)


def test_noise_depends_on_the_place_in_the_run(folder: Path) -> None:
    data = _open(folder, prepare=noisy)
    noise = np.concatenate([data.train[n].extra["noise"] for n in range(50)])
    assert len(np.unique(noise)) == noise.size
    assert _same(data.train[3], _open(folder, prepare=noisy).train[3])


def test_documents_begin_with_bos_and_end_with_eos(folder: Path) -> None:
    data = _open(folder)
    ids, offsets = data.corpus.train.ids, data.corpus.train.offsets
    assert set(ids[offsets[:-1]].tolist()) == {256} and set(ids[offsets[1:] - 1].tolist()) == {257}
    assert ids.dtype == np.uint16 and data.corpus.train.num_documents == 24
    assert data.corpus.heldout.num_documents == 6


def test_held_out_batches_have_one_shape_and_score_each_token_once(folder: Path) -> None:
    data = _open(folder, _config(folder, batch_size=16))
    batches = list(data.heldout)
    assert [b.tokens.shape for b in batches] == [(16, 32)] * len(batches)
    heldout = data.corpus.heldout
    scored = sum(b.loss_weights.sum() for b in batches)
    assert scored == heldout.num_tokens - heldout.num_documents
    assert batches[-1].loss_weights[-1].sum() == 0  # padding rows
    assert _same(batches[0], data.heldout[0])
    with pytest.raises(IndexError):
        data.heldout[len(data.heldout)]


def test_the_second_run_does_not_tokenise_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _open(folder)
    before = sorted(p.name for p in (folder / "cache").iterdir())

    def refuse(*_: object) -> None:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(encode_module, "encode_batch", refuse)
    assert _same(_open(folder).train[3], first.train[3])
    assert sorted(p.name for p in (folder / "cache").iterdir()) == before
    with pytest.raises(AssertionError, match="tokenised again"):
        _open(folder, _config(folder, seed=1))
    # Nothing half-written is left behind.
    assert sorted(p.name for p in (folder / "cache").iterdir()) == before


def test_a_damaged_cache_is_named(folder: Path) -> None:
    _open(folder).close()
    (path,) = (folder / "cache").glob("*/train-00000_ids.npy")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="corpus-.* are damaged .*delete it"):
        _open(folder)


def test_nothing_held_out_gives_no_batch(folder: Path) -> None:
    data = _open(folder, _config(folder, heldout_fraction=0.0))
    assert len(data.heldout) == 0 and data.num_heldout_tokens == 0
    assert data.corpus.train.num_documents == 30


def test_too_few_tokens_say_how_many_there_are(folder: Path) -> None:
    tokens = _open(folder).num_train_tokens
    with pytest.raises(DataError, match=f"have {tokens} tokens, one batch needs 32000"):
        _open(folder, _config(folder, batch_size=1000))


def test_a_batch_that_does_not_divide(folder: Path) -> None:
    with pytest.raises(ConfigError, match="not divisible by the 3 processes; try 3 or 6"):
        _open(folder, process_count=3)


def test_a_tokenizer_that_lies_about_its_size(folder: Path) -> None:
    class Liar(ByteTokenizer):
        vocab_size = 100

    with pytest.raises(TokenizerError, match="its vocab_size is 100"):
        open_data(_config(folder), Liar(), folder / "cache")


def test_waiting_is_measured(folder: Path) -> None:
    def slow(row: PackedRow, rng: np.random.Generator) -> Batch:
        time.sleep(0.02)
        return causal(row)

    data = _open(folder, prepare=slow)
    next(data.train)
    assert data.train.waited_s >= 0.08  # four rows
    time.sleep(0.5)
    waited_s = data.train.waited_s
    next(data.train)
    assert data.train.waited_s - waited_s < 0.08  # made while we slept
    data.close()


def test_baselines_by_hand(folder: Path) -> None:
    data = _open(folder)
    found = baselines(data, 259)
    train, heldout = data.corpus.train, data.corpus.heldout
    unigram, bigram, context = {}, {}, {}
    for d in range(train.num_documents):
        ids = train.ids[train.offsets[d] : train.offsets[d + 1]].tolist()
        for a, b in zip(ids[:-1], ids[1:], strict=True):
            unigram[b] = unigram.get(b, 0) + 1
            context[a] = context.get(a, 0) + 1
            bigram[a, b] = bigram.get((a, b), 0) + 1
    total = sum(unigram.values())
    uni, bi, n = 0.0, 0.0, 0
    for d in range(heldout.num_documents):
        ids = heldout.ids[heldout.offsets[d] : heldout.offsets[d + 1]].tolist()
        for a, b in zip(ids[:-1], ids[1:], strict=True):
            uni += math.log((unigram.get(b, 0) + 1) / (total + 259))
            bi += math.log((bigram.get((a, b), 0) + 1) / (context.get(a, 0) + 259))
            n += 1
    assert found.tokens == n == sum(b.loss_weights.sum() for b in data.heldout)
    assert found.unigram == pytest.approx(math.exp(-uni / n), rel=1e-12)
    assert found.bigram == pytest.approx(math.exp(-bi / n), rel=1e-12)
    one = baselines(data, 259, batches=1)
    assert one.tokens == data.heldout[0].loss_weights.sum() < n


def test_baselines_do_not_depend_on_the_chunk(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = baselines(_open(folder), 259)
    monkeypatch.setattr("llmasos_jax.data.baselines._CHUNK_TOKENS", 7)
    assert baselines(_open(folder), 259) == whole
