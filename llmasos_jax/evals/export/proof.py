"""Runs what was written with the program that it is for, and compares it with the model."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import ExportError, LLMasOSError
from llmasos_jax.evals.export.ends import compare_generation
from llmasos_jax.evals.export.ours import Compared, OurModel, compare
from llmasos_jax.evals.export.questions import NEW_TOKENS, Questions, ask, shown
from llmasos_jax.evals.export.target import Target
from llmasos_jax.evals.export.weights import MismatchError, Read, Rounded, compare_stored
from llmasos_jax.evals.parity.compare import compare as parity
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.interop.written import Written


@dataclass(frozen=True)
class Second:
    """What a second program made of an export; the export stands or falls with the first.

    Attributes:
      program: its name.
      seconds: how long it took, most of it compiling.
      why: why it is not proven there, in one line; None if it is.
      compared: each output, as in `Proof`.
      greedy: tokens, as in `Proof`.
    """

    program: str
    seconds: float
    why: str | None = None
    compared: tuple[Compared, ...] = ()
    greedy: int = 0

    @property
    def difference(self) -> float | None:
        """The largest, as a share of the largest number of its output; None if unproven."""
        return max((c.difference for c in self.compared), default=None)


@dataclass(frozen=True)
class Proof:
    """What was compared, and what it came to.

    Attributes:
      compared: each output; the program's and ours, both with the weights as they were written.
      rows: tokens in each row that was run, padding not counted.
      greedy: tokens that the program took one by one through its cache, each the likeliest here.
      texts: how many were split by both tokenizers.
      rounded: what the dtype did to the weights.
      effect: what that did to the outputs; empty where every weight is bit for bit the model's.
      second: what a second program made of it; None where the format has none.
    """

    compared: tuple[Compared, ...]
    rows: tuple[int, ...]
    greedy: int
    texts: int
    rounded: Rounded
    effect: tuple[Compared, ...]
    second: Second | None = None

    @property
    def difference(self) -> float:
        """The largest, as a share of the largest number of its output."""
        return max(c.difference for c in self.compared)


def prove(
    target: Target,
    files: ModelFiles,
    folder: Path,
    written: Written,
    dtype: str | None,
    seed: int,
    *,
    new_tokens: int = NEW_TOKENS,
    second: bool = True,
    on_step: Callable[[str], None] = lambda _: None,
) -> Proof:
    """Opens an export where it is for, and compares weights, outputs, greedy tokens and texts.

    The program runs what was written, and so does our own model, with the weights read back: what
    rounding them did is measured beside it, and cannot hide a fault.

    Args:
      target: the format.
      files: the model.
      folder: the export.
      written: what `target.write` gave.
      dtype: as it was written.
      seed: of the random ids.
      new_tokens: that are taken greedily after each of two prompts.
      second: whether a second program is asked too, where the format has one.
      on_step: called with what is done next.

    Raises:
      ExportError: something is not the model's; the message says where the two part, layer by
        layer, as far as that can be seen.
    """
    try:
        return _prove(target, files, folder, written, dtype, seed, new_tokens, second, on_step)
    except MismatchError as error:
        where = _where(files, target.source(folder))
        raise ExportError(f"{error}; nothing was kept. {where}") from error


def _prove(
    target: Target,
    files: ModelFiles,
    folder: Path,
    written: Written,
    dtype: str | None,
    seed: int,
    new_tokens: int,
    second: bool,
    on_step: Callable[[str], None],
) -> Proof:
    said, bound = target.said(files), target.bound(files, dtype)
    cfg, start_id = said.manifest.parameters, files.manifest.generation.decoder_start_id
    on_step("reading it back")
    held = target.stored(folder)
    rounded = compare_stored(said, held, dtype, target.opens)
    tokenizer = None if files.tokenizer is None else files.tokenizer.load()
    compare_generation(files, target.back(folder), tokenizer, target.unsaid)
    ours, named = OurModel(cfg, held, start_id), f"{target.opens} ({written.saved_class})"

    on_step(f"opening it in {target.opens}")
    with contextlib.closing(target.open(folder, written, cfg)) as opened:
        texts = 0 if tokenizer is None else opened.check_texts(tokenizer, cfg)
        on_step("running it here")
        asked = ask(
            *(target, files, ours, opened.pad_id, tokenizer),
            **{"bound": bound, "seed": seed, "new_tokens": new_tokens},
        )
        on_step(f"running it in {target.opens}")
        compared = asked.compared(opened, named)
        greedy = asked.greedy(opened, target.opens)
    if target.second is not None and second:
        on_step(f"running it in {target.second}")
    other = second_of(target, folder, cfg, asked) if second else _not_asked(target)
    effect: Sequence[Compared] = ()
    if rounded.tensors:
        on_step("what rounding did")
        exact = OurModel(cfg, Read(said.tensors), start_id).outputs(asked.probes)
        effect = compare(
            shown(target, exact, asked.probes),
            asked.answers,
            asked.probes,
            pads_count=asked.pads_count,
        )
    lengths = tuple(int(n) for probe in asked.probes for n in probe.mask_bt.sum(1))
    return Proof(compared, lengths, greedy, texts, rounded, tuple(effect), other)


def second_of(target: Target, folder: Path, cfg: ModelConfig, asked: Questions) -> Second | None:
    """Asks the second program the same; whatever it refuses is written down, and no more.

    Args:
      target: the format.
      folder: the export, which the first program has proven.
      cfg: the model.
      asked: what the first was asked.
    """
    if target.second is None:
        return None
    start = time.monotonic()
    try:
        with contextlib.closing(target.open_second(folder, cfg)) as opened:
            compared = asked.compared(opened, target.second)
            greedy = asked.greedy(opened, target.second)
    except LLMasOSError as error:
        return Second(target.second, time.monotonic() - start, str(error))
    return Second(target.second, time.monotonic() - start, None, compared, greedy)


def _not_asked(target: Target) -> Second | None:
    return None if target.second is None else Second(target.second, 0.0, "it was not asked for")


def _where(files: ModelFiles, source: str | None) -> str:
    """Where the two part, layer by layer, as far as that can be said."""
    if source is not None:
        try:
            found = parity(str(files.path), source)
        except LLMasOSError as error:
            return f"`llmasos parity` cannot say where: {error}"
        if not found.same:
            return "; ".join(found.verdict())
    return "Read back here it gives what the model gives: it is that program, or a few numbers"
