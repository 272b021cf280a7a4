"""Prepared corpora: the same bytes from any number of processes, also after a kill."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import llmasos_jax
from llmasos_jax.cli.main import main
from llmasos_jax.config.build import default_config
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config, DataConfig, TokenizerConfig, TrainConfig
from llmasos_jax.data.corpus import Corpus, open_corpus
from llmasos_jax.data.pipeline import open_data
from llmasos_jax.data.prepared import prepare as prepare_module
from llmasos_jax.data.prepared.arrays import GrowingArray, ShardedArray
from llmasos_jax.data.prepared.manifest import read_manifest
from llmasos_jax.data.prepared.plan import cut
from llmasos_jax.data.prepared.prepare import Preparation, prepare
from llmasos_jax.data.prepared.read import (
    check_folder,
    open_folder,
    open_prepared,
    prepared_tokenizer,
)
from llmasos_jax.data.prepared.run import run
from llmasos_jax.data.sources import documents
from llmasos_jax.data.split import Sides
from llmasos_jax.data.tokenizers.load import tokenizer_of_run
from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
from llmasos_jax.errors import ConfigError, DataError, TokenizerError
from llmasos_jax.progress import Progress


@pytest.fixture
def texts(tmp_path: Path) -> DataConfig:
    """Forty documents, two of them blank, in files."""
    folder = tmp_path / "texts"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        words = rng.choice(["the", "cat.", "月亮。", "sat\n", "on"], size=5 + 10 * i)
        text = " \n" if i in (7, 21) else f"{i} " + " ".join(words)
        (folder / f"{i:02}.txt").write_text(text, encoding="utf-8")
    return DataConfig(source="text", path=str(folder), heldout_fraction=0.2, sequence_length=32)


def _prepare(data: DataConfig, folder: Path, workers: int = 1, **more) -> Corpus:
    what = Preparation(documents(data), ByteTokenizer(), data, **{"shard_bytes": 3000} | more)
    return open_folder(folder, prepare(what, folder, folder.parent / "cache", workers))


def _bytes(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _assert_same(a: Corpus, b: Corpus) -> None:
    assert a.digest == b.digest
    for left, right in ((a.train, b.train), (a.heldout, b.heldout)):
        for name in ("ids", "offsets", "sentences"):
            one, other = getattr(left, name), getattr(right, name)
            assert (one is None) == (other is None)
            assert one is None or np.array_equal(np.asarray(one), np.asarray(other)), name


@pytest.mark.parametrize("by_sentence", [False, True])
def test_shards_are_the_corpus(texts: DataConfig, tmp_path: Path, by_sentence: bool) -> None:
    whole = open_corpus(
        documents(texts), ByteTokenizer(), texts, tmp_path / "cache", by_sentence=by_sentence
    )
    corpus = _prepare(texts, tmp_path / "out", by_sentence=by_sentence)
    assert isinstance(corpus.train.ids, ShardedArray) and isinstance(whole.train.ids, np.memmap)
    assert len(read_manifest(tmp_path / "out").train.shards) > 10
    _assert_same(corpus, whole)
    # Also cut in the smallest pieces, so that most borders of documents are borders of shards.
    _assert_same(_prepare(texts, tmp_path / "many", by_sentence=by_sentence, shard_bytes=1), whole)


def test_the_digest_is_that_of_earlier_versions(tmp_path: Path) -> None:
    """Checkpoints name their corpus by it."""
    (tmp_path / "a.txt").write_text("".join(f"Line {i}. 第{i}行。\n" for i in range(3000)))
    data = DataConfig(source="text", path=str(tmp_path / "a.txt"), heldout_fraction=0.3)
    plain = open_corpus(documents(data), ByteTokenizer(), data, tmp_path)
    cut_up = open_corpus(documents(data), ByteTokenizer(), data, tmp_path, by_sentence=True)
    assert (plain.digest[:16], cut_up.digest[:16]) == ("373c643ba0237376", "bacde41fa5963426")


def test_the_files_do_not_depend_on_the_processes(texts: DataConfig, tmp_path: Path) -> None:
    _prepare(texts, tmp_path / "one")
    _prepare(texts, tmp_path / "three", workers=3)
    assert _bytes(tmp_path / "one") == _bytes(tmp_path / "three")


_SLOW = """
import sys, time
from pathlib import Path
from llmasos_jax.config.schema import DataConfig
from llmasos_jax.data.prepared import work
from llmasos_jax.data.prepared.prepare import Preparation, prepare
from llmasos_jax.data.sources import documents
from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer

