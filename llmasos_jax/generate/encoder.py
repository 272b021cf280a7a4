"""What an encoder is asked: fill masks, judge a next sentence, embed and classify texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.data.tokenizers.inputs import frame_ids, is_encoder
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import GenerationError
from llmasos_jax.generate.answers import Candidate, Filled, Label, LabelledToken, Score
from llmasos_jax.generate.forward import Forward
from llmasos_jax.generate.sampling import require_whole
from llmasos_jax.generate.session import power_of_two
from llmasos_jax.generate.texts import Input, buckets, make_inputs


def fill_masks(
    cfg: ModelConfig, tokenizer: Tokenizer, forward: Forward, texts: Sequence[str], top_k: int
) -> list[Filled]:
    """The best tokens for each mask of each text; see `Model.fill_mask`.

    Raises:
      GenerationError: the model cannot fill masks, or a text has none.
    """
    if cfg.head != "mlm":
        raise GenerationError(
            'this model has no MLM head (model.head is not "mlm"), so it cannot fill a mask; load '
            "one that was trained to"
        )
    mask_id = getattr(tokenizer, "mask_id", None)
    if mask_id is None:
        raise GenerationError(
            "the tokenizer has no mask token, so no mask can be filled; give its id as mask_id of "
            "the tokenizer in model.json"
        )
    num_ids = min(tokenizer.vocab_size, cfg.vocab_size)
    require_whole("top_k", top_k, 1, " candidates")
    if top_k > num_ids:
        raise GenerationError(f"top_k={top_k} is not possible; the tokenizer has {num_ids} ids")
    inputs = make_inputs(cfg, tokenizer, texts)
    places = [[p for p, i in enumerate(each.ids) if i == mask_id] for each in inputs]
    for i, found in enumerate(places):
        if not found:
            raise GenerationError(
                f"text {i} ({_shortened(texts[i])}) has no mask; write "
                f"{token_text(tokenizer, mask_id)} where a token is to be found"
            )
    filled: dict[int, Filled] = {}
    for rows in buckets(cfg, inputs):
        most = power_of_two(max(len(places[i]) for i in rows.indices))
        places_bm = np.zeros((len(rows.tokens_bt), most), np.int32)
        for row, i in enumerate(rows.indices):
            places_bm[row, : len(places[i])] = places[i]
        logits_bmv = forward.logits_at(rows.arrays(), places_bm)
        for row, i in enumerate(rows.indices):
            logits_mv = logits_bmv[row, : len(places[i]), :num_ids]
            filled[i] = _filled(tokenizer, inputs[i], places[i], logits_mv, int(top_k))
    return [filled[i] for i in range(len(texts))]


def score_pairs(
    cfg: ModelConfig,
    tokenizer: Tokenizer,
    forward: Forward,
    firsts: Sequence[str],
    seconds: Sequence[str],
) -> list[float]:
    """Probabilities that the second text of a pair follows the first.

    Raises:
      GenerationError: the model cannot tell, or a pair is too long.
    """
    if not cfg.next_sentence:
        raise GenerationError(
            "this model has no score for a next sentence (model.next_sentence=False); load one "
            "that was trained with it"
        )
    inputs = make_inputs(cfg, tokenizer, firsts, seconds)
    scores = np.zeros(len(inputs))
    for rows in buckets(cfg, inputs):
        found = forward.next_sentence(rows.arrays())
        scores[rows.indices] = _finite(found)[: len(rows.indices), 0]
    return scores.tolist()


def embed_texts(
    cfg: ModelConfig,
    tokenizer: Tokenizer,
    forward: Forward,
    texts: Sequence[str],
    *,
    normalize: bool,
    truncate: bool,
) -> np.ndarray:
    """One vector for each text, float32 [B, D]; see `Model.embed`.

    Raises:
      GenerationError: a text is too long, or a flag is none.
    """
    _check_flags(normalize=normalize, truncate=truncate)
    inputs = make_inputs(cfg, tokenizer, texts, truncate=truncate)
    vectors_bd = np.zeros((len(inputs), cfg.embedding_dim), np.float32)
    for rows in buckets(cfg, inputs):
        found = _finite(forward.embeddings(rows.arrays()))
        vectors_bd[rows.indices] = found[: len(rows.indices)]
    if not normalize:
        return vectors_bd
    lengths_b1 = np.linalg.norm(vectors_bd, axis=1, keepdims=True)
    return vectors_bd / np.maximum(lengths_b1, 1e-12)


def classify_texts(
    cfg: ModelConfig,
    tokenizer: Tokenizer,
    forward: Forward,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    *,
    top_k: int | None,
    truncate: bool,
) -> list[list[Label]] | list[list[LabelledToken]] | list[list[Score]]:
    """Labels of each text, or of its tokens; see `Model.classify`.

    Raises:
      GenerationError: the model has no classifier, a text is too long, or `top_k` is out of range.
    """
    labels = cfg.classifier.labels
    if not labels:
        raise GenerationError(
            "this model has no classifier (model.classifier has no labels); load one that was "
            "trained with labels"
        )
    _check_flags(truncate=truncate)
    if top_k is not None:
        require_whole("top_k", top_k, 1, " labels")
        if top_k > len(labels):
            raise GenerationError(
                f"top_k={top_k} is not possible; the classifier has {len(labels)} labels"
            )
    most = len(labels) if top_k is None else int(top_k)
    if pairs is not None and not is_encoder(cfg):
        raise GenerationError("a decoder reads one text; write both into it, without pairs")
    inputs = make_inputs(cfg, tokenizer, texts, pairs, truncate=truncate)
    frame = frame_ids(tokenizer)
    found: dict[int, Any] = {}
    for rows in buckets(cfg, inputs):
        scores = _finite(forward.labels(rows.arrays()))
        for row, i in enumerate(rows.indices):
            if cfg.classifier.is_score:
                found[i] = [Score(labels[0], float(scores[row, 0]))]
                continue
            if cfg.classifier.level == "sequence":
                found[i] = _best_labels(labels, scores[row], most)
                continue
            found[i] = [
                LabelledToken(token_text(tokenizer, number), number, tuple(best))
                for place, number in enumerate(inputs[i].ids)
                if number not in frame and (best := _best_labels(labels, scores[row, place], most))
            ]
    return [found[i] for i in range(len(texts))]


def token_text(tokenizer: Tokenizer, number: int) -> str:
    """The text of one token, without space around it; a special token's own name."""
    named = getattr(tokenizer, "token", None)
    return tokenizer.decode([number]).strip() or (named and named(number)) or f"<{number}>"


