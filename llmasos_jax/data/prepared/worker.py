"""A process that does tasks from its standard input; see `crew.py`."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import sys
import threading
from typing import IO, Any

from llmasos_jax.data.prepared.crew import BenchSpec
from llmasos_jax.data.prepared.manifest import TOKENIZER
from llmasos_jax.data.prepared.work import Bench
from llmasos_jax.data.tokenizers.tokenizer import fingerprint
from llmasos_jax.errors import DataError, LLMasOSError


def main() -> None:
    """Answers each task with its progress, then None; or with the error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a source or a tokenizer prints must not stand among the answers
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, tasks), daemon=True).start()
    spec: BenchSpec = tasks.get()
    sys.path[:] = spec.modules
    bench: Bench | None = None
    # At once, while the others still do the work that there is.
    with contextlib.suppress(Exception):  # which the first task meets again, and tells
        bench = _opened(spec)
    while True:
        task = tasks.get()
        try:
            bench = bench or _opened(spec)
            task.run(bench, lambda amount: _say(answers, amount))
        except LLMasOSError as error:
            _say(answers, error)
        except OSError as error:
            _say(answers, DataError(f"{spec.folder} cannot be written ({error}); make room there"))
        except Exception as error:
            _say(answers, DataError(f"a process that prepares data failed: {error!r}"))
        _say(answers, None)


def _read(pipe: IO[bytes], tasks: queue.SimpleQueue[Any]) -> None:
    while True:
        try:
            tasks.put(pickle.load(pipe))
        except EOFError:  # whoever gave tasks is gone, and what is half done is never asked for
            os._exit(0)


def _say(pipe: IO[bytes], answer: Any) -> None:
    pickle.dump(answer, pipe)
    pipe.flush()


def _opened(spec: BenchSpec) -> Bench:
    from llmasos_jax.data.sources import documents
    from llmasos_jax.data.tokenizers.load import load_tokenizer

    source = documents(spec.data, spec.cache)
    if source.key != spec.source_key:
        raise DataError(
            f'data.source="{spec.data.source}" is another text in a second process, so the work '
            "cannot be shared; set workers=1, or make the source the same every time"
        )
    tokenizer = load_tokenizer(spec.tokenizer, spec.folder / TOKENIZER, allow_code=True)
    if fingerprint(tokenizer) != spec.fingerprint:
        raise DataError(
            "the tokenizer, saved and loaded again, is another one, so the work cannot be shared; "
            "set workers=1, or correct its save"
        )
    return Bench(source, tokenizer, spec.data, spec.by_sentence, spec.folder)


if __name__ == "__main__":
    main()
