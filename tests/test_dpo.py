"""Preference pairs: their rows, and a loss that is trl's, on any mesh."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from on_meshes import SMALL, assert_mesh_is_one_device, config, trainer_of
from tolerances import SIMPLE

from llmasos_jax.config.finetune import FinetuneConfig
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config, DataConfig, MeshConfig, ObjectiveConfig, TrainConfig
from llmasos_jax.data.batch import Batch
from llmasos_jax.data.batches import stack
from llmasos_jax.data.pipeline import open_data
from llmasos_jax.data.records.encode import Scored
from llmasos_jax.data.records.preferences import (
    PairRows,
    pair_batch,
    read_preferences,
    with_reference,
)
from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
from llmasos_jax.errors import ConfigError, DataError
from llmasos_jax.train.objective import build_objective
from llmasos_jax.train.preference import pair_log_probs

DPO = ObjectiveConfig("dpo")
BETA = 0.3


def run_config(folder: Path, length: int = 32, too_long: str = "error", **data: Any) -> Config:
    rows = [
        {"prompt": "Why?", "chosen": f"{i} is so", "rejected": "no", "metadata": i}
        for i in range(4)
    ]
    rows.append({"prompt": "Why should it be?", "chosen": "Yes", "rejected": "No"})
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Config(
        ModelConfig(259, 8, 1, context_length=64),
        data=DataConfig("jsonl", str(folder / "a.jsonl"), sequence_length=length, **data),
        objective=DPO,
        finetune=FinetuneConfig(beta=BETA, too_long=too_long),
        train=TrainConfig(batch_size=2, steps=2),
        mesh=MeshConfig(data=1),
    )


def text(ids: np.ndarray) -> str:
    return "".join(chr(i) if i < 256 else {256: "<", 257: ">"}[int(i)] for i in ids)


def test_a_row_has_the_prompt_with_both_answers(tmp_path: Path) -> None:
    cfg = run_config(tmp_path, 64, heldout_fraction=0.4)
    found = read_preferences(cfg, ByteTokenizer(), tmp_path)
    assert (len(found.train), len(found.heldout)) == (3, 2)
    lines = set()
    for row in [*found.train, *found.heldout]:
        parts = [text(row.scored.tokens[row.scored.segment_ids == s]) for s in (1, 2)]
        lines.add(tuple(parts))
        batch = pair_batch(row)
        at = batch.loss_weights > 0
        targets = [text(batch.targets[at & (batch.segment_ids == s)]) for s in (1, 2)]
        assert [part.split("?")[1] for part in parts] == targets
        assert np.isnan(batch.extra["reference"]).all()
    assert ("<Why?2 is so>", "<Why?no>") in lines and len(lines) == 5


def test_what_is_too_long_loses_the_same_of_both(tmp_path: Path) -> None:
    read = lambda *args: read_preferences(run_config(tmp_path, *args), ByteTokenizer(), tmp_path)
    with pytest.raises(DataError) as error:
        read()
    assert str(error.value) == (
        f"{tmp_path}/a.jsonl:5: its answers have 22 and 21 tokens with their prompt, more than "
        "data.sequence_length=32; raise it (the model reads up to 64), shorten the record, or set "
        'finetune.too_long="drop" or "truncate"'
    )
    assert dict(read(32, "drop").counts) == {"dropped, too long": 1}
    cut = read(32, "truncate")
    assert dict(cut.counts) == {"cut, too long": 1}
    rows = [text(row.scored.tokens) for row in (*cut.train, *cut.heldout)]
    assert any(row.startswith("hould it be?Yes>") for row in rows)
    with pytest.raises(DataError, match="and the prompt is too short to cut 9 tokens of it, more"):
        read(4, "truncate")


def test_answers_that_a_template_makes_equal_are_no_pair(tmp_path: Path) -> None:
    cfg = run_config(tmp_path, 64)
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    rows = [{"prompt": "Why?", "chosen": answer, "rejected": "no "} for answer in ("yes", "no")]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plain = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, heldout_fraction=0.0))
    assert len(read_preferences(plain, ByteTokenizer(), tmp_path).train) == 2
    trims = dataclasses.replace(plain, finetune=FinetuneConfig(chat_template=template))
    with pytest.raises(DataError, match=r"a\.jsonl:2: its two answers are the same 24 tokens wi"):
        read_preferences(trims, ByteTokenizer(), tmp_path)


def test_the_reference_is_given_once(tmp_path: Path) -> None:
    cfg = run_config(tmp_path, 64, heldout_fraction=0.4)
    found = read_preferences(cfg, ByteTokenizer(), tmp_path)
    train, heldout = np.arange(6.0).reshape(3, 2), -np.ones((2, 2))
    known = with_reference(found, train, heldout)
    assert known.digest == found.digest
    given = np.stack([pair_batch(row).extra["reference"] for row in known.train])
    np.testing.assert_array_equal(given, train)
    objective = build_objective(cfg)
    data = open_data(
        cfg,
        ByteTokenizer(),
        tmp_path,
        prepare=objective.prepare,
        examples=lambda *_: known,
    )
    batch = data.train[0]
    for row, reference in zip(batch.tokens, batch.extra["reference"], strict=True):
        place = next(i for i, r in enumerate(known.train) if (r.scored.tokens == row).all())
        np.testing.assert_array_equal(reference, train[place])
    data.close()
    for wrong in (train[:2], train * np.nan):
        with pytest.raises(DataError, match=r"reference for train: .*expected finite \(3, 2\)"):
            with_reference(found, wrong, heldout)


def pairs(count: int, vocab_size: int, length: int = 16) -> list[tuple[Scored, Scored]]:
    """Random pairs whose answers have different lengths."""
    rng = np.random.default_rng(0)

    def answered(prompt: np.ndarray, n: int) -> Scored:
        ids = np.r_[prompt, rng.integers(0, vocab_size, n)].astype(np.int32)
        return Scored(ids, np.arange(len(ids)) >= len(prompt), "a:1")

    found = []
    for _ in range(count):
        prompt = rng.integers(0, vocab_size, rng.integers(1, 4))
        found.append((answered(prompt, int(rng.integers(1, 5))), answered(prompt, 3)))
    return found


def pair_batch_of(count: int, vocab_size: int, fill: int = 0) -> Batch:
    """A batch of random pairs and rows of padding."""
    found = pairs(count, vocab_size)
    reference = np.random.default_rng(1).normal(size=(count, 2)).astype(np.float32) * 3
    rows = [pair_batch(row) for row in PairRows(found, 16, reference)]
    return stack([*rows, *[jax.tree.map(np.zeros_like, rows[0])] * fill])


def rows_of(cfg: Config) -> Batch:
    return pair_batch_of(cfg.train.batch_size - 1, cfg.model.vocab_size, fill=1)


@pytest.mark.parametrize(
    "options",
    [
        {"mesh": MeshConfig(data=2, fsdp=(2,), tensor=2), "loss_chunk": 6},
        {"mesh": MeshConfig(fsdp=(2,)), "accumulate_steps": 4},
    ],
    ids=["mixed", "accumulated"],
)
def test_loss_and_gradients_do_not_depend_on_the_mesh(options: dict[str, Any]) -> None:
    cfg = config(SMALL, objective=DPO, dropout_rate=0.0, **options)
    sums = assert_mesh_is_one_device(cfg, rows_of)
    assert float(sums.weight_sum) == 15  # a row of padding is no pair


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match='objective.name="dpo" adds up .* mesh.context=2 splits'):
        build_objective(config(SMALL, MeshConfig(context=2), objective=DPO))
    with pytest.raises(ConfigError, match='objective.name="dpo" has no z-loss, and objective.z_l'):
        build_objective(config(SMALL, objective=ObjectiveConfig("dpo", z_loss=0.1)))
    with pytest.raises(ConfigError, match='objective.name="dpo" predicts each token from those'):
        build_objective(config(SMALL.replace(causal=False), objective=DPO))


class _Gathered:
    """What trl calls an accelerator, of one process."""

    device = "cpu"

    def __getattr__(self, name: str) -> Any:
        return lambda x: x


def trl_loss(model: Any, found: list[tuple[Scored, Scored]], reference: np.ndarray) -> Any:
    """What trl's own trainer makes of the batch: its loss and its metrics."""
    import collections

    import torch
    from trl.trainer.dpo_trainer import DPOTrainer

    texts = [pair[side] for side in (0, 1) for pair in found]
    size = max(map(len, texts))
    ids, mask = torch.zeros(2, len(texts), size, dtype=torch.long)
    attention = torch.zeros(len(texts), size, dtype=torch.long)
    for row, scored in enumerate(texts):
        ids[row, : len(scored)] = torch.from_numpy(scored.ids.astype(np.int64))
        mask[row, : len(scored)] = torch.from_numpy(scored.is_scored.astype(np.int64))
        attention[row, : len(scored)] = 1

    def run(input_ids: Any, attention_mask: Any, labels: Any, **_: Any) -> Any:
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1]
        after = labels[:, 1:]
        log_probs = logits.log_softmax(-1).gather(-1, after.clamp(min=0)[..., None])[..., 0]
        zeros = torch.zeros_like(log_probs)
        return SimpleNamespace(
            log_probs=log_probs * (after >= 0), entropy=zeros, mean_logits=zeros, is_top1=zeros > 0
        )

    trainer: Any = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=_Gathered(),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        beta=BETA,
        label_smoothing=0.0,
        use_weighting=False,
        _metrics={"eval": collections.defaultdict(list)},
        _total_train_tokens=0,
    )
    inputs = {
        "input_ids": ids,
        "attention_mask": attention,
        "completion_mask": mask,
        "ref_chosen_logps": torch.from_numpy(reference[:, 0]),
        "ref_rejected_logps": torch.from_numpy(reference[:, 1]),
    }
    loss = DPOTrainer._compute_loss(trainer, run, inputs, False)
    return loss, {name: values[0] for name, values in trainer._metrics["eval"].items()}


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")  # of torch, transformers and trl
def test_loss_and_gradients_are_trls() -> None:
    pytest.importorskip("torch", reason="needs the extra `parity`")
    pytest.importorskip("trl", reason="needs trl: pip install --no-deps trl")
    from torch_twin import gradients, named_gradients, twin

    model, params = twin()
    batch, found = pair_batch_of(4, model.cfg.vocab_size), pairs(4, model.cfg.vocab_size)
    cfg = Config(
        model.cfg,
        data=DataConfig(sequence_length=16),
        objective=DPO,
        finetune=FinetuneConfig(beta=BETA),
        train=TrainConfig(batch_size=4, steps=2, loss_chunk=6),
        mesh=MeshConfig(data=1),
    )
    sums, grads = gradients(cfg, params, batch)
    loss, metrics = trl_loss(model.torch, found, batch.extra["reference"])
    loss.backward()
    means = {name: float(value) for name, value in sums.means().items()}
    assert means["loss"] == means["nll"] == pytest.approx(float(loss.detach()), rel=SIMPLE)
    for ours, theirs in (
        ("accuracy", "rewards/accuracies"),
        ("margin", "rewards/margins"),
        ("chosen_reward", "rewards/chosen"),
        ("rejected_reward", "rewards/rejected"),
    ):
        assert means[ours] == pytest.approx(metrics[theirs], rel=SIMPLE, abs=SIMPLE), ours
    wanted = {n: p.grad.numpy() for n, p in model.torch.named_parameters()}
    mine = named_gradients(model, jax.tree.map(lambda g: g / 4, grads))
    assert mine.keys() == wanted.keys()
    for name, value in wanted.items():
        error = np.linalg.norm(mine[name] - value) / np.linalg.norm(value)
        assert error < SIMPLE, (name, error)
    # The reference itself is what the loss adds up: with it in the batch the margin is 0.
    trainer = trainer_of(cfg)
    reference = pair_log_probs(cfg, trainer.definition.bind(params), batch, _plain(trainer))
    np.testing.assert_allclose(np.mean(reference[:, 0]), metrics["logps/chosen"], rtol=SIMPLE)
    np.testing.assert_allclose(np.mean(reference[:, 1]), metrics["logps/rejected"], rtol=SIMPLE)
    same = dataclasses.replace(batch, extra={"reference": np.asarray(reference)})
    at_start = trainer.objective.loss(trainer.definition.bind(params), same, _plain(trainer), None)
    assert float(at_start.means()["loss"]) == pytest.approx(np.log(2), rel=SIMPLE)


def _plain(trainer: Any) -> Any:
    return dataclasses.replace(trainer.runtime, manual=None)
