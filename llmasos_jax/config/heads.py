"""What an encoder gives besides logits, and the encoder of an encoder-decoder."""

from __future__ import annotations

from dataclasses import dataclass

from llmasos_jax.config.require import require_one_of
from llmasos_jax.errors import ConfigError

LEVELS = ("sequence", "token")


@dataclass(frozen=True)
class Classifier:
    """One product from a hidden state to a score for each label.

    Attributes:
      labels: names of the classes, in the order of the scores; () for no classifier. One alone, of
        texts, is no class but a quantity: its score is the number itself.
      level: "sequence", one label for a text, from the pooled state (the pooler's, where there is
        one, else what `pooling` gives); "token", one for each token, from its last hidden state.
    """

    labels: tuple[str, ...] = ()
    level: str = "sequence"

    @property
    def is_score(self) -> bool:
        """Whether it gives a text one number, as it is, and no probabilities."""
        return len(self.labels) == 1 and self.level == "sequence"


@dataclass(frozen=True)
class Encoder:
    """The encoder of an encoder-decoder (Vaswani et al., 2017, arXiv 1706.03762).

    Its blocks are the model's own, without causality, windows and cross-attention; the embedding
    table is shared.

    Attributes:
      num_layers: blocks of the encoder; 0 for a model that is one stack.
    """

    num_layers: int = 0


def check_classifier(classifier: Classifier) -> None:
    """Raises ConfigError for the first field that breaks a rule."""
    require_one_of("model.classifier.level", classifier.level, LEVELS)
    if not classifier.labels and classifier != Classifier():
        raise ConfigError(
            "model.classifier.labels=() is no classifier, and model.classifier.level is set; name "
            "the labels too, or leave out the level"
        )
    twice = {label for label in classifier.labels if classifier.labels.count(label) > 1}
    if twice or "" in classifier.labels:
        what = f'"{sorted(twice)[0]}" twice' if twice else "an empty name"
        raise ConfigError(f"model.classifier.labels has {what}; each label needs a name of its own")


def check_encoder(encoder: Encoder, causal: bool) -> None:
    """Raises ConfigError for the first field that breaks a rule."""
    if encoder.num_layers < 0:
        raise ConfigError(f"model.encoder.num_layers={encoder.num_layers} must be 0 or more")
    if encoder.num_layers and not causal:
        raise ConfigError(
            "model.encoder.num_layers is above 0, so this stack is the decoder, and a decoder is "
            "causal; set model.causal=True, or model.encoder.num_layers=0 for an encoder alone"
        )
