"""One training run in one folder: from a config to a result."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from llmasos_jax.checkpoint.orbax import Checkpointer
from llmasos_jax.config.build import differences, from_dict, to_dict
from llmasos_jax.config.files import cache_folder
from llmasos_jax.config.schema import Config
from llmasos_jax.data.baselines import Baselines, baselines
from llmasos_jax.data.pipeline import Data, open_data
from llmasos_jax.data.sources import documents
from llmasos_jax.data.tokenizer import Tokenizer, build_tokenizer, load_tokenizer
from llmasos_jax.errors import ConfigError
from llmasos_jax.models.count import count_parameters, flops_per_token
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.train.hooks import Hook, Hooks, MetricsFile, RunInfo, TensorBoard, named_hooks
from llmasos_jax.train.loop import Fitted, fit, restore_or_start
from llmasos_jax.train.metrics import Speed, peak_flops
from llmasos_jax.train.progress import ProgressBar
from llmasos_jax.train.result import TrainResult, read_result
from llmasos_jax.train.step import Trainer, make_trainer

# What may differ when a run goes on: neither the weights nor the order of the data hang on it.
_FREE = (
    "train.steps",
    "train.log_every_steps",
    "train.eval_every_steps",
    "train.eval_batches",
    "train.hooks",
    "checkpoint.",
    "sample.",
    "mesh.",
)

# (config, tokenizer, weights as they are trained) -> text
Sample = Callable[[Config, Tokenizer, Any], str]


def run(
    config: Config,
    workdir: Path,
    hooks: Sequence[Hook] = (),
    sample: Sample | None = None,
    *,
    cache: Path | None = None,
) -> TrainResult:
    """Trains a config in a folder, or goes on where the folder stopped.

    The folder gets `config.json` (resolved), `tokenizer/`, `checkpoints/`, `metrics.jsonl`,
    `tensorboard/` and, in the end, `result.json`. A run that is finished is left as it is.

    Args:
      config: what to train.
      workdir: the training folder; made if absent.
      hooks: told of events, besides those that the config names.
      sample: writes a text with the weights (scanned layout) for `config.sample`; None writes none.
      cache: folder for token ids and trained tokenizers; None takes the user's cache folder.

    Returns:
      What the run came to.

    Raises:
      ConfigError: the config differs from the folder's in more than steps, logging, evaluation,
        sampling, checkpoint policy and mesh, or does not fit the devices.
      TrainingFailedError: loss or gradient is no longer finite.
      PreemptedError: Ctrl-C or SIGTERM; saved, the same call goes on.
    """
    start_s = time.monotonic()
    _claim(workdir, config)
    folder, policy = workdir / "checkpoints", config.checkpoint
    with contextlib.closing(Checkpointer(folder, policy.every_steps, policy.keep)) as checkpoints:
        finished = _finished(workdir, config, checkpoints)
        if finished is not None:
            return finished
        trainer = make_trainer(config, make_mesh(config.mesh))
        tokenizer, data = _open(config, workdir, trainer, cache or cache_folder() / "data")
        with contextlib.closing(data):
            state = restore_or_start(trainer, data, checkpoints)
            info = RunInfo(
                config=config,
                workdir=workdir,
                start_step=int(state.step),
                num_parameters=count_parameters(config.model),
                speed=_speed(trainer, data),
            )
            texts = _Texts(config, tokenizer, sample)
            sampler = None if sample is None else texts.write
            fitted = fit(trainer, data, checkpoints, state, _hooks(config, hooks), info, sampler)
            counts = _baselines(config, tokenizer, data, fitted)
    result = TrainResult(
        workdir=workdir,
        step=fitted.step,
        loss=fitted.values.get("loss"),
        heldout_loss=fitted.heldout.get("heldout_loss"),
        heldout_perplexity=fitted.heldout.get("heldout_perplexity"),
        unigram_perplexity=None if counts is None else counts.unigram,
        bigram_perplexity=None if counts is None else counts.bigram,
        tokens=fitted.step * info.speed.tokens_per_step,
        seconds=time.monotonic() - start_s,
        sample=texts.last,
    )
    if jax.process_index() == 0:
        result.write()
    return result


def check_same_run(before: Config, now: Config) -> None:
    """Raises ConfigError, listing every difference that a run may not have when it goes on.

    Example:
      >>> import dataclasses
      >>> from llmasos_jax.config.build import load_config
      >>> quickstart = load_config("quickstart")
      >>> longer = dataclasses.replace(quickstart.train, steps=9000)
      >>> check_same_run(quickstart, dataclasses.replace(quickstart, train=longer))
    """
    found = [line for line in differences(before, now) if not line.startswith(_FREE)]
    if found:
        lines = "".join(f"\n  {line}" for line in found)
        raise ConfigError(
            f"the config differs from the run in this workdir in what may not change:{lines}\n"
            "undo these, or take another --workdir (steps, logging, evaluation, sampling, "
            "checkpoint policy and mesh may change)"
        )


def _claim(workdir: Path, config: Config) -> None:
    """Makes the folder and writes its config, unless it holds a run of another config."""
    path = workdir / "config.json"
    if path.exists():
        try:
            before = from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path} is not readable as a resolved config ({error}); repair it from the one "
                "in the newest checkpoint, or take another --workdir"
            ) from error
        check_same_run(before, config)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            _write_json(path, to_dict(config))
    except OSError as error:
        raise ConfigError(
            f"cannot write to the training folder {workdir} ({error}); take another --workdir"
        ) from error


def _finished(workdir: Path, config: Config, checkpoints: Checkpointer) -> TrainResult | None:
    """The result of a run that has nothing left to do."""
    result, step = read_result(workdir), checkpoints.latest_step()
    if result is None or step is None or result.step != step or step < config.train.steps:
        return None
    print(
        f"{workdir} has done its {config.train.steps:,} steps (its newest checkpoint is step "
        f"{step:,}); raise train.steps to go on",
        file=sys.stderr,
    )
    return result


def _open(config: Config, workdir: Path, trainer: Trainer, cache: Path) -> tuple[Tokenizer, Data]:
    """The folder's own tokenizer, made at the first start, and the data that it cuts."""
    folder = workdir / "tokenizer"
    entry = folder / "entry.json"
    if entry.exists():
        described = json.loads(entry.read_text(encoding="utf-8"))
        tokenizer = load_tokenizer(described, folder, allow_code=True)
    else:
        tokenizer = build_tokenizer(config, documents(config.data, cache), cache)
        if jax.process_index() == 0:
            folder.mkdir(exist_ok=True)
            _write_json(entry, tokenizer.save(folder))
    data = open_data(
        config,
        tokenizer,
        cache,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        prepare=trainer.objective.prepare,
    )
    return tokenizer, data


