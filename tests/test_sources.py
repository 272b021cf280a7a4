"""Sources and the split: the same documents in the same order, and errors that say where."""

import dataclasses
import json
import os
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from llmasos_jax.config.schema import DataConfig
from llmasos_jax.data.sources import PIECE_CHARS, documents, is_read
from llmasos_jax.data.split import split_documents
from llmasos_jax.data.streaming.sources import open_stream
from llmasos_jax.errors import ConfigError, DataError


def _data(source: str, path: Path | str | None = None, **more: object) -> DataConfig:
    return DataConfig(source=source, path=None if path is None else str(path), **more)  # pyright: ignore[reportArgumentType]


def test_stdlib_is_the_library_without_tests_and_packages() -> None:
    found = documents(DataConfig())
    assert len(found) > 300 and found.key == documents(DataConfig()).key
    texts = list(found)
    assert texts == list(documents(DataConfig()))
    assert Path(json.__file__).read_bytes().decode() in texts
    joined = "".join(texts)
    assert "class TestCase" in joined  # unittest itself is library
    assert "site-packages" not in {Path(p).name for p in os.environ.get("PYTHONPATH", "").split()}
    assert Path(pytest.__file__).read_text() not in texts
    assert joined.count("class Test") < 20


def test_max_documents_takes_the_first_and_changes_the_key() -> None:
    few = documents(DataConfig(max_documents=3))
    assert list(few) == documents(DataConfig())[:3]
    assert few.key != documents(DataConfig()).key
    with pytest.raises(IndexError):
        few[3]


def test_text_reads_files_exactly_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfline\r\n\ttab  \n")
    (tmp_path / "a.txt").write_bytes("你好\n".encode())
    (tmp_path / "sub" / "c.md").write_bytes(b"third")
    (tmp_path / ".hidden").write_bytes(b"no")
    (tmp_path / "empty.txt").write_bytes(b"")
    assert list(documents(_data("text", tmp_path))) == ["你好\n", "line\r\n\ttab  \n", "third"]
    assert list(documents(_data("text", tmp_path / "*.txt"))) == ["你好\n", "line\r\n\ttab  \n"]
    assert list(documents(_data("text", f"{tmp_path}/**/*.md"))) == ["third"]


def test_the_key_follows_the_content(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("text")
    before = documents(_data("text", tmp_path)).key
    (tmp_path / "b").write_text("longer text")
    assert documents(_data("text", tmp_path)).key != before


def test_a_single_file_is_cut_at_line_ends(tmp_path: Path) -> None:
    text = "".join(f"line {i} 你\r\n" for i in range(9000))
    (tmp_path / "book.txt").write_bytes(text.encode())
    found = list(documents(_data("text", tmp_path / "book.txt")))
    assert "".join(found) == text
    assert len(found) == -(-len(text) // (PIECE_CHARS + 8)) and all(
        piece.endswith("\n") for piece in found
    )
    assert all(PIECE_CHARS <= len(piece) < PIECE_CHARS + 20 for piece in found[:-1])


def test_jsonl_gives_each_text_exactly(tmp_path: Path) -> None:
    texts = ["hello\r\n\t", "2020-01-01T00:00:00", "你好 🎉", "", "3"]
    lines = [json.dumps({"n": i, "body": t}) for i, t in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines[:3]) + "\n")
    (tmp_path / "b.jsonl").write_text("\n".join(lines[3:]))
    data = _data("jsonl", tmp_path, text_field="body")
    for _ in range(2):  # the second time from the cache
        assert list(documents(data, tmp_path / "cache")) == texts
    (tmp_path / "b.jsonl").write_text('{"body": "new"}')
    assert list(documents(data, tmp_path / "cache"))[3:] == ["new"]


def test_parquet_gives_the_column(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["one", "two\r\n", "三"], "n": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "a.parquet")
    found = documents(_data("parquet", tmp_path / "a.parquet"), tmp_path / "cache")
    assert list(found) == ["one", "two\r\n", "三"]
    assert list((tmp_path / "cache").rglob("*.arrow"))


