"""Figures of a task, from what was kept of each example.

Each is a function of sums over examples (`metrics.intervals`), so that any two results on the same
examples can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from llmasos_jax.errors import EvaluationError, did_you_mean
from llmasos_jax.evals.metrics import labels, texts
from llmasos_jax.evals.metrics.intervals import Finish, mean

Records = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Measured:
    """A figure of some examples.

    Attributes:
      rows: what each adds, float64 [N, K].
      finish: the figure of the sums.
      signature: sacrebleu's, where it computed it.
    """

    rows: np.ndarray
    finish: Finish
    signature: str | None = None

    @property
    def value(self) -> float:
        """Of all examples."""
        return self.finish(self.rows.sum(axis=0))


LOWER_IS_BETTER = {
    *("perplexity", "perplexity_per_byte", "perplexity_per_word", "calibration_error"),
}


def measure(name: str, *systems: Records) -> list[Measured]:
    """A figure of each of several results on the same examples.

    Raises:
      EvaluationError: no such figure is known, or there is nothing that it could be of.
    """
    if name not in MEASURES:
        raise EvaluationError(f'"{name}" is no metric of a task{did_you_mean(name, MEASURES)}')
    return MEASURES[name][1](systems)


def _means(of: Callable[[dict[str, Any]], float], systems: Sequence[Records]) -> list[Measured]:
    rows = ([[float(of(record)), 1.0] for record in records] for records in systems)
    return [Measured(np.array(row, np.float64), mean) for row in rows]


def _hit(record: dict[str, Any]) -> float:
    return record["predicted"] == record["answer"]


def _hit_per_byte(record: dict[str, Any]) -> float:
    per_byte = [
        total / max(len(text.encode("utf-8", "surrogatepass")), 1)
        for total, text in zip(record["logprobs"], record["continuations"], strict=True)
    ]
    return int(np.argmax(per_byte)) == record["answer"]


def _match(record: dict[str, Any], *, normalize: bool) -> float:
    return labels.is_match(record["text"], record["references"], normalize=normalize)


def _f1_macro(systems: Sequence[Records]) -> list[Measured]:
    pairs = [[(r["predicted"], r["answer"]) for r in records] for records in systems]
    classes = sorted({label for some in pairs for pair in some for label in pair})
    rows = ([labels.f1_counts(p, y, classes).reshape(-1) for p, y in some] for some in pairs)
    finish = lambda sums: labels.f1_of(sums.reshape(-1, 3), "macro")
    return [Measured(np.array(row, np.float64), finish) for row in rows]


def _calibration(systems: Sequence[Records]) -> list[Measured]:
    found = []
    for records in systems:
        rows = []
        for record in records:
            logp_c = np.array(record["logprobs"], np.float64)
            shares_c = np.exp(logp_c - logp_c.max())
            confidence = float(shares_c.max() / shares_c.sum())
            rows.append(labels.calibration_row(confidence, bool(_hit(record))))
        found.append(Measured(np.array(rows, np.float64), labels.calibration_of))
    return found


def _perplexity(column: int, systems: Sequence[Records]) -> list[Measured]:
    finish = lambda sums: float(np.exp(min(sums[0] / max(sums[1], 1), 700.0)))
    name = ("nats", "tokens", "bytes", "words")[column]
    rows = [np.array([[r["nats"], r[name]] for r in some], np.float64) for some in systems]
    if not all(some[:, 1].sum() for some in rows):
        raise EvaluationError(f"the texts have no {name} to score; give longer texts")
    return [Measured(some, finish) for some in rows]


def _sacrebleu(
    make: Callable[[list[list[str]]], Any], systems: Sequence[Records]
) -> list[Measured]:
    found = []
    for records in systems:
        hypotheses = [record["text"] for record in records]
        streams = texts.reference_streams(hypotheses, [r["references"] for r in records])
        metric = make(streams)
        rows = texts.sacrebleu_rows(metric, hypotheses, streams)
        finish = partial(texts.sacrebleu_of, metric)
        signature = str(texts.metric_for(metric, rows.sum(axis=0)).get_signature())
        found.append(Measured(rows, finish, signature))
    return found


def _rouge(kind: str, systems: Sequence[Records]) -> list[Measured]:
    from llmasos_jax.evals.metrics.summaries import KINDS, rouge_rows

    found = []
    for records in systems:
        rows = rouge_rows([r["text"] for r in records], [r["references"] for r in records])
        column = rows[:, KINDS.index(kind)]
        found.append(Measured(np.stack([column, np.ones_like(column)], axis=1), mean))
    return found


# Of each figure: the kind of task that has it, and what computes it of several results.
MEASURES: dict[str, tuple[str, Callable[[Sequence[Records]], list[Measured]]]] = {
    "accuracy": ("choice", partial(_means, _hit)),
    "accuracy_per_byte": ("choice", partial(_means, _hit_per_byte)),
    "f1_macro": ("choice", _f1_macro),
    "calibration_error": ("choice", _calibration),
    "exact_match": ("generation", partial(_means, partial(_match, normalize=False))),
    "exact_match_normalized": ("generation", partial(_means, partial(_match, normalize=True))),
    "bleu": ("generation", partial(_sacrebleu, partial(texts.bleu_metric, None))),
    "chrf": ("generation", partial(_sacrebleu, texts.chrf_metric)),
    "rouge1": ("generation", partial(_rouge, "rouge1")),
    "rouge2": ("generation", partial(_rouge, "rouge2")),
    "rougeL": ("generation", partial(_rouge, "rougeL")),
    "rougeLsum": ("generation", partial(_rouge, "rougeLsum")),
    "perplexity": ("perplexity", partial(_perplexity, 1)),
    "perplexity_per_byte": ("perplexity", partial(_perplexity, 2)),
    "perplexity_per_word": ("perplexity", partial(_perplexity, 3)),
}
