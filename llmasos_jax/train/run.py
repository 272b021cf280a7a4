"""One training run in one folder: from a config to a result."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from llmasos_jax.checkpoint import manifest, steps
from llmasos_jax.checkpoint.orbax import Checkpointer
from llmasos_jax.config.files import cache_folder
from llmasos_jax.config.schema import Config
from llmasos_jax.data.baselines import Baselines, baselines
from llmasos_jax.data.corpus import Corpus
from llmasos_jax.data.examples import Examples
from llmasos_jax.data.mixture import MixedCorpus
from llmasos_jax.data.pipeline import Data, open_data
from llmasos_jax.data.scan import BLANK
from llmasos_jax.data.target_baselines import TargetBaselines, target_baselines
from llmasos_jax.data.tokenizers.load import tokenizer_of_run
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.data.tokenizers.vocabulary import Vocabulary, vocabulary_of
from llmasos_jax.errors import ConfigError, DamagedCheckpointError
from llmasos_jax.models.count import count_parameters, flops_per_row
from llmasos_jax.parallel import distributed
from llmasos_jax.parallel.mesh import describe, make_mesh
from llmasos_jax.train.agree import check_same, check_same_text, check_shared, first_here
from llmasos_jax.train.hooks import Hook, Hooks, MetricsFile, RunInfo, TensorBoard, named_hooks
from llmasos_jax.train.loop import Fitted, fit, restore_or_start
from llmasos_jax.train.metrics import Speed, peak_flops
from llmasos_jax.train.objective import TABLE, build_objective
from llmasos_jax.train.pretrained import Pretrained, frozen_weights
from llmasos_jax.train.progress import ProgressBar
from llmasos_jax.train.reference import referenced
from llmasos_jax.train.result import TrainResult, read_result
from llmasos_jax.train.start import tokenizer_of
from llmasos_jax.train.step import Trainer, make_trainer
from llmasos_jax.train.trained import share_of_flops, without_teacher
from llmasos_jax.train.workdir import claimed, newest_step, require_free, saved_tokenizer
from llmasos_jax.types import Tree

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
    base: Pretrained | None = None,
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
      base: the model that `config.finetune.base` names, where it does (`finetune/run.py`).

    Returns:
      What the run came to.

    Raises:
      ConfigError: the config differs from the folder's in more than steps, logging, evaluation,
        sampling, checkpoint policy and mesh, or does not fit the devices.
      TrainingFailedError: loss or gradient is no longer finite.
      PreemptedError: Ctrl-C or SIGTERM; saved, the same call goes on.
    """
    start_s = time.monotonic()
    if (config.finetune.base is None) != (base is None):
        raise ConfigError(
            f'finetune.base="{config.finetune.base}" makes this a fine-tuning run; start it with '
            "`llmasos finetune`, or llmasos.finetune(config)"
        )
    require_free(workdir)
    step = newest_step(workdir, config)
    check_same(distributed.current(), config, workdir, step)
    finished = None if step is None else _finished(workdir, config, step)
    if finished is not None:
        return finished
    # All that the config names is opened before anything is written: a refused run leaves nothing.
    # The objective is built twice: what it refuses in a config is said before a tokenizer is made.
    teacher = None if base is None or base.teacher is None else base.teacher.parameters
    trainer = make_trainer(config, make_mesh(config.mesh), teacher=teacher)
    told = _hooks(config, hooks)
    cache = cache or cache_folder() / "data"
    if base is not None:
        tokenizer = base.tokenizer
    else:
        has_records = trainer.objective.examples is not None
        tokenizer = tokenizer_for(
            config, workdir, cache, is_new=step is None, has_records=has_records
        )
    vocabulary = vocabulary_of(tokenizer, config.model.vocab_size)
    trainer = dataclasses.replace(trainer, objective=build_objective(config, vocabulary))
    frozen = {} if base is None else frozen_weights(trainer, base)
    data = _open(config, tokenizer, trainer, cache, base, frozen)
    check_same_text(distributed.current(), data.corpus.digest)
    _say_counts(data)
    with contextlib.closing(data), claimed(workdir, config, tokenizer, is_new=step is None):
        check_shared(distributed.current(), workdir)
        policy = config.checkpoint
        roll = distributed.current()
        gather = None if roll is None else roll.gather
        keeper = Checkpointer(workdir / steps.FOLDER, policy.every_steps, policy.keep, gather)
        with contextlib.closing(keeper):
            state = restore_or_start(trainer, data, keeper, base, frozen)
            speed, parameters = speed_of(trainer), count_parameters(config.model)
            devices = describe(trainer.mesh)
            is_part = bool(without_teacher(frozen))
            moved = sum(leaf.size for leaf in jax.tree.leaves(state.params)) if is_part else None
            info = RunInfo(config, workdir, int(state.step), parameters, speed, devices, moved)
            sampler = None if sample is None else functools.partial(sample, config, tokenizer)
            fitted = fit(trainer, data, keeper, state, told, info, sampler, frozen)
            counts = counted(config, vocabulary, data, fitted)
    tokens = fitted.step * speed.tokens_per_step
    result = result_of(config, workdir, fitted, counts, tokens, time.monotonic() - start_s)
    if jax.process_index() == 0:
        result.write()
    return result