def test_own_source_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_source.py").write_text(
        "def texts(data):\n    return [f'seed {data.seed}', 'b']\n"
        "def numbers(data):\n    return [1]\n"
        "def stream(data):\n    return iter('ab')\n"
        "def none(data):\n    return []\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert list(documents(_data("my_source:texts", seed=4))) == ["seed 4", "b"]
    with pytest.raises(DataError, match="document 0 is a int"):
        documents(_data("my_source:numbers"))
    with pytest.raises(DataError, match="expected a sequence of strings"):
        documents(_data("my_source:stream"))
    with pytest.raises(DataError, match="gave no document"):
        documents(_data("my_source:none"))


JSONL_ERRORS = [
    (b'{"text": "a"}\n{"txet": "b", "n": 1}\n', r'line 2: no field "text" \(there are: n, txet\)'),
    (b'{"text": "a"}\n{bad}\n', r"line 2: not JSON \(Expecting property name"),
    (b'{"text": "a"}\n\n["x"]\n', "line 3: a JSON list; expected an object"),
    (b'{"text": 3}\n', 'line 1: field "text" is a int; expected a string'),
    (b'{"text": null}\n', 'line 1: field "text" is a NoneType'),
    (b'{"text": "a"}\n{"text": "\xff"}\n', "line 2: not UTF-8: byte 0xff at offset 24 of the file"),
    (b'{"text": "a\\ud800"}\n', "half of a surrogate pair at character 1"),
    (b"\n\n", "no line with JSON in it"),
]


@pytest.mark.parametrize(("content", "message"), JSONL_ERRORS)
def test_jsonl_errors_name_the_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        documents(_data("jsonl", tmp_path / "x.jsonl"), tmp_path / "cache")


def test_parquet_errors(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"body": ["a", None], "n": [1, 2]}), path)
    with pytest.raises(DataError, match=r'no column "text" \(there are: body, n\)'):
        documents(_data("parquet", path), tmp_path)
    with pytest.raises(DataError, match='column "n" holds int64'):
        documents(_data("parquet", path, text_field="n"), tmp_path)
    with pytest.raises(DataError, match="row 1 has no text"):
        list(documents(_data("parquet", path, text_field="body"), tmp_path))
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="is not a Parquet file"):
        documents(_data("parquet", path), tmp_path)


def test_paths_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='did you mean "jsonl"'):
        documents(_data("json"))
    with pytest.raises(DataError, match="needs data.path"):
        documents(_data("text"))
    with pytest.raises(DataError, match="nowhere is not there"):
        documents(_data("text", tmp_path / "nowhere"))
    with pytest.raises(DataError, match="matches no file"):
        documents(_data("text", tmp_path / "*.txt"))
    with pytest.raises(DataError, match="matches no file"):
        documents(_data("jsonl", tmp_path))
    (tmp_path / "empty.txt").write_bytes(b"")
    with pytest.raises(DataError, match="is an empty file"):
        documents(_data("text", tmp_path / "empty.txt"))
    with pytest.raises(DataError, match="is an empty file"):
        documents(_data("jsonl", tmp_path / "empty.txt"))


def test_invalid_utf8_names_file_offset_and_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_bytes(b"one\ntw\xe9o\n")
    with pytest.raises(DataError, match=r"b\.txt is not UTF-8: byte 0xe9 at offset 6 \(line 2\)"):
        list(documents(_data("text", tmp_path)))
    with pytest.raises(DataError, match="at offset 6"):
        documents(_data("text", tmp_path / "b.txt"))


TEXTS = [f"document {i}" for i in range(200)]


def _sides(texts: list[str], **settings: object) -> tuple[set[str], set[str]]:
    split = split_documents(texts, DataConfig(**settings))  # pyright: ignore[reportArgumentType]
    return {texts[i] for i in split.train}, {texts[i] for i in split.heldout}


