"""Arrow, datasets by name or folder, ArrayRecord: each text exactly, errors in one line."""

import json
import re
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from pyarrow import ipc, parquet

from llmasos_jax.config.schema import DataConfig
from llmasos_jax.data.prepared import run
from llmasos_jax.data.sources import Documents, Source, documents
from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
from llmasos_jax.errors import DataError

TEXTS = ["one", "你好\n", "2024-01-01", ""]


def _data(source: str, path: Path, **more: object) -> DataConfig:
    return DataConfig(source=source, path=str(path), **more)  # pyright: ignore[reportArgumentType]


def _said(data: DataConfig, cache: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(documents(data, cache))
    text = str(caught.value)
    assert "\n" not in text
    return text


def _write_arrow(path: Path, table: pyarrow.Table, *, is_file: bool) -> None:
    with (ipc.new_file if is_file else ipc.new_stream)(path, table.schema) as out:
        out.write_table(table, max_chunksize=2)


def test_arrow_files_and_streams_are_mapped(tmp_path: Path) -> None:
    table = pyarrow.table({"text": TEXTS, "n": [1, 2, 3, 4]})
    _write_arrow(tmp_path / "a.arrow", table, is_file=True)
    large = table.set_column(0, "text", table["text"].cast(pyarrow.large_string()))
    _write_arrow(tmp_path / "b.arrow", large, is_file=False)
    found = documents(_data("arrow", tmp_path))
    assert list(found) == TEXTS * 2 and isinstance(found, Source)
    assert found.key == documents(_data("arrow", tmp_path)).key


def test_arrow_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    _write_arrow(path, pyarrow.table({"texts": ["a"], "n": [1]}), is_file=True)
    assert 'no column "text" (there are: n, texts); did you mean' in _said(
        _data("arrow", path), tmp_path
    )
    assert 'column "n" holds int64; expected strings' in _said(
        _data("arrow", path, text_field="n"), tmp_path
    )
    path.write_bytes(path.read_bytes()[:40])
    assert "is not an Arrow file or stream" in _said(_data("arrow", path), tmp_path)
    _write_arrow(path, pyarrow.table({"text": ["a", None]}), is_file=True)
    assert "row 1 has no text (null)" in _said(_data("arrow", path), tmp_path)


def test_datasets_from_folders(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"text": TEXTS, "n": [1, 2, 3, 4]})
    table.save_to_disk(str(tmp_path / "one"))
    assert list(documents(_data("huggingface", tmp_path / "one"))) == TEXTS
    both = datasets.DatasetDict({"train": table, "validation": table.select([1])})
    both.save_to_disk(str(tmp_path / "both"))
    assert list(documents(_data("huggingface", tmp_path / "both"))) == TEXTS
    found = documents(_data("huggingface", tmp_path / "both", split="validation"))
    assert list(found) == TEXTS[1:2]
    assert found.key != documents(_data("huggingface", tmp_path / "both")).key
    said = _said(_data("huggingface", tmp_path / "both", split="test"), tmp_path)
    assert 'no split "test"; set data.split to one of train, validation, or to a slice' in said
    for split, expected in (
        ("train[:2]", TEXTS[:2]),
        ("train[-1:]", TEXTS[-1:]),
        ("train[50%:]+validation", TEXTS[2:] + TEXTS[1:2]),
    ):
        part = documents(_data("huggingface", tmp_path / "both", split=split))
        assert list(part) == expected
        assert part.key == documents(_data("huggingface", tmp_path / "both", split=split)).key
    assert (
        len(
            {
                documents(_data("huggingface", tmp_path / "both", split=s)).key
                for s in ("train", "train[:2]", "train[:3]")
            }
        )
        == 3
    )
    said = _said(_data("huggingface", tmp_path / "both", split="train[:x]"), tmp_path)
    assert 'no split "train[:x]" (' in said
    # A split that was saved alone is known by its own name; without one it is "train".
    for split in ("validation", "validation[:2]"):
        said = _said(_data("huggingface", tmp_path / "one", split=split), tmp_path)
        assert "set data.split to one of train" in said
    part = documents(_data("huggingface", tmp_path / "one", split="train[1:3]"))
    assert list(part) == TEXTS[1:3]
    named = datasets.Dataset.from_dict({"text": TEXTS}, split=datasets.Split("validation"))
    named.save_to_disk(str(tmp_path / "named"))
    assert list(documents(_data("huggingface", tmp_path / "named", split="validation"))) == TEXTS
    said = _said(_data("huggingface", tmp_path / "named"), tmp_path)
    assert 'no split "train"; set data.split to one of validation' in said
    for name in ("one", "both"):
        said = _said(_data("huggingface", tmp_path / name, subset="foo"), tmp_path)
        assert 'has no subsets; got data.subset="foo": leave it out' in said


