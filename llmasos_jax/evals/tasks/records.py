"""What a model makes of each example: scores of choices, a text, or a text's loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from llmasos_jax.data.tokenizers.tokenizer import encode_marked
from llmasos_jax.errors import EvaluationError
from llmasos_jax.evals.metrics.perplexity import text_losses
from llmasos_jax.evals.metrics.scorer import scorer_of
from llmasos_jax.evals.tasks.pairs import encode_pairs, fitted
from llmasos_jax.evals.tasks.prompts import Prompt
from llmasos_jax.evals.tasks.task import Task, fill
from llmasos_jax.generate.model import Model
from llmasos_jax.generate.request import (
    Options,
    Request,
    chat_requests,
    make_requests,
    read_options,
)
from llmasos_jax.generate.writer import LARGEST_BATCH

Row = Mapping[str, Any]
Record = dict[str, Any]
_TEXTS_AT_ONCE = 16


@dataclass(frozen=True)
class Asked:
    """What a model is asked.

    Attributes:
      model: who is asked.
      task: how it is asked.
      rows: the examples.
      prompts: of each one.
      todo: the places of those that are to be done.
      seed: of sampling.
    """

    model: Model
    task: Task
    rows: Sequence[Row]
    prompts: Sequence[Prompt]
    todo: Sequence[int]
    seed: int


def stream(asked: Asked) -> Iterator[Record]:
    """Records of the examples, in the order in which they are done.

    Raises:
      EvaluationError: an example lacks a field, or the model cannot do what is asked.
    """
    kinds = {"choice": _choices, "generation": _texts, "perplexity": _losses}
    if asked.todo:
        yield from kinds[asked.task.kind](asked)


def _choices(asked: Asked) -> Iterator[Record]:
    model, task, prompts = asked.model, asked.task, asked.prompts
    scorer, tokenizer = scorer_of(model), model._require_tokenizer()
    encode = partial(encode_marked, tokenizer) if task.chat else None
    records, questions = [], []
    for index in asked.todo:
        row = asked.rows[index]
        prompt, choices = prompts[index], task.choices_of(row, index)
        answer = task.answer_of(row, choices, index)
        where = f"example {index}"
        texts = [fill(task.continuation, {**row, "choice": c}, where) for c in choices]
        pairs = encode_pairs(tokenizer, prompt.text, texts, encode)
        question, cut = fitted(*pairs, scorer.context_length)
        questions.append(question)
        records.append({"index": index, **prompt.fields, "continuations": texts, "answer": answer})
        if cut:
            records[-1]["cut"] = cut
    for place, scored in scorer.stream(questions):
        totals = [one.total for one in scored]
        yield {**records[place], "logprobs": totals, "predicted": int(np.argmax(totals))}


def _texts(asked: Asked) -> Iterator[Record]:
    model, task, prompts = asked.model, asked.task, asked.prompts
    options = read_options(
        task.max_length, task.temperature, stop=list(task.stop) or None, seed=asked.seed
    )
    model._require_causal()
    wanted = {index: task.references_of(asked.rows[index], index) for index in asked.todo}
    # Prompts of one length together; an example's noise is its own, whatever stands beside it.
    order = sorted(asked.todo, key=lambda index: (len(prompts[index].text), index))
    for first in range(0, len(order), LARGEST_BATCH):
        batch = order[first : first + LARGEST_BATCH]
        texts = [prompts[index].text for index in batch]
        requests = [
            dataclasses.replace(request, sampling=options.sampling.at_index(index))
            for index, request in zip(batch, _requests(asked, texts, options), strict=True)
        ]
        written = [""] * len(batch)
        for place, piece in model._write(requests, options):
            written[place] += piece
        for index, text in zip(batch, written, strict=True):
            yield {
                "index": index,
                **prompts[index].fields,
                "text": text,
                "references": wanted[index],
            }


def _requests(asked: Asked, texts: Sequence[str], options: Options) -> list[Request]:
    model = asked.model
    tokenizer, manifest = model._require_tokenizer(), model.manifest
    if not asked.task.chat:
        return make_requests(texts, options, tokenizer, manifest)
    # A template has written out all special tokens that there are.
    prompts = [encode_marked(tokenizer, text) for text in texts]
    return [one for ids in prompts for one in chat_requests(ids, options, tokenizer, manifest)]


def _losses(asked: Asked) -> Iterator[Record]:
    model, task, prompts = asked.model, asked.task, asked.prompts
    scorer = scorer_of(model)
    texts = {index: prompts[index].text for index in asked.todo}
    for index, text in texts.items():
        if not text:
            raise EvaluationError(f"example {index} of {task.name} is an empty text")
    order = sorted(asked.todo, key=lambda index: (-len(texts[index]), index))
    windows = {"window": task.window, "stride": task.stride}
    for first in range(0, len(order), _TEXTS_AT_ONCE):
        batch = order[first : first + _TEXTS_AT_ONCE]
        losses = text_losses(model, scorer, [texts[index] for index in batch], **windows)
        for index, loss in zip(batch, losses, strict=True):
            yield {"index": index, "prompt": texts[index], **dataclasses.asdict(loss)}
