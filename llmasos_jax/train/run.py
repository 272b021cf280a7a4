"""One training run in one folder: from a config to a result."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from llmasos_jax.checkpoint import steps
from llmasos_jax.checkpoint.orbax import Checkpointer
from llmasos_jax.config.build import differences, from_dict, to_dict
from llmasos_jax.config.files import cache_folder
from llmasos_jax.config.schema import Config
from llmasos_jax.data.baselines import Baselines, baselines
from llmasos_jax.data.pipeline import Data, open_data
from llmasos_jax.data.sources import documents
from llmasos_jax.data.tokenizer import Tokenizer, build_tokenizer, load_tokenizer
from llmasos_jax.errors import ConfigError, TokenizerError
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

# The longest text that is counted for a comparison: a minute's work, where more would be hours.
_COUNTED_TOKENS = 200_000_000

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
    step = _newest_step(workdir, config)
    finished = None if step is None else _finished(workdir, config, step)
    if finished is not None:
        return finished
    # All that the config names is opened before anything is written: a refused run leaves nothing.
    trainer, told = make_trainer(config, make_mesh(config.mesh)), _hooks(config, hooks)
    cache = cache or cache_folder() / "data"
    tokenizer = _tokenizer(config, workdir, cache, is_new=step is None)
    data = _open(config, tokenizer, trainer, cache)
    with contextlib.closing(data):
        _claim(workdir, config, tokenizer, is_new=step is None)
        policy = config.checkpoint
        keeper = Checkpointer(workdir / steps.FOLDER, policy.every_steps, policy.keep)
        with contextlib.closing(keeper):
            state = restore_or_start(trainer, data, keeper)
            speed, parameters = _speed(trainer, data), count_parameters(config.model)
            info = RunInfo(config, workdir, int(state.step), parameters, speed)
            texts = _Texts(config, tokenizer, sample)
            sampler = None if sample is None else texts.write
            fitted = fit(trainer, data, keeper, state, told, info, sampler)
            counts = _baselines(config, tokenizer, data, fitted)
    result = _result(workdir, fitted, counts, data, time.monotonic() - start_s, texts.last)
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
            "the config differs from the run in this workdir in what may not change; undo this, or "
            "take another --workdir (steps, logging, evaluation, sampling, checkpoint policy and "
            f"mesh may change):{lines}"
        )


def _newest_step(workdir: Path, config: Config) -> int | None:
    """The step that the folder's run goes on from; None if it has no checkpoint yet.

    Raises:
      ConfigError: the folder holds a run of another config, or something else, or is read-only.
    """
    place = workdir.absolute()
    there = next(p for p in (place, *place.parents) if p.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        why = "is read-only" if there.is_dir() else "is a file"
        raise ConfigError(
            f"cannot write to the training folder {workdir}: {there} {why}; take another --workdir"
        )
    path = workdir / "config.json"
    try:
        if path.exists():
            from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ConfigError) as error:
        raise ConfigError(
            f"{path} is not readable as a resolved config ({error}); if it is another program's, "
            "take another --workdir; else repair it from the one in the newest checkpoint"
        ) from error
    # A config.json without a checkpoint binds nobody: the run that wrote it has kept nothing else.
    found = steps.all_steps(workdir / steps.FOLDER)
    if not found:
        return None
    newest = steps.find_step(workdir, found[-1])
    check_same_run(from_dict(steps.read_json(newest, steps.CONFIG)), config)
    return found[-1]


def _finished(workdir: Path, config: Config, step: int) -> TrainResult | None:
    """The result of a run that has nothing left to do."""
    result = read_result(workdir)
    if result is None or result.step != step or step < config.train.steps:
        return None
    print(
        f"{workdir} has done its {config.train.steps:,} steps (its newest checkpoint is step "
        f"{step:,}); raise train.steps to go on",
        file=sys.stderr,
    )
    return result


def _tokenizer(config: Config, workdir: Path, cache: Path, *, is_new: bool) -> Tokenizer:
    """The folder's own tokenizer when its run goes on, else the one that the config names."""
    entry = workdir / "tokenizer" / "entry.json"
    if is_new or not entry.exists():
        return build_tokenizer(config, documents(config.data, cache), cache)
    try:
        described = json.loads(entry.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(
            f"{entry} is damaged ({error}); delete it, and the tokenizer is made again"
        ) from error
    return load_tokenizer(described, entry.parent, allow_code=True)


def _open(config: Config, tokenizer: Tokenizer, trainer: Trainer, cache: Path) -> Data:
    return open_data(
        config,
        tokenizer,
        cache,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        prepare=trainer.objective.prepare,
    )


def _claim(workdir: Path, config: Config, tokenizer: Tokenizer, *, is_new: bool) -> None:
    """Makes the folder, and writes the config and a new run's tokenizer there."""
    folder = workdir / "tokenizer"
    entry = folder / "entry.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if jax.process_index() != 0:
            return
        _write_json(workdir / "config.json", to_dict(config))
        if is_new and entry.exists():  # of a run that never came to a checkpoint
            shutil.rmtree(folder)
        if not entry.exists():
            folder.mkdir(exist_ok=True)
            _write_json(entry, tokenizer.save(folder))
    except OSError as error:
        raise ConfigError(
            f"cannot write to the training folder {workdir} ({error}); take another --workdir"
        ) from error


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
    is_comparable = config.objective.name == "causal" and bool(fitted.heldout)
    if not is_comparable or data.num_train_tokens > _COUNTED_TOKENS:
        return None
    return baselines(data, tokenizer.vocab_size, config.train.eval_batches)


def _result(
    workdir: Path,
    fitted: Fitted,
    counts: Baselines | None,
    data: Data,
    seconds: float,
    sample: str | None,
) -> TrainResult:
    return TrainResult(
        workdir=workdir,
        step=fitted.step,
        loss=fitted.values.get("loss"),
        heldout_loss=fitted.heldout.get("heldout_loss"),
        heldout_perplexity=fitted.heldout.get("heldout_perplexity"),
        unigram_perplexity=None if counts is None else counts.unigram,
        bigram_perplexity=None if counts is None else counts.bigram,
        tokens=fitted.step * data.tokens_per_batch,
        seconds=seconds,
        sample=sample,
    )


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
