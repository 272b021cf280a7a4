"""The loop: order of events, values, evaluation, failure, what is compiled, what is written."""

import dataclasses
import json
import math
import signal
import types

import jax.numpy as jnp
import pytest
from small_run import Record, small_config
from tolerances import SIMPLE

from llmasos_jax.data.batches import HeldoutBatches
from llmasos_jax.errors import ConfigError, DataError, TrainingFailedError
from llmasos_jax.train import metrics
from llmasos_jax.train.hooks import RunInfo, read_metrics
from llmasos_jax.train.loop import _Run
from llmasos_jax.train.objective import LossSum
from llmasos_jax.train.preemption import StopRequest
from llmasos_jax.train.progress import ProgressBar
from llmasos_jax.train.result import TrainResult, read_result
from llmasos_jax.train.run import run
from llmasos_jax.train.step import Trainer


def steps_on_disk(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def test_events_files_and_result(tmp_path, compiles, capsys, monkeypatch):
    """One run; everything that can be seen of it."""
    cfg = small_config(
        tmp_path,
        steps=6,
        train={"eval_every_steps": 4},
        checkpoint={"every_steps": 3, "keep": 2},
        sample={"prompt": "def ", "every_steps": 5},
    )
    record, counts = Record(), []
    # A batch is put on the devices after the step before it was dispatched.
    put = lambda self, batch: counts.append(compiles.count) or original(self, batch)
    original = Trainer.put
    monkeypatch.setattr(Trainer, "put", put)
    sample = lambda config, tokenizer, params: tokenizer.decode(tokenizer.encode("x = 1"))
    result = run(cfg, tmp_path / "run", (record,), sample, cache=tmp_path / "cache")

    assert record.events == [
        ("start", 0),
        ("step", 1),
        ("step", 2),
        ("step", 3),
        ("checkpoint", 3),
        ("step", 4),
        ("eval", 4),
        ("step", 5),
        ("sample", "x = 1"),
        ("step", 6),
        ("eval", 6),
        ("checkpoint", 6),
        ("sample", "x = 1"),
        ("end", 6),
    ]
    assert counts[0] < counts[1] == counts[2]  # the second step compiled nothing
    assert steps_on_disk(tmp_path / "run") == [3, 6]
    _check_values(record.values)
    _check_files(tmp_path / "run", record)
    assert result == read_result(tmp_path / "run")
    assert result.heldout_perplexity == pytest.approx(math.exp(result.heldout_loss))
    assert result.heldout_loss == record.heldout[6]["heldout_loss"]
    assert 1 < result.bigram_perplexity < result.unigram_perplexity
    assert (result.step, result.tokens, result.sample) == (6, 6 * 8 * 32, "x = 1")
    assert "step 4  held-out loss" in capsys.readouterr().err

    # The same command again has nothing to do, and says so.
    again = run(cfg, tmp_path / "run", (record,), cache=tmp_path / "cache")
    assert again == result and record.events[-1] == ("end", 6)
    assert "has done its 6 steps" in capsys.readouterr().err

    # More steps go on; another learning rate does not, and every difference is listed.
    longer = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, steps=7))
    assert run(longer, tmp_path / "run", (record,), cache=tmp_path / "cache").step == 7
    other = dataclasses.replace(
        longer,
        name="other",
        optim=dataclasses.replace(cfg.optim, learning_rate=0.5),
        train=dataclasses.replace(cfg.train, steps=9, seed=3),
    )
    with pytest.raises(ConfigError) as caught:
        run(other, tmp_path / "run", cache=tmp_path / "cache")
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == [
        "name",
        "optim.learning_rate",
        "train.seed",
    ]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["train"]["steps"] == 7  # the refused call wrote nothing


def test_a_sampler_that_fails_costs_no_step(tmp_path):
    cfg = small_config(tmp_path, steps=2, sample={"prompt": "def "})

    def sample(config, tokenizer, params):
        raise ValueError("no text")

    with pytest.raises(ValueError, match="no text"):
        run(cfg, tmp_path / "run", sample=sample, cache=tmp_path / "cache")
    assert steps_on_disk(tmp_path / "run") == [2]
    again = run(cfg, tmp_path / "run", sample=lambda *_: "x", cache=tmp_path / "cache")
    assert (again.step, again.sample) == (2, "x")


def _check_values(values):
    assert values[1]["loss"] == pytest.approx(math.log(259), rel=0.1)
    assert values[6]["loss"] < values[1]["loss"] - 0.3
    for step, found in values.items():
        assert found["perplexity"] == pytest.approx(math.exp(found["nll"]))
        assert found["tokens"] == step * 8 * 32
        assert min(found[n] for n in ("grad_norm", "param_norm", "update_norm")) > 0
        assert 0 <= found["accuracy"] <= 1
    assert values[1]["learning_rate"] == pytest.approx(5e-3)
    assert values[6]["learning_rate"] == pytest.approx(1e-3)
    assert "tokens_per_s" not in values[1]  # it compiled
    assert values[6]["tokens_per_s"] * values[6]["step_time_s"] == pytest.approx(8 * 32)
    assert values[6]["mfu"] > 0 and 0 <= values[6]["data_wait"] <= 1


def _check_files(workdir, record):
    lines = read_metrics(workdir / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4, 5, 6, 6]
    assert lines[0] == {"step": 1, **record.values[1]}
    assert lines[4] == {"step": 4, **record.heldout[4]}
    assert json.loads((workdir / "tokenizer" / "entry.json").read_text()) == {"kind": "bytes"}

    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (path,) = (workdir / "tensorboard").iterdir()
    scalars = {
        (event.step, value.tag): value.tensor.float_val[0]
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
    }
    assert scalars[3, "train/loss"] == pytest.approx(record.values[3]["loss"])
    assert scalars[6, "heldout/perplexity"] == pytest.approx(
        record.heldout[6]["heldout_perplexity"]
    )


