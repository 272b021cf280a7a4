"""Rows of whole documents, and the order of batches on any number of hosts."""

import collections
import hashlib
import json
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_jax.cli.main import main
from llmasos_jax.config import build
from llmasos_jax.data import fitting
from llmasos_jax.data.fitting import FittedRows
from llmasos_jax.data.objectives import causal, mlm
from llmasos_jax.data.packing import TokenDocuments
from llmasos_jax.data.pipeline import open_data
from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
from llmasos_jax.data.tokenizers.vocabulary import stand_in
from llmasos_jax.errors import ConfigError

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=60)


def corpus(lengths):
    """Documents whose tokens are all different, from 1 on."""
    ends = np.cumsum([1, *lengths])
    return TokenDocuments.from_lists([range(a, b) for a, b in zip(ends, ends[1:], strict=False)])


@settings(deadline=None, derandomize=True, max_examples=60)
@given(LENGTHS, st.integers(2, 16), st.integers(1, 12))
def test_each_token_is_read_once_each_pair_scored_once_and_no_short_document_is_cut(
    lengths, size, block
):
    documents = corpus(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "BLOCK", block)
        rows = list(FittedRows(documents, size))
    read = collections.Counter(
        int(t) for row in rows for t in row.tokens[:-1][row.segment_ids[:-1] > 0]
    )
    assert read == collections.Counter(range(1, sum(lengths) + 1))
    pairs = collections.Counter()
    for row in rows:
        batch = causal(row)
        for token, target, weight in zip(
            batch.tokens, batch.targets, batch.loss_weights, strict=True
        ):
            if weight:
                pairs[int(token), int(target)] += 1
    ends = np.cumsum([1, *lengths])
    wanted = [(t, t + 1) for a, b in zip(ends, ends[1:], strict=False) for t in range(a, b - 1)]
    assert pairs == collections.Counter(wanted)
    # A document that fits is one segment, from position 0 on.
    for a, b in zip(ends, ends[1:], strict=False):
        if 0 < b - a <= size:
            (row,) = [row for row in rows if a in row.tokens[:-1]]
            at = int(np.argmax(row.tokens == a))
            assert row.tokens[at : at + b - a].tolist() == list(range(a, b))
            assert row.positions[at : at + b - a].tolist() == list(range(b - a))
            assert len(set(row.segment_ids[at : at + b - a].tolist())) == 1


def test_rows_are_fuller_than_one_document_each():
    lengths = np.random.default_rng(0).integers(1, 200, size=3000).tolist()
    rows = FittedRows(corpus(lengths), 256)
    assert 1 - sum(lengths) / (len(rows) * 256) < 0.05
    assert len(rows) < 0.5 * len(lengths)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fitting")
    rng = np.random.default_rng(1)
    for name, letters, count in (("code", "ABCDEFGH", 40), ("prose", "abcdefgh", 25)):
        (path / name).mkdir()
        for i in range(count):
            text = "".join(rng.choice(list(letters), size=5 + 4 * i))
            (path / name / f"{i:02}.txt").write_text(f"{i} {text}")
    return path


def config(folder, packing, **data):
    parts = {
        name: {"source": "text", "path": str(folder / name), "weight": weight}
        for name, weight in (("code", 2.0), ("prose", 1.0))
    }
    values = {"mixture": parts, "sequence_length": 32, "heldout_fraction": 0.1, "packing": packing}
    model = {"vocab_size": 260, "embedding_dim": 8, "num_layers": 1}
    return build.from_dict({"model": model, "data": values | data, "train": {"batch_size": 8}})


def digest(batch):
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(batch):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("packing", ["concatenate", "first_fit"])
@pytest.mark.parametrize("objective", ["causal", "mlm"])
def test_every_batch_of_two_epochs_is_the_same_on_any_number_of_hosts(folder, packing, objective):
    cfg = config(folder, packing)
    prepare = None if objective == "causal" else mlm(cfg, stand_in(260))

    def opened(index, count):
        return open_data(
            cfg,
            ByteTokenizer(),
            folder / "cache",
            process_index=index,
            process_count=count,
            prepare=prepare,
        )

    one = opened(0, 1)
    steps = 2 * max(
        -(-rows * 3 // (share * 8))
        for rows, share in zip(one.num_rows_of.values(), (2, 1), strict=True)
    )
    wanted = [digest(one.train[step]) for step in range(steps)]
    assert len(set(wanted)) == steps
    for count in (2, 4, 8):
        parts = [opened(index, count) for index in range(count)]
        for step in range(steps):
            rows = [part.train[step] for part in parts]
            whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)
            assert digest(whole) == wanted[step], (count, step)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.lists(st.integers(6, 50), min_size=6, max_size=30), st.sampled_from([1, 2, 4]))
def test_every_document_is_seen_exactly_once_an_epoch(lengths, batch_size):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "text"
        path.mkdir()
        for i, length in enumerate(lengths):
            (path / f"{i:03}.txt").write_text(chr(0x100 + i) * length)  # two bytes each
        for packing in ("concatenate", "first_fit"):
            values = {
                "source": "text",
                "path": str(path),
                "sequence_length": 16,
                "packing": packing,
            }
            model = {"vocab_size": 260, "embedding_dim": 8, "num_layers": 1}
            cfg = build.from_dict(
                {
                    "model": model,
                    "data": values | {"heldout_fraction": 0.0},
                    "train": {"batch_size": batch_size},
                }
            )
            data = open_data(cfg, ByteTokenizer(), Path(name) / "cache")
            rows, epochs = data.num_train_rows, 2
            seen = collections.Counter()
            found = [
                (batch.tokens[i], batch.segment_ids[i])
                for batch in map(data.train.__getitem__, range(-(-rows * epochs // batch_size)))
                for i in range(batch_size)
            ]
            for tokens, segments in found[: rows * epochs]:
                seen.update(tokens[segments > 0].tolist())
            tokenizer, wanted = ByteTokenizer(), collections.Counter()
            for file in path.glob("*.txt"):
                wanted.update(tokenizer.encode(file.read_text()))
                wanted.update([] if tokenizer.eos_id is None else [tokenizer.eos_id])
            assert seen == collections.Counter({t: n * epochs for t, n in wanted.items()})


def test_what_does_not_go_with_first_fit_is_refused(folder):
    with pytest.raises(ConfigError, match=r"data.packing='first-fit' is not known"):
        config(folder, "first-fit")
    with pytest.raises(ConfigError, match="data.packing does not go with data.streaming"):
        config(folder, "first_fit", mixture={}, source="jsonl", path="x", streaming=True)


def test_the_share_of_padding_is_told(folder, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "home"))
    words = [f"--config.data.path={folder / 'code'}", "--config.data.source=text"]
    words += ["--config.data.packing=first_fit", "--config.data.sequence_length=64", "--json"]
    assert main(["data", "show", "--config=tiny", *words]) == 0
    seen = json.loads(capsys.readouterr().out)
    rows = seen["train_rows"] * 64
    assert seen["padding"] == pytest.approx(1 - seen["train_tokens"] / rows)
    assert 0 < seen["padding"] < 0.3
    assert (
        main(["data", "show", "--config=bert_tiny", *words, "--config.model.vocab_size=200"]) == 2
    )
    assert 'objective.name="mlm_nsp" makes its own rows' in capsys.readouterr().err
