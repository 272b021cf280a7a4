"""Runs what was written with the program that it is for, and compares it with the model."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import ExportError, LLMasOSError
from llmasos_jax.evals.export.ours import Compared, OurModel, Outputs, compare, log_softmax
from llmasos_jax.evals.export.target import Opened, Target
from llmasos_jax.evals.export.weights import MismatchError, Read, Rounded, compare_stored
from llmasos_jax.evals.parity.compare import compare as parity
from llmasos_jax.evals.parity.probe import Probe, length_for, make_probes
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.interop.written import Written
from llmasos_jax.models.answers import LOGITS

FIXED = "The capital of France is"
NEW_TOKENS = 16


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
    """

    compared: tuple[Compared, ...]
    rows: tuple[int, ...]
    greedy: int
    texts: int
    rounded: Rounded
    effect: tuple[Compared, ...]

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

    Raises:
      ExportError: something is not the model's; the message says where the two part, layer by
        layer, as far as that can be seen.
    """
    try:
        return _prove(target, files, folder, written, dtype, seed, new_tokens)
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
) -> Proof:
    said, bound = target.said(files), target.bound(files, dtype)
    cfg, start_id = said.manifest.parameters, files.manifest.generation.decoder_start_id
    held = target.stored(folder)
    rounded = compare_stored(said, held, dtype, target.opens)
    tokenizer = None if files.tokenizer is None else files.tokenizer.load()
    ours = OurModel(cfg, held, start_id)
    pads_count = cfg.encoder.num_layers > 0

    with contextlib.closing(target.open(folder, written, cfg)) as opened:
        texts = 0 if tokenizer is None else opened.check_texts(tokenizer, cfg)
        probes = _probes(target, files, opened.pad_id, tokenizer, seed)
        raw = ours.outputs(probes)
        own = _shown(target, raw, probes)
        compared = compare(own, opened.outputs(probes), probes, pads_count=pads_count)
        worst = max(compared, key=lambda c: c.difference)
        if not worst.difference <= bound:
            raise MismatchError(
                f"what was written is not the model: {target.opens} ({written.saved_class}) gives "
                f"{worst.output} that differ by {worst.difference:.1e} of the largest, more than "
                f"{bound:.0e}"
            )
        greedy = 0
        if LOGITS in raw[0] and (cfg.causal or cfg.encoder.num_layers):
            count = min(new_tokens, probes[0].tokens_bt.shape[1] - 1)
            for ids in _prompts(probes, count):
                greedy += _greedy(ours, opened, ids, count, probes[0], bound, target.opens)
    effect: Sequence[Compared] = ()
    if rounded.tensors:
        exact = OurModel(cfg, Read(said.tensors), start_id).outputs(probes)
        effect = compare(_shown(target, exact, probes), own, probes, pads_count=pads_count)
    lengths = tuple(int(n) for probe in probes for n in probe.mask_bt.sum(1))
    return Proof(tuple(compared), lengths, greedy, texts, rounded, tuple(effect))


def _shown(target: Target, given: Sequence[Outputs], probes: Sequence[Probe]) -> list[Outputs]:
    return [target.shown(outputs, probe) for outputs, probe in zip(given, probes, strict=True)]


def _probes(
    target: Target,
    files: ModelFiles,
    pad: int | None,
    tokenizer: Tokenizer | None,
    seed: int,
) -> list[Probe]:
    """A fixed text, and random ids: rows of several lengths, padded on the right."""
    cfg = files.manifest.parameters
    length = max(2, min(length_for([cfg], None), cfg.context_length - target.room))
    types = cfg.token_types if target.reads_types else 0
    avoid = () if pad is None or cfg.vocab_size < 2 else (pad,)
    made = make_probes(cfg.vocab_size, length, seed, avoid, token_types=types)
    probes = [
        Probe(np.where(p.mask_bt > 0, p.tokens_bt, pad or 0), p.mask_bt, p.types_bt) for p in made
    ]
    ids = [i for i in (tokenizer.encode(FIXED) if tokenizer else ()) if i != pad]
    if ids:  # in each row of a shape that is compiled already
        shape = probes[0].tokens_bt.shape
        tokens_bt, mask_bt = np.full(shape, pad or 0, np.int32), np.zeros(shape, np.int32)
        ids = ids[: shape[1] - target.room]
        tokens_bt[:, : len(ids)], mask_bt[:, : len(ids)] = ids, 1
        probes.append(Probe(tokens_bt, mask_bt))
    return probes


def _prompts(probes: Sequence[Probe], count: int) -> list[list[int]]:
    """What is gone on with: the start of random ids, and the fixed text, with room behind them."""
    found: list[list[int]] = []
    for probe, row in ((probes[0], 0), (probes[-1], len(probes[-1].mask_bt) // 2)):
        ids = probe.tokens_bt[row][probe.mask_bt[row] > 0]
        ids = ids[: max(1, probe.tokens_bt.shape[1] - count)].tolist()
        if ids not in found:
            found.append(ids)
    return found


def _greedy(
    ours: OurModel,
    opened: Opened,
    ids: list[int],
    count: int,
    like: Probe,
    bound: float,
    opens: str,
) -> int:
    """Goes on with a prompt, and looks whether each token is the likeliest here too.

    Ours are found in one pass over the program's tokens. Two tokens may change places whose scores
    are nearer to each other than the bound allows both to be wrong, as a share of the largest
    logarithm of a probability, which is what every program has, whatever it adds to its logits.

    Returns:
      How many tokens.
    """
    found = opened.greedy(ids, count)
    if len(found) != count:
        raise MismatchError(f"{opens} gave {len(found)} greedy tokens of {count} asked for")
    scores_nv = log_softmax(ours.scores(ids, found, like))
    slack = 2 * bound * float(np.abs(scores_nv).max())
    for step, (token, row) in enumerate(zip(found, scores_nv, strict=True)):
        if not 0 <= token < len(row) or row[token] < row.max() - slack:
            raise MismatchError(
                f"what was written is not the model: greedy token {step + 1} after {len(ids)} ids "
                f"is {token} in {opens}, through its cache, and {int(row.argmax())} here"
            )
    return count


def _where(files: ModelFiles, source: str | None) -> str:
    """Where the two part, layer by layer, as far as that can be said."""
    if source is not None:
        try:
            found = parity(str(files.path), source)
        except LLMasOSError as error:
            return f"`llmasos parity` cannot say where: {error}"
        if not found.same:
            return "; ".join(found.verdict())
    return "Config and weights read back are the model's: that program computes something else"
