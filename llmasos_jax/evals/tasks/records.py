"""What a model makes of each example: scores of choices, a text, or a text's loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from llmasos_jax.errors import EvaluationError
from llmasos_jax.evals.metrics.perplexity import text_losses
from llmasos_jax.evals.metrics.scorer import scorer_of
from llmasos_jax.evals.tasks.pairs import encode_pairs, fitted
from llmasos_jax.evals.tasks.task import Task, fill
from llmasos_jax.generate.model import Model
from llmasos_jax.generate.request import make_requests, read_options
from llmasos_jax.generate.writer import LARGEST_BATCH

Row = Mapping[str, Any]
Record = dict[str, Any]
_TEXTS_AT_ONCE = 16


def stream(
    model: Model, task: Task, rows: Sequence[Row], todo: Sequence[int], seed: int
) -> Iterator[Record]:
    """Records of the examples `todo`, in the order in which they are done.

    Raises:
      EvaluationError: an example lacks a field, or the model cannot do what is asked.
    """
    kinds = {"choice": _choices, "generation": _texts, "perplexity": _losses}
    if todo:
        yield from kinds[task.kind](model, task, rows, todo, seed)


def _choices(
    model: Model, task: Task, rows: Sequence[Row], todo: Sequence[int], seed: int
) -> Iterator[Record]:
    del seed
    scorer, tokenizer = scorer_of(model), model._require_tokenizer()
    asked, questions = [], []
    for index in todo:
        row = rows[index]
        prompt, choices = task.prompt_of(row, index), task.choices_of(row, index)
        answer = task.answer_of(row, choices, index)
        where = f"example {index}"
        texts = [fill(task.continuation, {**row, "choice": c}, where) for c in choices]
        question, cut = fitted(*encode_pairs(tokenizer, prompt, texts), scorer.context_length)
        questions.append(question)
        asked.append({"index": index, "prompt": prompt, "continuations": texts, "answer": answer})
        if cut:
            asked[-1]["cut"] = cut
    for place, scored in scorer.stream(questions):
        totals = [one.total for one in scored]
        yield {**asked[place], "logprobs": totals, "predicted": int(np.argmax(totals))}


def _texts(
    model: Model, task: Task, rows: Sequence[Row], todo: Sequence[int], seed: int
) -> Iterator[Record]:
    options = read_options(
        task.max_length, task.temperature, stop=list(task.stop) or None, seed=seed
    )
    model._require_causal()
    tokenizer = model._require_tokenizer()
    prompts = {index: task.prompt_of(rows[index], index) for index in todo}
    wanted = {index: task.references_of(rows[index], index) for index in todo}
    # Prompts of one length together; an example's noise is its own, whatever stands beside it.
    order = sorted(todo, key=lambda index: (len(prompts[index]), index))
    for first in range(0, len(order), LARGEST_BATCH):
        batch = order[first : first + LARGEST_BATCH]
        texts = [prompts[index] for index in batch]
        requests = [
            dataclasses.replace(request, sampling=options.sampling.at_index(index))
            for index, request in zip(
                batch, make_requests(texts, options, tokenizer, model.manifest), strict=True
            )
        ]
        written = [""] * len(batch)
        for place, piece in model._write(requests, options):
            written[place] += piece
        for index, text in zip(batch, written, strict=True):
            yield {
                "index": index,
                "prompt": prompts[index],
                "text": text,
                "references": wanted[index],
            }


def _losses(
    model: Model, task: Task, rows: Sequence[Row], todo: Sequence[int], seed: int
) -> Iterator[Record]:
    del seed
    scorer = scorer_of(model)
    texts = {index: task.prompt_of(rows[index], index) for index in todo}
    for index, text in texts.items():
        if not text:
            raise EvaluationError(f"example {index} of {task.name} is an empty text")
    order = sorted(todo, key=lambda index: (-len(texts[index]), index))
    windows = {"window": task.window, "stride": task.stride}
    for first in range(0, len(order), _TEXTS_AT_ONCE):
        batch = order[first : first + _TEXTS_AT_ONCE]
        losses = text_losses(model, scorer, [texts[index] for index in batch], **windows)
        for index, loss in zip(batch, losses, strict=True):
            yield {"index": index, "prompt": texts[index], **dataclasses.asdict(loss)}
