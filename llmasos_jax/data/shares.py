"""How much of its text a run reads: epochs, and the parts of a mixture."""

from __future__ import annotations

from llmasos_jax.data.mixture import MixedCorpus
from llmasos_jax.data.pipeline import Data
from llmasos_jax.data.streaming.batches import StreamedText


def epochs(data: Data, steps: int, *, by_token: bool) -> float | None:
    """How often so many steps read the text; None of a stream and of a mixture.

    Args:
      data: an opened run.
      steps: of the run.
      by_token: whether rows are full, so that tokens say it more exactly.
    """
    if isinstance(data.corpus, StreamedText | MixedCorpus) or data.num_train_rows is None:
        return None
    if by_token:
        return steps * data.tokens_per_batch / data.num_train_tokens
    return steps * data.batch_size / data.num_train_rows


def padding(data: Data) -> float | None:
    """The share of the places in one epoch's rows that hold no token; None of a stream."""
    if data.num_train_rows is None:
        return None
    return 1.0 - data.num_train_tokens / (data.num_train_rows * data.sequence_length)


def parts(data: Data, steps: int) -> dict[str, dict[str, float]] | None:
    """Of each part of a mixture its documents, tokens, share of the rows and epochs."""
    if not isinstance(data.corpus, MixedCorpus):
        return None
    shares, total = data.corpus.shares, sum(data.corpus.shares.values())
    return {
        name: {
            "documents": part.train.num_documents,
            "tokens": part.train.num_tokens,
            "share": round(shares[name] / total, 6),
            "epochs": round(
                steps * data.batch_size * shares[name] / total / data.num_rows_of[name], 4
            ),
        }
        for name, part in data.corpus.parts.items()
    }