def test_a_dataset_repository_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hf"))
    repository = tmp_path / "repository"
    (repository / "code").mkdir(parents=True)
    (repository / "prose").mkdir()
    for name in ("code", "prose"):
        rows = pyarrow.table({"content": [f"{name} {text}" for text in TEXTS]})
        parquet.write_table(rows, repository / name / "train-00000-of-00001.parquet")
    configs = [{"config_name": n, "data_files": f"{n}/*.parquet"} for n in ("code", "prose")]
    card = f"---\nconfigs: {json.dumps(configs)}\n---\n"
    (repository / "README.md").write_text(card)
    data = _data("huggingface", repository, subset="prose", text_field="content")
    assert documents(data)[0] == "prose one"
    few = _data("huggingface", repository, subset="code", split="train[:2]", text_field="content")
    assert list(documents(few)) == ["code one", "code 你好\n"]
    no_field = _data("huggingface", repository, subset="code")
    assert 'has no column "text" (there are: content)' in _said(no_field, tmp_path)
    no_subset = _data("huggingface", repository, subset="cod", text_field="content")
    assert "(cod, train) cannot be read" in _said(no_subset, tmp_path)


def _write_records(path: Path, records: list[bytes]) -> None:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def test_array_records_of_json_and_of_text(tmp_path: Path) -> None:
    for part in (0, 1):
        records = [json.dumps({"text": text}).encode() for text in TEXTS[2 * part : 2 * part + 2]]
        _write_records(tmp_path / f"{part}.array_record", records)
    assert list(documents(_data("arrayrecord", tmp_path))) == TEXTS
    _write_records(tmp_path / "plain", [text.encode() for text in TEXTS])
    assert list(documents(_data("arrayrecord_text", tmp_path / "plain"))) == TEXTS


def test_array_record_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.array_record"
    _write_records(path, [b'{"text": "a"}', b'{"texts": "b"}'])
    said = _said(_data("arrayrecord", path), tmp_path)
    assert 'record 1: no field "text" (there are: texts)' in said
    _write_records(path, [b"\xff"])
    assert "record 0: not UTF-8" in _said(_data("arrayrecord_text", path), tmp_path)
    path.write_bytes(b"no records here")
    assert "is not an ArrayRecord file" in _said(_data("arrayrecord", path), tmp_path)


class Numbers:
    """A source of somebody's own, which is no `collections.abc.Sequence`."""

    key = "numbers"

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> str:
        return str(index)


def numbers(data: DataConfig) -> Numbers:
    return Numbers()


def test_a_source_of_ones_own_needs_a_key_and_no_base_class() -> None:
    found = documents(DataConfig(source=f"{__name__}:numbers"))
    assert isinstance(found, Documents) and found[:] == ["0", "1", "2"] and found.key == "numbers"


def _column_with(bad: bytes) -> pyarrow.Array:
    """Three strings, the second of these bytes, which nothing checks."""
    offsets = pyarrow.py_buffer(np.array([0, 1, 1 + len(bad), 2 + len(bad)], "<i4").tobytes())
    return pyarrow.StringArray.from_buffers(3, offsets, pyarrow.py_buffer(b"a" + bad + b"c"))


@pytest.mark.parametrize("source", ["arrow", "parquet"])
def test_a_broken_row_is_named_with_its_file(source: str, tmp_path: Path) -> None:
    def write(name: str, column: object) -> None:
        table, path = pyarrow.table({"text": column}), tmp_path / name
        if source == "parquet":
            parquet.write_table(table, path)
        else:
            _write_arrow(path, table, is_file=True)

    write(f"a.{source}", ["one", "two"])
    write(f"b.{source}", _column_with(b"x\xff"))
    said = _said(_data(source, tmp_path), tmp_path / "cache")
    assert said.startswith(f"{tmp_path}/b.{source}, row 1 is not UTF-8: byte 0xff at 1 of the text")
    write(f"b.{source}", ["a", "b", None])
    said = _said(_data(source, tmp_path), tmp_path / "cache")
    assert said.startswith(f"{tmp_path}/b.{source}, row 2 has no text (null)")


class Broken(Numbers):
    """A source that fails at its second document."""

    fault: object = None

    def __getitem__(self, index: int) -> str:
        if index != 1:
            return "text"
        if isinstance(self.fault, Exception):
            raise self.fault
        return self.fault  # pyright: ignore[reportReturnType]


def broken(data: DataConfig) -> Broken:
    return Broken()


FAULTS = [
    (OSError(5, "Input/output error", "/far/away.bin"), "OSError: [Errno 5] .*: '/far/away.bin'"),
    (IndexError("past the end"), "IndexError: past the end"),
    (None, "document 1 is a NoneType, not a string"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_what_a_source_of_ones_own_does_wrong_is_told_of_it(
    fault: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Broken, "fault", fault)
    data = DataConfig(source=f"{__name__}:broken")
    said = _said(data, tmp_path)
    assert f'data.source="{__name__}:broken": document 1 ' in said
    assert re.search(re.escape(message).replace(re.escape(".*"), ".*"), said)
    with pytest.raises(DataError) as caught:  # nor is it told of the folder that is written
        run.run(data, ByteTokenizer(), tmp_path / "out", tmp_path / "cache", workers=1)
    assert str(caught.value) == said
