"""A row of a batch as text: what is masked, what a pair is, what an encoder reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmasos_jax.cli.learned import LEGEND as LEARNED_LEGEND
from llmasos_jax.cli.learned import NAMES, parts_of

if TYPE_CHECKING:
    from llmasos_jax.data.batch import Batch
    from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
    from llmasos_jax.data.tokenizers.vocabulary import Vocabulary

MASKED_LEGEND = (
    "⟦word⟧ is read as the mask, ⟦word→other⟧ as another token, ⟦word=⟧ as itself: all predicted"
)
PREFIX_LEGEND = "what stands before ‖ is read in both directions, what stands after is predicted"
SPANS_LEGEND = "each <number> stands for what the decoder writes after it"
_PAIRS = {
    "mlm_sop": ("A, then B, as in the text", "swapped: B stands before A in the text"),
    "mlm_nsp": ("B follows A", "B is from another document"),
}


def legend(batch: Batch, objective: str = "") -> str | None:
    """What the marks in the rows of a batch mean; None where there are none."""
    if objective in NAMES:
        return LEARNED_LEGEND
    known = {
        "masked_positions": MASKED_LEGEND,
        "prefix": PREFIX_LEGEND,
        "encoder_tokens": SPANS_LEGEND,
    }
    return next((text for name, text in known.items() if name in batch.extra), None)


def describe_row(
    batch: Batch,
    index: int,
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    objective: str,
    labels: Sequence[str] = (),
) -> dict[str, Any]:
    """What row `index` of a batch is.

    Args:
      batch: of NumPy arrays.
      index: of the row.
      tokenizer: what its ids are of.
      vocabulary: of the tokenizer.
      objective: which made the batch.
      labels: names of the classes, where it learns some.

    Returns:
      "tokens", "segments" and "text" of what the model (the encoder, where there is one) reads;
      "predicted" tokens; "pair" where the row is one; "decoder", what the decoder writes; "parts"
      of rows of conversations; "answer", the label or the score of a labelled text.
    """
    writer = _Writer(tokenizer, vocabulary)
    extra = {name: array[index] for name, array in batch.extra.items()}
    tokens, segments = batch.tokens[index], batch.segment_ids[index]
    targets, weights = batch.targets[index], batch.loss_weights[index]
    row: dict[str, Any] = {}
    if "encoder_tokens" in extra:
        row["decoder"] = writer.write(targets[weights > 0])
        tokens, segments = extra["encoder_tokens"], extra["encoder_segment_ids"]
    row |= {"tokens": int((segments > 0).sum()), "segments": int(segments.max(initial=0))}
    row["predicted"] = int((weights > 0).sum())
    if objective in NAMES:
        row["parts"] = parts_of(batch, index, tokenizer, vocabulary, objective)
        return row | {"text": "\n".join(part.text for part in row["parts"])}
    used = tokens[segments > 0]
    if "masked_positions" in extra:
        marks = zip(extra["masked_positions"][weights > 0], targets[weights > 0], strict=True)
        row["text"] = writer.write(used, masked={int(p): int(t) for p, t in marks})
    elif "prefix" in extra:
        prefix = extra["prefix"][segments > 0]
        ends = np.flatnonzero((prefix[:-1] == 1) & (prefix[1:] == 0)) + 1
        parts = np.split(used, ends)
        row["text"] = " ‖ ".join(tokenizer.decode(part.tolist()) for part in parts)
    elif "encoder_tokens" in extra:
        row["text"] = writer.write(used)
    elif objective == "classify_tokens" and labels:
        names = {int(place): labels[targets[place]] for place in np.flatnonzero(weights)}
        row["text"] = _with_labels(used, names, tokenizer)
    elif objective == "similarity":
        texts = (tokens[segments == n].tolist() for n in range(1, row["segments"] + 1))
        row["text"] = "\n".join(map(tokenizer.decode, texts))
    else:
        row["text"] = tokenizer.decode(used.tolist())
    if objective == "classify" and labels:
        row["answer"] = labels[int(targets[0])]
    if objective == "regress":
        row["answer"] = f"{float(extra['score']):g}"
    if "next_sentence" in extra and objective in _PAIRS:
        row["pair"] = _PAIRS[objective][int(extra["next_sentence"])]
    return row


def _with_labels(tokens: np.ndarray, names: Mapping[int, Any], tokenizer: Tokenizer) -> str:
    """The text with each word's label after it; a word's label stands at its first token."""
    places = [*sorted(names), len(tokens)]
    words = zip(places, places[1:], strict=False)
    return " ".join(f"{tokenizer.decode(tokens[a:b].tolist())}/{names[a]}" for a, b in words)


class _Writer:
    """Writes tokens with the special ones, which `Tokenizer.decode` leaves out."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._names = {i: f"<special {i}>" for i in vocabulary.special_ids}
        end = "</s>" if vocabulary.mask_id is None else "[SEP]"
        for name, i in (
            ("[MASK]", vocabulary.mask_id),
            (end, vocabulary.sep_id),
            ("[CLS]", vocabulary.cls_id),
        ):
            if i is not None:
                self._names[i] = name
        self._names |= {i: f"<{n}>" for n, i in enumerate(vocabulary.sentinel_ids)}

    def write(self, tokens: np.ndarray, masked: dict[int, int] | None = None) -> str:
        masked = masked or {}
        text, run = "", []
        for place, token in enumerate(tokens.tolist()):
            if place not in masked and token not in self._names:
                run.append(token)
                continue
            text = self._joined(self._joined(text, run), [])
            run = []
            piece = self._mark(token, masked[place]) if place in masked else self._names[token]
            first = int(masked[place] if place in masked else token)
            text += piece if self._goes_on(first) or not text else f" {piece}"
        return self._joined(text, run)

    def _joined(self, text: str, run: Sequence[int]) -> str:
        if not run:
            return text
        more = self._tokenizer.decode(list(run)).removeprefix("##")
        is_joined = not text or self._goes_on(run[0]) or more[:1].isspace()
        return text + more if is_joined else f"{text} {more}"

    def _goes_on(self, token: int) -> bool:
        return bool(self._vocabulary.is_inside_v[token])

    def _mark(self, read: int, target: int) -> str:
        word = self._piece(target)
        if read == self._vocabulary.mask_id:
            return f"⟦{word}⟧"
        return f"⟦{word}=⟧" if read == target else f"⟦{word}→{self._piece(read)}⟧"

    def _piece(self, token: int) -> str:
        return self._names.get(token) or self._tokenizer.decode([token]).strip(" ") or "␣"