class Slow(ByteTokenizer):
    def encode_batch(self, texts):
        time.sleep(0.1)
        return super().encode_batch(texts)

data = DataConfig(source="text", path=sys.argv[1], heldout_fraction=0.2, sequence_length=32)
what = Preparation(documents(data), Slow(), data, shard_bytes=3000)
prepare(what, Path(sys.argv[2]), Path(sys.argv[3]))
"""


def test_a_killed_preparation_goes_on(texts: DataConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [sys.executable, "-c", _SLOW, str(texts.path), str(out), str(tmp_path / "cache")]
    process = subprocess.Popen(words)
    while len(list(out.glob("train-*.json"))) < 4:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(DataError, match="not prepared to the end; run llmasos data prepare"):
        open_prepared(_reading(out), ByteTokenizer(), by_sentence=False)
    done = {p: p.stat().st_mtime_ns for p in out.glob("train-*_ids.npy")}
    records = {p.name.removesuffix(".json") for p in out.glob("train-*.json")}
    # What is damaged meanwhile is done again.
    broken = out / f"{sorted(records)[1]}_ids.npy"
    broken.write_bytes(broken.read_bytes()[:-1] + b"?")
    done.pop(broken)
    (out / ".tmp-left").write_bytes(b"half")
    corpus = _prepare(texts, out)
    _assert_same(corpus, _prepare(texts, tmp_path / "straight"))
    assert _bytes(out) == _bytes(tmp_path / "straight")
    kept = [p for p, stamp in done.items() if p.stat().st_mtime_ns == stamp]
    assert len(kept) >= 3


def test_other_settings_in_the_same_folder_are_listed(texts: DataConfig, tmp_path: Path) -> None:
    _prepare(texts, tmp_path / "out")
    other = DataConfig(**{**vars(texts), "seed": 1, "deduplicate": "exact"})
    message = r"data.seed: 0 -> 1; data.deduplicate: not set -> 'exact'\); give another folder"
    with pytest.raises(DataError, match=message):
        _prepare(other, tmp_path / "out")
    with pytest.raises(DataError, match='holds other files \\("00.txt"\\)'):
        _prepare(texts, Path(str(texts.path)))


def test_a_finished_folder_is_left_alone(
    texts: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _prepare(texts, tmp_path / "out")
    monkeypatch.setattr(prepare_module, "_work", None)
    _assert_same(_prepare(texts, tmp_path / "out", workers=2), first)


def test_two_at_once_are_refused(texts: DataConfig, tmp_path: Path) -> None:
    with prepare_module.locked(tmp_path):
        with pytest.raises(DataError, match="another process is at work in"):
            _prepare(texts, tmp_path)


def test_damage_is_named(texts: DataConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _prepare(texts, out)
    assert check_folder(out).is_whole
    shard = out / "train-00002_ids.npy"
    raw = shard.read_bytes()
    for name in [file.file for file in read_manifest(out).files()]:
        path = out / name
        whole = path.read_bytes()
        place = len(whole) // 2
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        (line,) = check_folder(out).damaged
        assert line.startswith(f"{name} has sha256")
        path.write_bytes(whole)
    shard.write_bytes(raw[:-2])
    data = _reading(out)
    with pytest.raises(DataError, match=r"damaged \(train-00002_ids.npy has .* bytes, expected"):
        open_prepared(data, ByteTokenizer(), by_sentence=False)
    shard.unlink()
    with pytest.raises(DataError, match=r"damaged \(train-00002_ids.npy is not there"):
        open_prepared(data, ByteTokenizer(), by_sentence=False)
    _prepare(texts, out)
    assert shard.read_bytes() == raw and check_folder(out).is_whole
    (out / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="manifest.json is damaged .*data prepare"):
        read_manifest(out)
    assert check_folder(out).damaged == ("manifest.json: KeyError('format_version')",)


def _reading(folder: Path, **data) -> DataConfig:
    settings = {"source": "prepared", "path": str(folder), "sequence_length": 32}
    return DataConfig(**settings | data)


def _config(data: DataConfig, **more) -> Config:
    model = ModelConfig(vocab_size=259, embedding_dim=8, num_layers=1)
    return Config(model=model, data=data, train=TrainConfig(batch_size=4), **more)


def test_a_run_reads_the_same_batches(texts: DataConfig, tmp_path: Path) -> None:
    straight = open_data(_config(texts), ByteTokenizer(), tmp_path / "cache")
    _prepare(texts, tmp_path / "out")
    config = _config(_reading(tmp_path / "out", heldout_fraction=0.2))
    tokenizer = tokenizer_of_run(config, tmp_path / "cache", has_records=False)
    prepared = open_data(config, tokenizer, tmp_path / "cache")
    assert len(prepared.heldout) == len(straight.heldout)
    for step in (0, 3, 500):
        pairs = zip(
            jax.tree.leaves(straight.train[step]),
            jax.tree.leaves(prepared.train[step]),
            strict=True,
        )
        assert all(a.tobytes() == b.tobytes() for a, b in pairs)
    prepared.restore(straight.state())
    decoded = documents(config.data)
    original = documents(texts)
    assert len(decoded) == 38 and set(decoded) == {t for t in original if t.strip()}


def test_what_does_not_fit_a_folder(texts: DataConfig, tmp_path: Path) -> None:
    class Other(ByteTokenizer):
        def save(self, folder: Path) -> dict:
            return {"kind": "bytes", "more": 1}

    out = tmp_path / "out"
    _prepare(texts, out)
    for words, data, tokenizer, by_sentence in (
        ("prepared with another tokenizer .*leave tokenizer.path out", {}, Other(), False),
        ("without sentences, .* with them", {}, ByteTokenizer(), True),
        ("heldout_fraction=0.3, and .* with 0.2", {"heldout_fraction": 0.3}, None, False),
        ("deduplicate='exact', and .* 'none'", {"deduplicate": "exact"}, None, False),
        (
            "max_documents=5, and .* None, .*--config.data.max_documents=None",
            {"max_documents": 5},
            None,
            False,
        ),
    ):
        with pytest.raises(DataError, match=words):
            asked = _reading(out, **data)
            open_prepared(asked, tokenizer or ByteTokenizer(), by_sentence=by_sentence)
    open_prepared(_reading(out, seed=9), ByteTokenizer(), by_sentence=False)
    config = _config(_reading(out), tokenizer=TokenizerConfig(kind="sentencepiece"))
    with pytest.raises(TokenizerError, match='prepared with one of kind "bytes"'):
        tokenizer_of_run(config, tmp_path, has_records=False)
    with pytest.raises(DataError, match="is no prepared folder"):
        documents(_reading(tmp_path))
    with pytest.raises(DataError, match="needs data.path"):
        documents(DataConfig(source="prepared"))


def test_a_worker_that_fails_says_why(texts: DataConfig, tmp_path: Path) -> None:
    (Path(str(texts.path)) / "30.txt").write_bytes(b"\xff\xfe broken")
    with pytest.raises(DataError, match="30.txt is not UTF-8: byte 0xff"):
        _prepare(texts, tmp_path / "out", workers=2)


def test_the_command_line_and_python(
    texts: DataConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    config = default_config()
    config.model.update(vocab_size=259, embedding_dim=8, num_layers=1)
    config.data.update(source="text", path=texts.path, sequence_length=32)
    config.data.filters.min_chars = 60
    config.train.batch_size = 4
    found = llmasos_jax.prepare_data(config, tmp_path / "out", workers=1)
    assert found.is_new and not llmasos_jax.prepare_data(config, tmp_path / "out").is_new
    kept = found.train_documents + found.heldout_documents
    reasons = {name: group.documents for name, group in found.dropped.items()}
    assert reasons == {"blank": 2, "filters.min_chars": 40 - 2 - kept} and kept < 38
    shown = str(found)
    assert "dropped    2 (5.00%) blank" in shown and "document 0: 0 " in shown
    assert "<table>" in found._repr_html_()
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(config.to_json()), "name": "small"}))
    words = [f"--config={path}", f"--out={tmp_path / 'out'}"]
    assert main(["data", "prepare", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == found.digest
    assert main(["data", "check", str(tmp_path / "out")]) == 0
    os.truncate(tmp_path / "out" / "train_offsets.npy", 100)
    assert main(["data", "check", str(tmp_path / "out")]) == 1
    assert "train_offsets.npy has 100 bytes, expected" in capsys.readouterr().out
    for words, message in (
        (["check"], "data check needs a folder"),
        (["prepare", f"--config={path}"], "data prepare needs --out"),
        (["show", f"--config={path}", "--out=x"], "data show takes no --out"),
        (["prepare", f"--config={path}", "--out=x", "--workers=0"], "must be at least 1"),
    ):
        assert main(["data", *words]) == 2
        assert message in capsys.readouterr().err
    config.data.update(source="prepared", path=str(tmp_path / "whole"))
    _prepare(texts, tmp_path / "whole")
    with pytest.raises(ConfigError, match="is prepared already"):
        llmasos_jax.prepare_data(config, tmp_path / "again")


def test_shards_read_as_one_array(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    parts = [rng.integers(0, 60000, size) for size in (5, 0, 1, 17, 0, 40)]
    paths = []
    for number, part in enumerate(parts):
        paths.append(tmp_path / f"{number}.npy")
        with GrowingArray(paths[-1], np.dtype("<u2")) as array:
            array.append(part[:3])
            array.append(part[3:])
        assert np.array_equal(np.load(paths[-1]), part)
    sharded, plain = ShardedArray(paths), np.concatenate(parts).astype("<u2")
    assert len(sharded) == len(plain) and sharded.shape == plain.shape
    for _ in range(200):
        a, b = rng.integers(-70, 70, 2).tolist()
        assert np.array_equal(sharded[a:b], plain[a:b])
    places = rng.integers(-63, 63, (4, 5))
    assert np.array_equal(sharded[places], plain[places]) and sharded[places].dtype == plain.dtype
    assert sharded[-1] == plain[-1] and np.array_equal(sharded[::3], plain[::3])
    assert np.array_equal(np.unique(sharded), np.unique(plain))
    with pytest.raises(IndexError):
        sharded[63]
    paths[3].write_bytes(paths[3].read_bytes()[:-2])
    with pytest.raises(ValueError, match="has 16 elements, expected 17"):
        ShardedArray(paths)


def test_no_more_shards_than_can_be_open() -> None:
    sizes = np.full(5000, 100, dtype=np.int64)
    plan = cut(Sides(np.arange(5000), np.zeros(0, np.int64), {}), sizes, shard_bytes=100)
    tasks = plan.tasks("train")
    assert 200 < len(tasks) <= 256 and sum(task.size for task in tasks) == 500_000
    assert np.array_equal(np.concatenate([task.indices for task in tasks]), np.arange(5000))
    assert len(plan.tasks("heldout")) == 1


def test_without_a_terminal_a_line_says_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s = iter((0.0, 10.0, 31.0, 45.0, 90.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(now_s))
    with Progress("Tokenising", total=1000, say_every_s=30.0) as progress:
        for _ in range(4):
            progress.advance(100)
    expected = "Tokenising: 20%, about 2 min 4 s left\nTokenising: 40%, about 2 min 15 s left\n"
    assert capsys.readouterr().err == expected


def _as_json(folder: Path, change) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    change(values)
    (folder / "manifest.json").write_text(json.dumps(values))


def test_a_folder_is_known_as_begun_before_anything_else_is_in_it(
    texts: DataConfig, tmp_path: Path
) -> None:
    class Killed(ByteTokenizer):
        def save(self, folder: Path) -> dict:
            if folder.name == "tokenizer":
                raise KeyboardInterrupt
            return super().save(folder)

    what = Preparation(documents(texts), Killed(), texts, shard_bytes=3000)
    with pytest.raises(KeyboardInterrupt):
        prepare(what, tmp_path / "out", tmp_path / "cache")
    _prepare(texts, tmp_path / "out")
    assert check_folder(tmp_path / "out").is_whole


def test_a_manifest_that_was_changed_is_found_and_made_again(
    texts: DataConfig, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _prepare(texts, out)
    whole = _bytes(out)

    def drop_hash(values: dict) -> None:  # as in a folder of version 1
        values.pop("sha256")
        values.pop("kept")
        values["format_version"] = 1

    for change, message in (
        (lambda v: v["train"]["shards"].pop(), "says .* of train, its shards have"),
        (lambda v: v["train"].update(tokens=7), "says 7 tokens of train, its shards have"),
        (lambda v: v.update(digest="0" * 64), "manifest.json has digest 000000000000, the ids"),
    ):
        _as_json(out, change)
        assert check_folder(out).damaged == ("manifest.json: it has another SHA-256 than it says",)
        _as_json(out, drop_hash)
        found = check_folder(out)
        assert not found.is_whole and any(re.search(message, line) for line in found.damaged)
        if "shards" in message:
            with pytest.raises(DataError, match=message):
                open_folder(out, read_manifest(out))
        _prepare(texts, out)  # which brings version 1 to this one, shards as they are
        assert _bytes(out) == whole
    values = json.loads(whole["manifest.json"])
    (out / "manifest.json").write_text(json.dumps(values | {"format_version": 3}))
    with pytest.raises(DataError, match="format_version 3, this program reads 1 to 2"):
        check_folder(out)


def test_a_folder_of_version_1_is_read(texts: DataConfig, tmp_path: Path) -> None:
    new = _prepare(texts, tmp_path / "out")

    def as_version_1(values: dict) -> None:
        values.pop("sha256")
        values.pop("kept")
        values["format_version"] = 1

    _as_json(tmp_path / "out", as_version_1)
    assert check_folder(tmp_path / "out").is_whole
    old = open_prepared(_reading(tmp_path / "out"), ByteTokenizer(), by_sentence=False)
    _assert_same(old, new)


class Filed(ByteTokenizer):
    """Bytes, with a file."""

    def save(self, folder: Path) -> dict:
        (folder / "sub").mkdir()
        (folder / "sub" / "words.txt").write_text("bytes")
        return {"kind": "bytes", "file": "sub/words.txt"}


@pytest.mark.parametrize("name", ["tokenizer/sub/words.txt", "settings.json", "plan.npz"])
@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_what_stands_beside_the_shards_is_checked_and_mended(
    texts: DataConfig, tmp_path: Path, name: str, damage: str
) -> None:
    out = tmp_path / "out"
    what = Preparation(documents(texts), Filed(), texts, shard_bytes=3000)
    prepare(what, out, tmp_path / "cache")
    whole = _bytes(out)
    stamp = (out / "train-00001_ids.npy").stat().st_mtime_ns
    path, content = out / name, (out / name).read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes(content[:-3] if damage == "cut" else flipped)
    (line,) = check_folder(out).damaged
    assert line.startswith(name)
    if name == "plan.npz" and damage == "flipped":
        path.unlink()  # it is as long as before, and hashed by the check alone: as the check says
    elif name == "settings.json" and damage == "flipped":
        with pytest.raises(DataError, match="begun with other settings"):
            prepare(what, out, tmp_path / "cache")
        path.unlink()
    elif name.startswith("tokenizer"):
        with pytest.raises(DataError, match="words.txt is not what was written.*data prepare"):
            prepared_tokenizer(_reading(out))
    prepare(what, out, tmp_path / "cache")
    assert _bytes(out) == whole
    assert (out / "train-00001_ids.npy").stat().st_mtime_ns == stamp


def test_damaged_steps_of_a_stopped_preparation_are_done_again(
    texts: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = _prepare(texts, tmp_path / "straight")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "cut", None)
        with pytest.raises(TypeError):
            _prepare(texts, out)
    scans = sorted(out.glob("scan-*.npz"))
    scans[0].write_bytes(scans[0].read_bytes()[:-30])
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_over_shards", None)
        with pytest.raises(TypeError):
            _prepare(texts, out)
    for content in (b"", b"PK\x03\x04 no archive", (out / "plan.npz").read_bytes()[:-40]):
        (out / "plan.npz").write_bytes(content)
        with monkeypatch.context() as patch:
            patch.setattr(prepare_module, "_over_shards", None)
            with pytest.raises(TypeError):
                _prepare(texts, out)
    _assert_same(_prepare(texts, out), straight)


def test_a_folder_in_the_text_itself_is_refused(
    texts: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(ConfigError, match="texts/ids is inside of data.path=.*/texts, so what"):
        run(texts, ByteTokenizer(), tmp_path / "texts" / "ids", cache, workers=1)
    assert not (tmp_path / "texts" / "ids").exists()
    monkeypatch.setenv("HOME", str(tmp_path))
    found = run(texts, ByteTokenizer(), Path("~/ids"), cache, workers=1)
    assert found.folder == tmp_path / "ids" and check_folder(Path("~/ids")).is_whole
    records = dataclasses.replace(texts, heldout_path="x")
    with pytest.raises(ConfigError, match="heldout_path=x is for objectives that learn from rec"):
        run(records, ByteTokenizer(), tmp_path / "other", cache)