def _filled(
    tokenizer: Tokenizer, text: Input, places: list[int], logits_mv: np.ndarray, top_k: int
) -> Filled:
    logits_mv = _finite(logits_mv).astype(np.float64)
    weights_mv = np.exp(logits_mv - logits_mv.max(axis=1, keepdims=True))
    probabilities_mv = weights_mv / weights_mv.sum(axis=1, keepdims=True)
    # Stable, so that of equal candidates the lower id is first, on every machine.
    order_mk = np.argsort(-probabilities_mv, axis=1, kind="stable")[:, :top_k]
    best = list(text.ids)
    for place, order_k in zip(places, order_mk, strict=True):
        best[place] = int(order_k[0])
    masks = []
    for mask, place in enumerate(places):
        candidates = []
        for number in order_mk[mask].tolist():
            ids = [*best[:place], number, *best[place + 1 :]]
            probability = float(probabilities_mv[mask, number])
            name = token_text(tokenizer, number)
            candidates.append(Candidate(name, number, probability, tokenizer.decode(ids)))
        masks.append(tuple(candidates))
    return Filled(tokenizer.decode(best), tuple(masks))


def _best_labels(labels: tuple[str, ...], scores_c: np.ndarray, most: int) -> list[Label]:
    order = np.argsort(-scores_c, kind="stable")[:most]
    return [Label(labels[c], float(scores_c[c])) for c in order]


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise GenerationError(
            "the model gives numbers that are not finite; its weights are damaged, or dtype is too "
            'narrow for it (try dtype="float32")'
        )
    return values


def _check_flags(**flags: Any) -> None:
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise GenerationError(f"{name}={flag!r} is not possible; give True or False")


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")
