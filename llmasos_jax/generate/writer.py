"""Runs requests batch by batch and turns the ids into text as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmasos_jax.generate.session import Request, Session
from llmasos_jax.generate.stream import Decoder, TextStream

# More prompts than this run one batch after the other: the cache of a batch has to fit in memory.
LARGEST_BATCH = 32
# Tokens between two looks at the texts: few where somebody is reading along.
STREAM_STEPS = 4
STOP_STEPS = 16


def write(
    session: Session,
    decoder: Decoder,
    requests: Sequence[Request],
    stop: Sequence[str],
    *,
    stream: bool,
    deterministic: bool,
) -> Iterator[tuple[int, str]]:
    """Writes the texts.

    Args:
      session: runs the model.
      decoder: of its tokenizer.
      requests: what to write.
      stop: strings that end a text and are not in it.
      stream: whether pieces come every few tokens, or each text in one piece.
      deterministic: whether each runs alone in the one shape for all.

    Yields:
      (index of the request, piece of its text), pieces never empty.
    """
    size = 1 if deterministic else LARGEST_BATCH
    for first in range(0, len(requests), size):
        batch = requests[first : first + size]
        texts = [TextStream(decoder, request.ids, stop) for request in batch]
        # The same steps of the same program whatever the bound: streaming changes no bit.
        bound = STREAM_STEPS if stream else STOP_STEPS if stop else max(r.max_new for r in batch)
        run = session.start(batch, deterministic=deterministic)
        while True:
            for row, ids in enumerate(run.new_ids()):
                if texts[row].is_stopped:
                    continue
                if piece := texts[row].push(ids):
                    yield first + row, piece
                if texts[row].is_stopped:
                    run.end(row)
            if run.is_done:
                break
            run.advance(bound)
        for row, text in enumerate(texts):
            if piece := text.finish():
                yield first + row, piece