def _speed(trainer: Trainer, data: Data) -> Speed:
    peak, note = peak_flops(trainer.mesh.devices.flat[0])
    return Speed(
        tokens_per_step=data.tokens_per_batch,
        flops_per_token=flops_per_token(trainer.cfg.model, data.sequence_length),
        peak_flops=peak,
        peak_note=note,
        num_devices=trainer.mesh.size,
    )


def _hooks(config: Config, more: Sequence[Hook]) -> Hooks:
    # One process writes files and speaks; hooks of the user's own run on each.
    ours = [MetricsFile(), TensorBoard(), ProgressBar()] if jax.process_index() == 0 else []
    return Hooks([*ours, *named_hooks(config.train.hooks), *more])


def _baselines(
    config: Config, tokenizer: Tokenizer, data: Data, fitted: Fitted
) -> Baselines | None:
    """What counting alone reaches on the tokens of the last evaluation."""
    if config.objective.name != "causal" or not fitted.heldout:
        return None
    return baselines(data, tokenizer.vocab_size, config.train.eval_batches)


@dataclass
class _Texts:
    """Binds what a sampler needs, and keeps the newest text."""

    config: Config
    tokenizer: Tokenizer
    sample: Sample | None
    last: str | None = None

    def write(self, params: Any) -> str:
        if self.sample is None:
            raise ValueError("there is nothing to write with")
        self.last = self.sample(self.config, self.tokenizer, params)
        return self.last


def _write_json(path: Path, values: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)
