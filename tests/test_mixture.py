"""Mixtures: exact shares, each row once an epoch of its part, the same bytes on any hosts."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_jax.config import build
from llmasos_jax.config.flags import apply_overrides, with_values
from llmasos_jax.config.schema import Config, TrainConfig
from llmasos_jax.data import corpus as corpus_module
from llmasos_jax.data.mixture import MixedRows, TrainingDocuments, whole_shares
from llmasos_jax.data.packing import PackedRows
from llmasos_jax.data.pipeline import Data, open_data
from llmasos_jax.data.sources import documents
from llmasos_jax.data.split import split_documents
from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
from llmasos_jax.errors import ConfigError, DataError
from llmasos_jax.train import run as run_module
from llmasos_jax.train.workdir import check_same_run

TWO = {"code": {"weight": 3.0}, "prose": {"weight": 1.0}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixture")
    rng = np.random.default_rng(0)
    for name, letters, count in (("code", "ABCDEFGH", 20), ("prose", "abcdefgh", 7)):
        (path / name).mkdir()
        for i in range(count):
            text = "".join(rng.choice(list(letters), size=8 + 7 * i))
            (path / name / f"{i:02}.txt").write_text(text)
    return path


def _is_of(row: np.ndarray, name: str) -> bool:
    first = ord("A" if name == "code" else "a")
    return bool(((row >= first) & (row < first + 8)).any())


def _config(folder: Path, parts: dict | None = None, **data: object) -> Config:
    mixture = {
        name: {"source": "text", "path": str(folder / name), **part}
        for name, part in (parts or TWO).items()
    }
    values = {"mixture": mixture, "sequence_length": 16, "heldout_fraction": 0.2, **data}
    model = {"vocab_size": 259, "embedding_dim": 8, "num_layers": 1}
    return build.from_dict({"model": model, "data": values, "train": {"batch_size": 4}})


def _open(folder: Path, cfg: Config, **more) -> Data:
    return open_data(cfg, ByteTokenizer(), folder / "cache", **more)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    weights=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    start=st.integers(0, 10**12),
)
def test_each_stretch_has_each_part_exactly_and_in_order(weights: list[int], start: int) -> None:
    shares = list(whole_shares(dict(enumerate(weights))).values())  # pyright: ignore
    rows = MixedRows([range(10**15)] * len(shares), shares)
    total = sum(shares)
    found = [rows.place(start + i) for i in range(2 * total)]
    for part, share in enumerate(shares):
        numbers = [number for p, number in found if p == part]
        assert numbers == list(range(numbers[0], numbers[0] + 2 * share))
    # Up to any row each part has its share of the rows so far, but for one row at most per part.
    for k in range(1, total + 1):
        firsts = [p for p, _ in (rows.place(i) for i in range(k))]
        for part, share in enumerate(shares):
            assert abs(firsts.count(part) - k * share / total) <= len(shares)


def test_weights_that_are_no_fractions_are_millionths() -> None:
    assert whole_shares({"a": 1 / 3, "b": 2 / 3}) == {"a": 1, "b": 2}
    odd = whole_shares({"a": 3.14159, "b": 1.0})
    assert odd["a"] / (odd["a"] + odd["b"]) == pytest.approx(3.14159 / 4.14159, abs=1e-6)
    assert whole_shares({"a": 1e-12, "b": 1.0})["a"] == 1


def test_each_part_goes_through_its_own_epochs(folder: Path) -> None:
    data = _open(folder, _config(folder))
    rows = [row for n in range(60) for row in data.train[n].tokens]
    alone = {}
    for name in TWO:
        cfg = _config(folder, {name: {}})
        alone[name] = _open(folder, cfg)
    place = MixedRows([(), ()], [3, 1]).place
    for part, name in enumerate(TWO):
        own = [row.tobytes() for i, row in enumerate(rows) if place(i)[0] == part]
        assert sum(_is_of(np.frombuffer(row, np.int32), name) for row in own) > 0.9 * len(own)
        length = alone[name].num_train_rows
        epoch = sorted(own[:length])
        assert sorted(own[length : 2 * length]) == epoch and len(set(epoch)) == length
        assert own[length : 2 * length] != own[:length]
    total = sum(part.num_train_rows for part in alone.values())
    assert data.num_train_rows == total


def test_the_held_out_rows_are_of_one_part_a_batch_and_take_turns(folder: Path) -> None:
    data = _open(folder, _config(folder))
    names = [data.heldout.part(i) for i in range(len(data.heldout))]
    assert names[:2] == ["code", "prose"] and set(names) == set(TWO)
    for i, name in enumerate(names):
        assert not _is_of(data.heldout[i].tokens, "prose" if name == "code" else "code")
    read = sum(int((data.heldout[i].segment_ids > 0).sum()) for i in range(len(names)))
    assert read == data.num_heldout_tokens


def test_other_weights_tokenise_nothing_again(folder: Path, monkeypatch) -> None:
    first = _open(folder, _config(folder))
    monkeypatch.setattr(corpus_module, "build_folder", None)
    other = _open(folder, _config(folder, {"code": {"weight": 1.0}, "prose": {"weight": 2.0}}))
    assert other.corpus.digest != first.corpus.digest
    with pytest.raises(DataError, match="was made on a corpus with digest"):
        other.restore(first.state())


def test_a_part_keeps_its_order_when_another_comes(folder: Path) -> None:
    only, both = _open(folder, _config(folder, {"code": {}})), _open(folder, _config(folder))
    code = [r for n in range(12) for r in both.train[n].tokens if _is_of(r, "code")]
    assert np.array_equal(np.stack(code), [r for n in range(9) for r in only.train[n].tokens])


def test_a_tokenizer_sees_what_no_part_holds_out(folder: Path) -> None:
    cfg = _config(folder)
    seen = list(TrainingDocuments(cfg.data, folder / "cache"))
    for name in TWO:
        own = dataclasses.replace(cfg.data, mixture={}, source="text", path=str(folder / name))
        texts = documents(own)
        split = split_documents(texts, own)
        assert {texts[i] for i in split.train} <= set(seen)
        assert not {texts[i] for i in split.heldout} & set(seen)


def test_going_on_with_another_weight_is_refused_by_name(folder: Path) -> None:
    before = _config(folder)
    now = _config(folder, {"code": {"weight": 2.0}, "prose": {"weight": 1.0}, "more": {}})
    with pytest.raises(ConfigError) as caught:
        check_same_run(before, now)
    assert "data.mixture.code.weight: 3.0 -> 2.0" in str(caught.value)
    assert "data.mixture.more.weight: not there -> 1.0" in str(caught.value)


def test_fields_of_parts_are_overridden_by_name(folder: Path) -> None:
    config = build.read_config("quickstart")
    config.data.mixture = {"code": {"source": "stdlib"}, "prose": {"path": "x"}}
    config = build.read_config(config)
    apply_overrides(config, {"data.mixture.code.weight": "3", "data.mixture.prose.path": "y"})
    built = build.build(config)
    assert built.data.mixture["code"].weight == 3.0 and built.data.mixture["prose"].path == "y"
    assert build.from_dict(json.loads(json.dumps(build.to_dict(built)))) == built
    again = with_values(build.read_config(built), {"data.mixture.code.weight": 4.0})
    assert again.data.mixture.code.weight == 4.0
    for path, said in (
        ("data.mixture.cod.weight", 'no part "cod"; did you mean "code"?'),
        ("data.mixture.code.wieght", 'did you mean "data.mixture.code.weight"?'),
        ("data.mixture", "has parts by name; set a field of one: data.mixture.NAME.weight"),
    ):
        with pytest.raises(ConfigError, match=".*") as caught:
            apply_overrides(config, {path: "1"})
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"mixture": {"a b": {}}}, 'data.mixture has a part "a b"'),
        ({"mixture": {"a": {"weight": 0.0}}}, "data.mixture.a.weight=0.0 must be above 0"),
        ({"mixture": {"a": {"weight": "much"}}}, "data.mixture.a.weight='much'"),
        ({"mixture": {"a": {"wight": 1.0}}}, 'did you mean "data.mixture.a.weight"?'),
        ({"mixture": {"a": {}}, "path": "x"}, "data.path=x does not go with data.mixture"),
        (
            {"mixture": {"a": {}}, "text_field": "x"},
            "data.text_field=x does not go with data.mixture; leave it out, and set it in",
        ),
        ({"mixture": 3}, "expected groups of fields by name"),
    ],
)
def test_a_wrong_mixture_is_one_clear_line(data: dict, said: str) -> None:
    model = {"vocab_size": 259, "embedding_dim": 8, "num_layers": 1}
    with pytest.raises(ConfigError) as caught:
        build.from_dict({"model": model, "data": data})
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_too_few_batches_for_the_parts_are_refused(folder: Path) -> None:
    cfg = _config(folder)
    with pytest.raises(ConfigError, match="eval_batches=1 is fewer than the 2 parts"):
        dataclasses.replace(cfg, train=TrainConfig(eval_batches=1))


def test_errors_name_the_part(folder: Path) -> None:
    cfg = _config(folder, {"code": {}, "gone": {}})
    with pytest.raises(DataError, match=r"data\.mixture\.gone: data\.path=.*is not there"):
        _open(folder, cfg)
    with pytest.raises(DataError, match=r"data\.mixture\.gone: data\.path=.*is not there"):
        TrainingDocuments(cfg.data, folder / "cache")
    (folder / "blank").mkdir()
    (folder / "blank" / "0.txt").write_text(" ")
    cfg = _config(folder, {"code": {}, "blank": {}})
    with pytest.raises(DataError, match=r"data\.mixture\.blank: .* all are empty"):
        len(TrainingDocuments(cfg.data, folder / "cache"))


def test_hosts_and_reading_ahead_change_nothing(folder: Path) -> None:
    cfg = _config(folder)
    one = _open(folder, cfg)
    two = [_open(folder, cfg, process_index=p, process_count=2) for p in range(2)]
    for step in range(6):
        ahead = next(one.train)
        parts = [data.train[step] for data in two]
        joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
        for a, b in zip(jax.tree.leaves(ahead), jax.tree.leaves(joined), strict=True):
            assert a.tobytes() == b.tobytes()
    one.close()


@pytest.fixture
def twice(tmp_path: Path) -> Path:
    """Two folders that share half of their texts; of those each splits some otherwise."""
    rng = np.random.default_rng(1)
    texts = ["".join(rng.choice(list("abcdefgh"), size=30)) for _ in range(90)]
    for name, own in (("code", texts[:60]), ("prose", texts[30:])):
        (tmp_path / name).mkdir()
        for i, text in enumerate(own):
            (tmp_path / name / f"{i:02}.txt").write_text(text)
    return tmp_path


def _documents(side) -> list[tuple[int, ...]]:
    return [
        tuple(side.ids[a:b].tolist())
        for a, b in zip(side.offsets[:-1], side.offsets[1:], strict=True)
    ]


@pytest.mark.parametrize("by_sentence", [False, True])
def test_what_one_part_trains_on_no_part_holds_out(twice: Path, by_sentence: bool) -> None:
    cfg = _config(twice, heldout_fraction=0.3)
    corpus = _open(twice, cfg, by_sentence=by_sentence, rows=_DocumentRows).corpus
    trained = {d for part in corpus.parts.values() for d in _documents(part.train)}
    removed = {}
    for name, part in corpus.parts.items():
        alone = _open(twice, _config(twice, {name: {}}, heldout_fraction=0.3), rows=_DocumentRows)
        before = _documents(alone.corpus.parts[name].heldout)
        if by_sentence:
            assert part.heldout.sentences is not None
            ends = set(part.heldout.sentences.tolist())
            assert {0, *np.asarray(part.heldout.offsets).tolist()} <= ends
        else:
            assert _documents(part.heldout) == [d for d in before if d not in trained]
            assert _documents(alone.corpus.parts[name].train) == _documents(part.train)
        removed[name] = len(before) - part.heldout.num_documents
        assert not trained & set(_documents(part.heldout))
    assert sum(removed.values()) > 0
    assert corpus.trained_elsewhere == {n: count for n, count in removed.items() if count}


class _DocumentRows(PackedRows):
    """Any rows: the corpus is looked at, not its batches."""


def test_a_small_part_within_another_holds_nothing_out_by_itself(tmp_path: Path) -> None:
    for name, count in (("code", 40), ("prose", 2)):
        (tmp_path / name).mkdir()
        rng = np.random.default_rng(2)
        for i in range(count):
            text = "".join(rng.choice(list("abcdefgh"), size=30))
            (tmp_path / name / f"{i:02}.txt").write_text(text)
    data = _open(tmp_path, _config(tmp_path, heldout_fraction=0.05))
    assert data.corpus.trained_elsewhere == {"prose": 1}
    assert {data.heldout.part(i) for i in range(len(data.heldout))} == {"code"}
    # What was found is kept, and found again where that is damaged.
    (kept,) = (path for path in (tmp_path / "cache").glob("overlap-*") if np.load(path).size)
    kept.write_bytes(kept.read_bytes()[:-1])
    again = _open(tmp_path, _config(tmp_path, heldout_fraction=0.05))
    assert again.corpus.trained_elsewhere == {"prose": 1}


def test_documents_that_are_left_out_are_said(
    twice: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filters = {"min_chars": 30}
    (twice / "prose" / "short.txt").write_text("abc")
    cfg = _config(twice, heldout_fraction=0.3, filters=filters, deduplicate="exact")
    (twice / "code" / "again.txt").write_bytes((twice / "code" / "00.txt").read_bytes())
    run_module._say_counts(_open(twice, cfg))
    found = capsys.readouterr().err.splitlines()
    assert any("held-out documents are trained on in another part" in line for line in found)
    assert "note: documents left out of data.mixture.code: 1 (1.6%) duplicate" in found
    assert "note: documents left out of data.mixture.prose: 1 (1.6%) filters.min_chars" in found