def tokenizer_for(
    config: Config, workdir: Path, cache: Path, *, is_new: bool, has_records: bool
) -> Tokenizer:
    """The folder's own, else that of the run whose weights this one starts with, else a new one."""
    with first_here(distributed.current()):
        saved = None if is_new else saved_tokenizer(workdir)
        if saved is not None:
            return saved
        if config.train.start_from is not None:
            return tokenizer_of(config)
        return tokenizer_of_run(config, cache, has_records=has_records)


def _finished(workdir: Path, config: Config, step: int) -> TrainResult | None:
    """The result of a run that has nothing left to do."""
    result, roll = read_result(workdir), distributed.current()
    if result is None or result.step != step or step < config.train.steps:
        return None
    try:
        manifest.require_sound(
            steps.find_step(workdir, step),
            None if roll is None else roll.gather,
            (jax.process_index(), jax.process_count()) if roll is not None else (0, 1),
        )
    except DamagedCheckpointError:
        return None  # it is named when it is restored, and its steps are done again
    print(
        f"{workdir} has done its {config.train.steps:,} steps (its newest checkpoint is step "
        f"{step:,}); raise train.steps to go on",
        file=sys.stderr,
    )
    return result


def _open(
    config: Config,
    tokenizer: Tokenizer,
    trainer: Trainer,
    cache: Path,
    base: Pretrained | None,
    frozen: Tree,
) -> Data:
    examples = trainer.objective.examples
    if examples is not None and trainer.objective.reference is not None:
        with first_here(distributed.current()):
            read = examples(config, tokenizer, cache)
        known = referenced(trainer, read, base, frozen, cache)
        examples = lambda *_: known
    with first_here(distributed.current()):
        return open_data(
            config,
            tokenizer,
            cache,
            own_rows=trainer.own_rows,
            prepare=trainer.objective.prepare,
            rows=trainer.objective.rows,
            by_sentence=trainer.objective.by_sentence,
            examples=examples,
        )


def _say_counts(data: Data) -> None:
    """What of the data was not taken as it was, on the standard error."""
    if jax.process_index() != 0:
        return
    corpus = data.corpus
    if isinstance(corpus, Examples) and corpus.counts:
        counts = [f"{count:,} {what}" for what, count in corpus.counts.items()]
        print(f"note: of the examples: {'; '.join(counts)}", file=sys.stderr)
    parts = {"": corpus} if isinstance(corpus, Corpus) else {}
    if isinstance(corpus, MixedCorpus):
        parts = corpus.parts
        for name, count in corpus.trained_elsewhere.items():
            print(
                f"note: data.mixture.{name}: {count:,} held-out documents are trained on in "
                "another part, so they are not evaluated on",
                file=sys.stderr,
            )
    for name, part in parts.items():
        dropped = [
            f"{d.documents:,} ({d.share:.1%}) {why}"
            for why, d in part.dropped.items()
            if why != BLANK  # nobody asked for these to be left out, and nobody misses them
        ]
        if dropped:
            of = f" of data.mixture.{name}" if name else ""
            print(f"note: documents left out{of}: {', '.join(dropped)}", file=sys.stderr)