def test_split_depends_on_seed_and_text_alone() -> None:
    train, heldout = _sides(TEXTS, heldout_fraction=0.1)
    assert len(heldout) == 20 and len(train) == 180 and not train & heldout
    assert _sides(TEXTS[::-1], heldout_fraction=0.1) == (train, heldout)
    assert _sides(TEXTS, heldout_fraction=0.1, seed=1)[1] != heldout
    # Five more documents move at most a few of the others.
    moved = _sides([*TEXTS, *"abcde"], heldout_fraction=0.1)[1] ^ heldout
    assert len(moved & set(TEXTS)) <= 5


def test_equal_documents_are_on_one_side_and_empty_ones_on_none() -> None:
    texts = [*TEXTS[:10], "", " \n", *TEXTS[:10]]
    split = split_documents(texts, DataConfig(heldout_fraction=0.3))
    assert len(split.heldout) == 6 and len(split.train) == 14
    assert not {texts[i] for i in split.heldout} & {texts[i] for i in split.train}
    assert split.digest == split_documents(texts[::-1], DataConfig(heldout_fraction=0.3)).digest


def test_each_side_has_a_document_or_there_is_an_error() -> None:
    assert len(_sides(["a", "b"], heldout_fraction=0.001)[1]) == 1
    assert len(_sides(["a", "b"], heldout_fraction=0.999)[0]) == 1
    assert _sides(["a"], heldout_fraction=0.0) == ({"a"}, set())
    with pytest.raises(DataError, match="heldout_fraction=0 to train on all"):
        _sides(["a", "", "a"])
    with pytest.raises(DataError, match="2 documents and all are empty"):
        _sides(["", " \n"])
    with pytest.raises(DataError, match="document 1: character 0"):
        _sides(["a", "\ud800"])


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n')
    data = _data("jsonl", path)
    assert list(documents(data, tmp_path / "cache")) == ["a", "b"]
    stream = open_stream(dataclasses.replace(data, streaming=True))
    (_, state), (text, _) = stream.read(None)
    assert text == "b" and [text for text, _ in stream.read(state)] == ["b"]
    path.write_bytes(b'\xef\xbb\xbf{"text": "a\xff"}\n')
    for read in (lambda: documents(data, tmp_path / "cache"), lambda: next(stream.read(None))):
        with pytest.raises(DataError, match="line 1: not UTF-8: byte 0xff at offset 14 of the"):
            read()


def test_the_key_of_a_glob_does_not_depend_on_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts" / "sub").mkdir(parents=True)
    for name in ("a.txt", "sub/b.txt"):
        (tmp_path / "texts" / name).write_text("text")
    for pattern in ("*.txt", "**/*.txt", "s*/b.txt"):
        data, keys = _data("text", tmp_path / "texts" / pattern), set()
        for place in (tmp_path, tmp_path / "texts" / "sub", Path("/")):
            monkeypatch.chdir(place)
            keys.add(documents(data).key)
        assert len(keys) == 1


def test_a_folder_that_cannot_be_read_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").write_text("text")
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"closed cannot be read \(Permission denied\); make it"):
        documents(_data("text", tmp_path))


def test_what_a_source_would_read(tmp_path: Path) -> None:
    for source, path, file, expected in (
        ("text", "", "ids/manifest.json", True),
        ("text", "", "../ids/manifest.json", False),
        ("text", "", ".ids/manifest.json", False),
        ("jsonl", "", "ids/manifest.json", False),
        ("jsonl", "", "ids/a.jsonl", True),
        ("text", "*", "ids/manifest.json", False),
        ("text", "*/*", "ids/manifest.json", True),
        ("text", "*/*.txt", "ids/manifest.json", False),
        ("text", "**", "ids/manifest.json", True),
        ("text", "**/*.json", "ids/manifest.json", True),
        ("text", "**/*.txt", "ids/manifest.json", False),
    ):
        assert is_read(_data(source, tmp_path / path), tmp_path / file) == expected, (path, file)
    assert not is_read(DataConfig(), tmp_path / "a")
