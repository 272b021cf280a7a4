"""What the families of encoders share: which heads a file has, and the names of their tensors.

A file has the heads of the class that saved it, and those whose tensors it holds all the same: the
first release of BERT calls itself `BertForMaskedLM` and has the score of the next sentence too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmasos_jax.config.heads import Classifier
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.rows import PRODUCT, TWICE, VECTOR
from llmasos_jax.interop.tables import Ignored, Row, row

TIED = "and the config ties the output layer to the embedding (tie_word_embeddings)"
SAME_BIAS = "the bias of the output layer, which is there twice"
MOST_LABELS = 2**16
SINGLE_LABEL = "single_label_classification"
REGRESSION = "regression"


def linear(ours: str, theirs: str) -> tuple[Row, Row]:
    """The rows of a product that is in no layer, and of its bias.

    Example:
      >>> [r.ours for r in linear("pooler", "bert.pooler.dense")]
      [('pooler.w',), ('pooler.bias',)]
    """
    return (
        row(f"{ours}.w", f"{theirs}.weight", PRODUCT),
        row(f"{ours}.bias", f"{theirs}.bias", VECTOR),
    )


def output_rows(decoder: str, bias: str) -> tuple[Row, ...]:
    """The rows of an output layer behind a transform that is tied to the embedding.

    Its bias has one of two names, or both.
    """
    return (
        row("head.bias", bias, VECTOR),
        row("head.bias", f"{decoder}.bias", VECTOR),
    )


def untied_output_rows(decoder: str, bias: str) -> tuple[Row, ...]:
    """The same with weights of its own: transformers 5 then reads the decoder's own bias."""
    return (
        row("head.w", f"{decoder}.weight", PRODUCT),
        row("head.bias", f"{decoder}.bias {bias}", TWICE),
        *reversed(output_rows(decoder, bias)),
    )


def output_ignored(decoder: str, bias: str, embedding: str) -> tuple[Ignored, Ignored]:
    """What a file may repeat of an output layer."""
    stem = decoder.replace(".", r"\.")
    return (
        Ignored(rf"{stem}\.weight", TIED, equals=embedding),
        Ignored(rf"{stem}\.bias", SAME_BIAS, equals=bias),
    )


def saved_class(keys: Keys) -> str:
    """The class that saved the file; "" where it does not say."""
    return (keys.found.get("architectures") or [""])[0]


def labels(keys: Keys) -> tuple[str, ...]:
    """The names of the classes, in the order of their scores.

    Raises:
      FormatError: `id2label` does not name each number from 0 on.
    """
    names = keys.group("id2label")
    if names is None:
        count = keys.integer("num_labels", 2)
        if count > MOST_LABELS:
            raise keys.error("num_labels", f"must be at most {MOST_LABELS}")
        return tuple(f"LABEL_{i}" for i in range(count))
    found = names.found
    order = [str(i) for i in range(len(found))]
    if set(order) != set(found) or not all(isinstance(v, str) for v in found.values()):
        raise keys.error("id2label", "must name the classes 0, 1, ... by strings")
    keys.only("num_labels", len(order), why='"id2label" names the classes')
    return tuple(found[i] for i in order)


def sequence_labels(keys: Keys) -> tuple[str, ...]:
    """The names of the classes of which a text has exactly one, or that of a number to be guessed.

    Raises:
      FormatError: it is another problem, any number of labels or of numbers; or `labels` finds
        something wrong.
    """
    names = labels(keys)
    problem, why = SINGLE_LABEL, "classify chooses one of several labels by softmax"
    if len(names) == 1:
        problem, why = REGRESSION, "one label is a number to be guessed"
    keys.only("problem_type", None, problem, why=why)
    return names


def class_of(cfg: ModelConfig, stem: str) -> str:
    """The class of transformers with the heads of a model, if there is one.

    Example:
      >>> class_of(ModelConfig(10, 64, 1, causal=False, head="mlm"), "Bert")
      'BertForMaskedLM'
    """
    if cfg.classifier.labels:
        return f"{stem}For{cfg.classifier.level.capitalize()}Classification"
    if cfg.head is not None:
        return f"{stem}For{'PreTraining' if cfg.next_sentence else 'MaskedLM'}"
    return f"{stem}ForNextSentencePrediction" if cfg.next_sentence else f"{stem}Model"


def label_keys(cfg: ModelConfig) -> dict[str, Any]:
    """The names of the classes as `config.json` has them; nothing without a classifier."""
    names = cfg.classifier.labels
    if not names:
        return {}
    kind = REGRESSION if cfg.classifier.is_score else SINGLE_LABEL
    problem = {"problem_type": kind} if cfg.classifier.level == "sequence" else {}
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        **problem,
    }


def name_in(table: Mapping[str, str], ours: str) -> str:
    """The first name of theirs for a name of ours.

    Where there is none the table's first name is as good as another: what reads back differently
    is refused.
    """
    return next((name for name, value in table.items() if value == ours), next(iter(table)))


def with_heads(
    cfg: ModelConfig,
    keys: Keys,
    *,
    output: str,
    pooler: str | None = None,
    next_sentence: str | None = None,
) -> ModelConfig:
    """A trunk with the heads that its file has.

    Args:
      cfg: the trunk.
      keys: of the whole file; knows the names of the tensors.
      output: what the names of the output layer begin with.
      pooler: of the pooler; None if the family has none.
      next_sentence: of the score of the next sentence; None if the family has none.

    Raises:
      FormatError: the names of the classes are missing or wrong.
    """
    saved = saved_class(keys)
    is_tied = keys.flag("tie_word_embeddings", True)
    has_output = saved.endswith(("ForPreTraining", "ForMaskedLM")) or keys.has_tensors(output)
    has_next = next_sentence is not None and (
        saved.endswith(("ForPreTraining", "ForNextSentencePrediction"))
        or keys.has_tensors(next_sentence)
    )
    is_sequence = saved.endswith("ForSequenceClassification")
    has_pooler = pooler is not None and (has_next or is_sequence or keys.has_tensors(pooler))
    changes: dict[str, Any] = {"pooler": has_pooler, "next_sentence": has_next}
    if has_output:
        changes |= {"head": "mlm", "tie_embeddings": is_tied}
    if is_sequence or saved.endswith("ForTokenClassification"):
        level = "sequence" if is_sequence else "token"
        names = sequence_labels(keys) if is_sequence else labels(keys)
        changes["classifier"] = Classifier(names, level)
    return cfg.replace(**changes)