def speed_of(trainer: Trainer) -> Speed:
    """What turns a run's seconds into tokens a second."""
    peak, note = peak_flops(trainer.mesh.devices.flat[0])
    batch = trainer.abstract_batch
    rows, length = batch.tokens.shape
    encoder = batch.extra.get("encoder_tokens")
    encoder_length = 0 if encoder is None else encoder.shape[1]
    flops = flops_per_row(trainer.cfg.model, length, batch.targets.shape[1], encoder_length)
    flops *= share_of_flops(trainer.cfg)
    if trainer.teacher is not None:
        # A forward pass alone is a third of a step.
        teacher = trainer.teacher.definition.cfg
        flops += flops_per_row(teacher, length, batch.targets.shape[1]) / 3
    return Speed(
        tokens_per_step=rows * (length + encoder_length),
        flops_per_token=flops / (length + encoder_length),
        peak_flops=peak,
        peak_note=note,
        num_devices=trainer.mesh.size,
    )


def _hooks(config: Config, more: Sequence[Hook]) -> Hooks:
    # One process writes files and speaks; hooks of the user's own run on each.
    ours = [MetricsFile(), TensorBoard(), ProgressBar()] if jax.process_index() == 0 else []
    return Hooks([*ours, *named_hooks(config.train.hooks), *more])


def counted(
    config: Config, vocabulary: Vocabulary, data: Data, fitted: Fitted
) -> Baselines | TargetBaselines | None:
    """What counting alone reaches on the tokens of the last evaluation."""
    name, batches = config.objective.name, config.train.eval_batches
    # An objective of the user's own may score anything.
    if name not in TABLE or not fitted.heldout or not isinstance(data.corpus, Corpus):
        return None
    if data.num_train_tokens > _COUNTED_TOKENS:
        return None
    if name == "causal":
        return baselines(data, vocabulary.size, batches)
    return target_baselines(data, vocabulary, is_masked=name.startswith("mlm"), batches=batches)


def result_of(
    config: Config,
    workdir: Path,
    fitted: Fitted,
    counts: Baselines | TargetBaselines | None,
    tokens: int,
    seconds: float,
) -> TrainResult:
    """What a run came to: its last values beside what counting reaches."""
    one_answer = counts if isinstance(counts, TargetBaselines) else None
    return TrainResult(
        workdir=workdir,
        step=fitted.step,
        loss=fitted.values.get("loss"),
        heldout_loss=fitted.heldout.get("heldout_loss"),
        heldout_perplexity=fitted.heldout.get("heldout_perplexity"),
        unigram_perplexity=None if counts is None else counts.unigram,
        bigram_perplexity=counts.bigram if isinstance(counts, Baselines) else None,
        tokens=tokens,
        seconds=seconds,
        sample=fitted.sample,
        heldout_accuracy=fitted.heldout.get("heldout_accuracy"),
        most_frequent_accuracy=None if one_answer is None else one_answer.most_frequent,
        heldout_nsp_accuracy=fitted.heldout.get("heldout_nsp_accuracy"),
        heldout_sop_accuracy=fitted.heldout.get("heldout_sop_accuracy"),
        larger_class_accuracy=None if one_answer is None else one_answer.larger_class,
        heldout_macro_f1=fitted.heldout.get("heldout_macro_f1"),
        heldout_pearson=fitted.heldout.get("heldout_pearson"),
        objective=config.objective.name,
        heldout_kl=fitted.heldout.get("heldout_kl"),
    )