def test_non_finite_loss_stops_and_keeps_what_is_good(tmp_path):
    cfg = small_config(
        tmp_path,
        optim={"learning_rate": 1e30, "warmup_steps": 0},
        checkpoint={"every_steps": 1, "keep": 9},
    )
    record = Record()
    with pytest.raises(TrainingFailedError) as caught:
        run(cfg, tmp_path / "run", (record,), cache=tmp_path / "cache")
    message = str(caught.value)
    assert caught.value.exit_status == 3
    good = max(record.values)
    assert f"between steps {good} (last good) to {good + 1} (first bad)" in message
    assert f"the last good checkpoint is step {good} in {tmp_path / 'run'}" in message
    assert "Lower optim.learning_rate (now 1e+30)" in message
    assert steps_on_disk(tmp_path / "run") == list(range(1, good + 1))
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")] == list(
        range(1, good + 1)
    )
    assert record.events[-1] == ("end", "TrainingFailedError")
    assert read_result(tmp_path / "run") is None


def test_evaluation_weighs_tokens_not_batches():
    parts = [LossSum(*(jnp.float32(x) for x in sums)) for sums in ((30, 20, 10), (3, 2, 30))]
    trainer = types.SimpleNamespace(
        cfg=types.SimpleNamespace(
            train=types.SimpleNamespace(eval_batches=None),
            objective=types.SimpleNamespace(name="causal"),
        ),
        put=lambda batch: batch,
        evaluate=lambda params, batch, frozen: parts[batch],
    )
    info = types.SimpleNamespace(speed=None, start_step=0)
    record = Record()
    data = types.SimpleNamespace(heldout=HeldoutBatches(lambda index: index, 2))
    part = _Run(trainer, data, None, record, info, None, {})
    part.evaluate(5, types.SimpleNamespace(params=None), types.SimpleNamespace(name=None))
    values = record.heldout[5]
    assert values["heldout_loss"] == pytest.approx(33 / 40)
    assert values["heldout_perplexity"] == pytest.approx(math.exp(22 / 40), rel=SIMPLE)
    assert values["heldout_tokens"] == 40


@pytest.fixture
def default_sigint():
    """Ctrl-C as a program finds it: a worker of pytest-xdist ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_sigint")
def test_handlers_come_back_and_the_second_signal_stops():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        assert stop.name is None and signal.getsignal(signal.SIGINT) != before
        signal.raise_signal(signal.SIGINT)
        assert stop.name == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to the training folder"):
        run(small_config(tmp_path), tmp_path / "file" / "run")


def test_a_damaged_config_is_named(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="config.json is not readable"):
        run(small_config(tmp_path), tmp_path / "run")


def test_metrics_of_another_program_are_left_alone(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    path.write_text('{"epoch": 1}\n')
    with pytest.raises(DataError, match="metrics.jsonl, line 1: not a line of a run's metrics"):
        run(small_config(tmp_path), tmp_path / "run", cache=tmp_path / "cache")
    assert path.read_text() == '{"epoch": 1}\n'
    path.write_text('{"step": 1}\n{"step": 2, "lo')  # killed while writing
    assert read_metrics(path) == [{"step": 1}]


def test_a_warmup_that_is_as_long_as_the_run_is_said(tmp_path, capsys):
    cfg = small_config(tmp_path, steps=2, optim={"warmup_steps": 2})
    speed = metrics.Speed(1, 1.0, 1.0, "", 1)
    ProgressBar().on_start(RunInfo(cfg, tmp_path, 0, 1, speed, "1 device (cpu)"))
    said = capsys.readouterr().err
    assert "optim.warmup_steps=2 is not below train.steps=2" in said
    assert "compiling the first step for 1 device (cpu)" in said


def test_peak_of_known_and_unknown_devices():
    device = lambda kind: types.SimpleNamespace(platform="tpu", device_kind=kind)
    assert metrics.peak_flops(device("TPU v5 lite"))[0] == 197e12
    assert metrics.peak_flops(device("TPU v5"))[0] == 459e12
    assert metrics.peak_flops(device("NVIDIA H100 80GB HBM3"))[0] == 989e12
    peak, note = metrics.peak_flops(device("TPU v99"))
    assert math.isnan(peak) and "TPU v99" in note


def test_result_shows_itself(tmp_path):
    result = TrainResult(tmp_path, 3, 1.0, None, None, None, None, 96, 2.0, sample="<b>")
    assert "held-out" not in str(result) and "3 (96 tokens, 2s)" in str(result)
    assert "<pre>&lt;b&gt;</pre>" in result._repr_html_()
    assert result.to_dict()["workdir"] == str(tmp_path)
    right = dataclasses.replace(result, heldout_accuracy=0.25, heldout_nsp_accuracy=0.75)
    assert "right" not in str(right)  # perplexities are a causal model's comparison
    lines = str(dataclasses.replace(right, objective="mlm_nsp")).splitlines()
    assert lines[-3:-1] == ["accuracy           25.0% right", "next sentence      75.0% right"]
    endless = dataclasses.replace(result, heldout_loss=800.0, heldout_perplexity=math.inf)
    assert endless.to_dict()["heldout_perplexity"] is None  # JSON has no infinity
