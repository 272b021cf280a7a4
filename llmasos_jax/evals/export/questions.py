"""What an export is asked, and what our own model answers to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.evals.export.ours import Compared, OurModel, Outputs, compare, log_softmax
from llmasos_jax.evals.export.target import Opened, Target
from llmasos_jax.evals.export.weights import MismatchError
from llmasos_jax.evals.parity.probe import Probe, length_for, make_probes
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.models.answers import LOGITS

FIXED = "The capital of France is"
NEW_TOKENS = 16


@dataclass(frozen=True)
class Questions:
    """Batches and prompts, beside what our model gives for them with the weights as written.

    Attributes:
      probes: the batches.
      prompts: ids that are gone on with; none where a model writes no text.
      count: tokens that are taken after each.
      ours: our model.
      answers: what it shows for each batch.
      bound: the largest difference that is a match, as a share of an output's largest number.
      pads_count: whether a place where a batch has padding counts too.
    """

    probes: tuple[Probe, ...]
    prompts: tuple[list[int], ...]
    count: int
    ours: OurModel
    answers: tuple[Outputs, ...]
    bound: float
    pads_count: bool

    def compared(self, opened: Opened, named: str) -> tuple[Compared, ...]:
        """Every output of a program beside ours.

        Args:
          opened: the model in that program.
          named: the program, for messages.

        Raises:
          MismatchError: one differs by more than the bound.
        """
        given = opened.outputs(self.probes)
        found = compare(self.answers, given, self.probes, pads_count=self.pads_count)
        worst = max(found, key=lambda c: c.difference)
        if not worst.difference <= self.bound:
            raise MismatchError(
                f"what was written is not the model: {named} gives {worst.output} that differ by "
                f"{worst.difference:.1e} of the largest, more than {self.bound:.0e}"
            )
        return tuple(found)

    def greedy(self, opened: Opened, named: str) -> int:
        """Goes on with each prompt, and looks whether each token is the likeliest here too.

        Ours are found in one pass over the program's tokens. Two tokens may change places whose
        scores are nearer to each other than the bound allows both to be wrong, as a share of the
        largest logarithm of a probability, which is what every program has, whatever it adds to its
        logits.

        Args:
          opened: the model in that program.
          named: the program, for messages.

        Returns:
          How many tokens.

        Raises:
          MismatchError: one is not the likeliest.
        """
        for ids in self.prompts:
            found = opened.greedy(ids, self.count)
            if len(found) != self.count:
                raise MismatchError(
                    f"{named} gave {len(found)} greedy tokens of {self.count} asked for"
                )
            scores_nv = log_softmax(self.ours.scores(ids, found, self.probes[0]))
            slack = 2 * self.bound * float(np.abs(scores_nv).max())
            for step, (token, row) in enumerate(zip(found, scores_nv, strict=True)):
                if not 0 <= token < len(row) or row[token] < row.max() - slack:
                    raise MismatchError(
                        f"what was written is not the model: greedy token {step + 1} after "
                        f"{len(ids)} ids is {token} in {named}, through its cache, and "
                        f"{int(row.argmax())} here"
                    )
        return self.count * len(self.prompts)


def ask(
    target: Target,
    files: ModelFiles,
    ours: OurModel,
    pad: int | None,
    tokenizer: Tokenizer | None,
    *,
    bound: float,
    seed: int,
    new_tokens: int = NEW_TOKENS,
) -> Questions:
    """Makes the questions, and answers them.

    Args:
      target: the format.
      files: the model.
      ours: it, with the weights as written.
      pad: what the program takes for no token wherever it stands; None if it goes by a mask.
      tokenizer: the model's, if it has one.
      bound: the largest difference that is a match.
      seed: of the random ids.
      new_tokens: that are taken after each prompt.
    """
    cfg = files.manifest.parameters
    probes = _probes(target, files, pad, tokenizer, seed)
    raw = ours.outputs(probes)
    count = min(new_tokens, probes[0].tokens_bt.shape[1] - 1)
    writes = LOGITS in raw[0] and (cfg.causal or cfg.encoder.num_layers > 0)
    return Questions(
        probes=tuple(probes),
        prompts=tuple(_prompts(probes, count) if writes else ()),
        count=count,
        ours=ours,
        answers=tuple(shown(target, raw, probes)),
        bound=bound,
        pads_count=cfg.encoder.num_layers > 0,
    )


def shown(target: Target, given: Sequence[Outputs], probes: Sequence[Probe]) -> list[Outputs]:
    """What a format's program shows of our outputs."""
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
        ids = ids[: shape[1]]
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
