"""What a run came to, in memory and as `result.json` in the training folder."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmasos_jax.train.metrics import UNITS
from llmasos_jax.train.progress import duration


@dataclass(frozen=True)
class TrainResult:
    """A finished run. It prints as a short table, and so it shows in a notebook.

    Attributes:
      workdir: the training folder.
      step: optimizer steps done.
      loss: of the last step, nats per token (of labelled texts and preferences, per example).
      heldout_loss: nats per token, plus the means of an objective's further terms; None if nothing
        was held out.
      heldout_perplexity: per token; None where the loss is not of tokens.
      unigram_perplexity, bigram_perplexity: of add-one smoothed counts of the training tokens, on
        the same held-out tokens; None where they cannot be compared (another objective) or the
        text is too long to be counted.
      tokens: positions that the model has read.
      seconds: of this process's part of the run.
      sample: what the model wrote at the end.
      heldout_accuracy: share of the held-out targets (of "mlm": masked tokens) that have the
        largest logit.
      most_frequent_accuracy: share of them that are the most frequent token of training; None where
        bigrams are the comparison.
      heldout_nsp_accuracy, heldout_sop_accuracy: share of the held-out rows whose pair of sentences
        is told right; None for an objective without pairs.
      larger_class_accuracy: share of them that are of the more frequent kind.
      heldout_macro_f1: of "classify" and "classify_tokens", the mean of F1 over the labels.
      heldout_pearson: of "regress", Pearson's r of scores and what was asked for.
      objective: `config.objective.name`; for "causal" accuracy is kept, and not printed.
      heldout_kl: of "distill", the divergence of the teacher from the model, nats per token.

    Example:
      >>> print(TrainResult(Path("runs/a"), 10, 2.5, 2.6, 13.5, 90.0, 20.25, 4096, 7.0))
      trained            runs/a
      steps              10 (4,096 tokens, 7s)
      loss               2.5000 nats per token
      held-out loss      2.6000 nats per token
      held-out           perplexity 13.50 per token (bigram 20.25, unigram 90.00)

      Masked tokens and pairs of sentences stand beside what one answer for all reaches:

      >>> masked = TrainResult(Path("runs/a"), 10, 2.5, 2.6, 13.5, 90.0, None, 4096, 7.0,
      ...     heldout_accuracy=0.3, most_frequent_accuracy=0.05,
      ...     heldout_nsp_accuracy=0.75, larger_class_accuracy=0.51, objective="mlm_nsp")
      >>> for line in str(masked).splitlines()[-3:]:
      ...     print(line)
      held-out           perplexity 13.50 per token (unigram 90.00)
      accuracy           30.0% right (most frequent 5.0%)
      next sentence      75.0% right (larger class 51.0%)
    """

    workdir: Path
    step: int
    loss: float | None
    heldout_loss: float | None
    heldout_perplexity: float | None
    unigram_perplexity: float | None
    bigram_perplexity: float | None
    tokens: int
    seconds: float
    sample: str | None = None
    heldout_accuracy: float | None = None
    most_frequent_accuracy: float | None = None
    heldout_nsp_accuracy: float | None = None
    heldout_sop_accuracy: float | None = None
    larger_class_accuracy: float | None = None
    heldout_macro_f1: float | None = None
    heldout_pearson: float | None = None
    objective: str = "causal"
    heldout_kl: float | None = None

    def rows(self) -> list[tuple[str, str]]:
        """Names and values, for people."""
        rows = [
            ("trained", str(self.workdir)),
            ("steps", f"{self.step:,} ({self.tokens:,} tokens, {duration(self.seconds)})"),
        ]
        unit = UNITS.get(self.objective, "nats per token")
        if self.loss is not None:
            rows.append(("loss", f"{self.loss:.4f} {unit}"))
        if self.heldout_loss is not None:
            rows.append(("held-out loss", f"{self.heldout_loss:.4f} {unit}"))
            if self.heldout_perplexity is not None:
                rows.append(("held-out", self._perplexities(self.heldout_perplexity)))
        if self.heldout_kl is not None:
            rows.append(("held-out KL", f"{self.heldout_kl:.4f} nats per token, from the teacher"))
        rows += [*self._accuracies(), *self._reports()]
        if self.sample is not None:
            rows.append(("sample", self.sample))
        return rows

    def _perplexities(self, heldout: float) -> str:
        """The held-out one, beside those of counts where these are known."""
        counted = {"bigram": self.bigram_perplexity, "unigram": self.unigram_perplexity}
        known = [f"{name} {value:.2f}" for name, value in counted.items() if value is not None]
        return f"perplexity {heldout:.2f} per token" + (f" ({', '.join(known)})" if known else "")

    def _accuracies(self) -> list[tuple[str, str]]:
        """Shares that were right, each beside its baseline where that was counted."""
        if self.objective == "causal":
            return []
        most_frequent = "most frequent", self.most_frequent_accuracy
        larger_class = "larger class", self.larger_class_accuracy
        return [
            (name, f"{found:.1%} right" + ("" if share is None else f" ({baseline} {share:.1%})"))
            for name, found, (baseline, share) in (
                ("accuracy", self.heldout_accuracy, most_frequent),
                ("next sentence", self.heldout_nsp_accuracy, larger_class),
                ("sentence order", self.heldout_sop_accuracy, larger_class),
            )
            if found is not None
        ]

    def _reports(self) -> list[tuple[str, str]]:
        """What labelled texts are judged by, beside the share that was right."""
        f1, r = self.heldout_macro_f1, self.heldout_pearson
        found = [] if f1 is None else [("macro F1", f"{f1:.1%}")]
        return found if r is None else [*found, ("Pearson's r", f"{r:.4f}")]

    def __str__(self) -> str:
        return "\n".join(f"{name:<18} {value}" for name, value in self.rows())

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th>{name}</th><td><pre>{html.escape(value)}</pre></td></tr>"
            for name, value in self.rows()
        )
        return f"<table>{cells}</table>"

    def to_dict(self) -> dict[str, Any]:
        """All values under their names, for JSON: one that is not finite is None."""
        values = {**dataclasses.asdict(self), "workdir": str(self.workdir)}
        is_number = lambda v: not isinstance(v, float) or math.isfinite(v)
        return {name: v if is_number(v) else None for name, v in values.items()}

    def write(self) -> None:
        """Keeps the result in its training folder."""
        path = result_path(self.workdir)
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        os.replace(part, path)


def result_path(workdir: Path) -> Path:
    """Where a training folder keeps its result."""
    return workdir / "result.json"


def read_result(workdir: Path) -> TrainResult | None:
    """What `TrainResult.write` wrote, or None where there is none that can be read."""
    try:
        values = json.loads(result_path(workdir).read_text(encoding="utf-8"))
        return TrainResult(**{**values, "workdir": workdir})
    except (OSError, ValueError, TypeError):
        return None
