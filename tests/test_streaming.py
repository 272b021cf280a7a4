"""Streams: each document once an epoch, exact from any place on, clear ends."""

import json
import os
import shutil
from pathlib import Path

import datasets
import jax
import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from llmasos_jax.config import build
from llmasos_jax.config.schema import Config
from llmasos_jax.data.packing import PackedRows, TokenDocuments
from llmasos_jax.data.pipeline import Data, open_data
from llmasos_jax.data.streaming.rows import StreamRows
from llmasos_jax.data.tokenizers.load import tokenizer_of_run
from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
from llmasos_jax.errors import ConfigError, DataError

TEXTS = [f"{i} " + "abcdefg"[: i % 7] * (1 + i * i % 23) for i in range(40)]
KINDS = ("jsonl", "parquet", "saved", "repository")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stream")
    for name in KINDS:
        (path / name).mkdir()
    for part in range(3):
        texts = TEXTS[14 * part : 14 * part + 14]
        lines = [json.dumps({"text": text, "n": 1}) for text in texts]
        (path / "jsonl" / f"{part}.jsonl").write_text("\n\n".join(lines) + "\n")
        table = pyarrow.table({"n": [1] * len(texts), "text": texts})
        for kind in ("parquet", "repository"):
            parquet.write_table(table, path / kind / f"{part}.parquet", row_group_size=5)
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(path / "saved"))
    return path


def _config(folder: Path, kind: str = "jsonl", **data: object) -> Config:
    source = kind if kind in ("jsonl", "parquet") else "huggingface"
    values = {
        "source": source,
        "path": str(folder / kind),
        "sequence_length": 32,
        "streaming": True,
        "heldout_documents": 3,
    }
    model = {"vocab_size": 259, "embedding_dim": 8, "num_layers": 1, "context_length": 64}
    return build.from_dict({"model": model, "data": values | data, "train": {"batch_size": 4}})


def _open(cfg: Config, **more) -> Data:
    return open_data(cfg, ByteTokenizer(), Path("unused"), **more)


def _ids(text: str) -> list[int]:
    return [*ByteTokenizer().encode(text), 257]


