"""Texts as questions to the scorer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import EvaluationError
from llmasos_jax.evals.metrics.scorer import Question


def encode_pairs(
    tokenizer: Tokenizer,
    context: str,
    continuations: Sequence[str],
    encode: Callable[[str], list[int]] | None = None,
) -> tuple[list[int], list[list[int]]]:
    """The ids of a context and of what may follow it, as lm-evaluation-harness splits them.

    White space at the context's end goes to the continuations; a continuation's ids are those of
    the whole text beyond as many as the context has alone. An empty context is the beginning token,
    or the end token where there is none.

    Args:
      tokenizer: the model's.
      context: what stands before.
      continuations: what may follow.
      encode: the ids of a text; None takes `tokenizer.encode`.

    Raises:
      EvaluationError: a continuation has no ids of its own, or there is no token to begin with.

    Example:
      >>> from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
      >>> encode_pairs(ByteTokenizer(), "a ", ["b", "c"])
      ([256, 97], [[32, 98], [32, 99]])
    """
    encode = tokenizer.encode if encode is None else encode
    stem = context.rstrip()
    rest = context[len(stem) :]
    before = encode(stem) if stem else [] if not tokenizer.adds_bos else encode("")
    found = []
    for continuation in continuations:
        ids = encode(stem + rest + continuation)[len(before) :]
        if not ids:
            raise EvaluationError(
                f"the continuation {continuation!r} has no token after {context[-20:]!r}; give a "
                "text that adds one"
            )
        found.append(ids)
    if not before:
        begin = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
        if begin is None:
            raise EvaluationError(
                "the context is empty, and the tokenizer has no token that begins a text; give a "
                "prompt with at least one character"
            )
        before = [begin]
    return before, found


def fitted(
    context: Sequence[int], continuations: Sequence[Sequence[int]], most: int
) -> tuple[Question, int]:
    """A question that fits the model's context, and how many tokens were cut off its beginning.

    Raises:
      EvaluationError: a continuation alone does not fit.

    Example:
      >>> fitted([1, 2, 3, 4], [[5], [6, 7]], 4)
      (Question(context=[2, 3, 4], continuations=[[5], [6, 7]]), 1)
    """
    longest = max(map(len, continuations))
    if longest > most:
        raise EvaluationError(
            f"a continuation has {longest} tokens; the model's context holds {most} with one "
            "before it"
        )
    cut = max(len(context) + longest - 1 - most, 0)
    return Question(list(context[cut:]), [list(ids) for ids in continuations]), cut