def _take(data: Data, count: int) -> list[bytes]:
    """Bytes of the next batches."""
    made = [next(data.train) for _ in range(count)]
    return [b"".join(leaf.tobytes() for leaf in jax.tree.leaves(batch)) for batch in made]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_documents_one_after_the_other(folder: Path, kind: str) -> None:
    data = _open(_config(folder, kind))
    epoch = [_ids(text) for text in TEXTS[3:]]
    expected = PackedRows(TokenDocuments.from_lists(epoch * 3), 32)
    got = [next(data.train) for _ in range(25)]
    data.close()
    for index in range(100):
        row = expected[index]
        assert np.array_equal(got[index // 4].tokens[index % 4], row.tokens[:-1])
        assert np.array_equal(got[index // 4].segment_ids[index % 4], row.segment_ids[:-1])
        assert np.array_equal(got[index // 4].positions[index % 4], row.positions[:-1])
    assert data.num_heldout_tokens == sum(len(_ids(text)) for text in TEXTS[:3])
    assert sum(map(len, epoch)) < 100 * 32, "it has to go over the end of an epoch"


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_stream_goes_on_with_the_same_bytes(folder: Path, kind: str) -> None:
    straight = _open(_config(folder, kind))
    states, expected = [json.dumps(straight.state())], []
    for _ in range(24):
        expected += _take(straight, 1)
        states.append(json.dumps(straight.state()))  # four batches are made ahead
    straight.close()
    again = _open(_config(folder, kind))
    for step in (0, 1, 2, 5, 11, 17, 20):
        again.restore(json.loads(states[step]))
        assert _take(again, 4) == expected[step : step + 4]
        # `datasets` writes the border of two files as the end of the one or as the other's begin.
        assert kind == "repository" or json.dumps(again.state()) == states[step + 4]
    again.close()


class Listed:
    """Texts in memory; the state is a number."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def read(self, state):
        for number in range(state or 0, len(self.texts)):
            yield self.texts[number], number + 1


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=12),
    length=st.integers(1, 24),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=5),
)
def test_each_token_once_an_epoch_wherever_it_is_cut(
    lengths: list[int], length: int, cuts: list[int]
) -> None:
    """Also in the middle of a document, and over the ends of epochs."""
    texts = [chr(97 + i) * n for i, n in enumerate(lengths)]
    rows = StreamRows(Listed([*texts, "z"]), ByteTokenizer(), length)
    found, state = [], None
    for cut in cuts:
        reader = rows.read(state)
        for _ in range(cut):
            row, state = next(reader)
            found.append(row.tokens[:-1])
        state = json.loads(json.dumps(state))
    epoch = [i for text in [*texts, "z"] if text for i in _ids(text)]
    read = np.concatenate(found)
    repeats = -(-len(read) // len(epoch))
    assert read.tolist() == (epoch * repeats)[: len(read)]


def test_hosts_have_their_rows_and_one_state(folder: Path) -> None:
    cfg = _config(folder)
    one = _open(cfg)
    two = [_open(cfg, process_index=p, process_count=2) for p in range(2)]
    for _ in range(12):
        whole, parts = next(one.train), [next(data.train) for data in two]
        joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(joined), strict=True):
            assert a.tobytes() == b.tobytes()
    assert one.state() == two[0].state() == two[1].state()
    for data in (one, *two):
        data.close()


def test_what_is_held_out_is_never_trained_on(tmp_path: Path) -> None:
    texts = ["held", "", "out", "a", "held", "b", "out", "c"]
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "jsonl").mkdir()
    (tmp_path / "jsonl" / "a.jsonl").write_text("\n".join(lines))
    data = _open(_config(tmp_path, heldout_documents=2, sequence_length=9))
    batch = next(data.train)
    data.close()
    assert batch.tokens.ravel().tolist() == ([*_ids("a"), *_ids("b"), *_ids("c")] * 4)
    assert data.heldout[0].tokens[0].tolist() == [*_ids("held"), *_ids("out")][:9]


def _bad(folder: Path, content: str) -> str:
    (folder / "jsonl").mkdir(exist_ok=True)
    (folder / "jsonl" / "a.jsonl").write_text(content)
    with pytest.raises(DataError) as caught:
        data = _open(_config(folder, heldout_documents=1))
        try:
            _take(data, 50)
        finally:
            data.close()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_streams_are_one_clear_line(tmp_path: Path) -> None:
    long = json.dumps({"text": "x" * 3000}) + "\n"
    assert "no document with text besides those that are held out" in _bad(tmp_path, long)
    assert 'line 3: no field "text" (there are: txt)' in _bad(
        tmp_path, '{"text": "held"}\n' + long + '{"txt": "b"}\n'
    )
    assert "line 2: not JSON" in _bad(tmp_path, '{"text": "held"}\n{"text": \n')


def test_a_named_dataset_whose_fields_change(tmp_path: Path, monkeypatch) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "0.jsonl").write_text('{"text": "held"}\n' + '{"text": "abc"}\n' * 9)
    (repository / "1.jsonl").write_text('{"text": "abc", "more": [1]}\n{"text": 7}\n')
    with pytest.raises(DataError) as caught:
        data = _open(_config(tmp_path, "repository", heldout_documents=1))
        try:
            _take(data, 50)
        finally:
            data.close()
    assert 'dataset "' in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_stream_cannot_do_is_refused(folder: Path) -> None:
    data = _open(_config(folder))
    with pytest.raises(DataError, match="the batch of step 3 cannot be asked for"):
        data.train[3]
    with pytest.raises(ConfigError, match='data.source="stdlib" does not stream'):
        _open(_config(folder, source="stdlib", path=None))
    with pytest.raises(ConfigError, match="makes its own rows; leave out data.streaming"):
        _open(_config(folder), rows=lambda documents, length: [])
    with pytest.raises(ConfigError, match="data.mixture does not go with data.streaming"):
        _config(folder, mixture={"a": {}}, path=None)
    with pytest.raises(DataError, match="was made on a corpus with digest"):
        _open(_config(folder, heldout_documents=4)).restore(data.state())


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_in_other_files_is_refused(folder: Path, kind: str, tmp_path: Path) -> None:
    shutil.copytree(folder / kind, tmp_path / "first" / kind)
    data = _open(_config(tmp_path / "first", kind))
    expected = _take(data, 3)
    state = json.loads(json.dumps(data.state()))
    data.close()
    data.restore({name: value for name, value in state.items() if name != "files"})
    expected += _take(data, 1)
    data.close()
    # The folder may have moved; what is in it may not have changed.
    (tmp_path / "first").rename(tmp_path / "second")
    again = _open(_config(tmp_path / "second", kind))
    again.restore(state)
    assert _take(again, 1) == expected[3:]
    again.close()
    last = max(path for path in (tmp_path / "second" / kind).iterdir() if path.suffix != ".json")
    size, whole = last.stat().st_size, last.read_bytes()
    added = last.with_name("z" + last.name)
    added.write_bytes(whole)
    cut = whole[: whole.rstrip().rindex(b"\n") + 1] if kind == "jsonl" else whole
    changes = [f"{added.name} is new"]
    if kind == "jsonl":
        changes.append(f"{added.name} is new; {last.name} has {len(cut)} bytes, and had {size}")
    for number, change in enumerate(changes):
        if number:
            last.write_bytes(cut)
        other = _open(_config(tmp_path / "second", kind))
        with pytest.raises(DataError, match=rf"made on \({change}\), so its place .* new run"):
            other.restore(state)
        other.close()
    added.unlink()
    if kind in ("jsonl", "parquet"):
        last.unlink()
        with pytest.raises(DataError, match=rf"made on \({last.name} is gone\)"):
            _open(_config(tmp_path / "second", kind)).restore(state)


def test_a_row_of_parquet_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "parquet").mkdir()
    offsets = pyarrow.py_buffer(np.array([0, 1, 3, 4], "<i4").tobytes())
    column = pyarrow.StringArray.from_buffers(3, offsets, pyarrow.py_buffer(b"ax\xffc"))
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "parquet" / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet, row 1 is not UTF-8: byte 0xff at 1 of the"):
        _open(_config(tmp_path, "parquet", heldout_documents=1))


def test_the_thread_ends_when_the_data_is_closed(folder: Path) -> None:
    before = len(os.listdir("/proc/self/task"))
    data = _open(_config(folder))
    next(data.train)
    data.close()
    assert len(os.listdir("/proc/self/task")) <= before + 1
    assert data.train.waited_s > 0.0


def test_a_tokenizer_is_trained_on_what_is_not_held_out(folder: Path, tmp_path: Path) -> None:
    cfg = build.to_dict(_config(folder))
    cfg["tokenizer"] |= {"kind": "tokenizers", "train_chars": 500}
    cfg["model"]["vocab_size"] = 280
    tokenizer = tokenizer_of_run(build.from_dict(cfg), tmp_path, has_records=False)
    assert tokenizer.decode(tokenizer.encode(TEXTS[9])) == TEXTS[9]
