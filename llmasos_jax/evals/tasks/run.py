"""Runs a task on a model: what is there already is kept, the rest is scored and appended."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from llmasos_jax.errors import EvaluationError
from llmasos_jax.evals.metrics.intervals import bootstrap
from llmasos_jax.evals.tasks.measures import measure
from llmasos_jax.evals.tasks.prompts import Chat, prompts_of
from llmasos_jax.evals.tasks.records import Asked, stream
from llmasos_jax.evals.tasks.result import Figure, TaskResult, read_records, versions
from llmasos_jax.evals.tasks.task import Task
from llmasos_jax.format.write import write_file
from llmasos_jax.generate.chat import chat_text
from llmasos_jax.generate.model import Model
from llmasos_jax.progress import Progress

Record = dict[str, Any]


def run_task(
    model: Model,
    task: Task,
    *,
    out: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    fresh: bool = False,
) -> TaskResult:
    """Asks a model what a task asks.

    Args:
      model: with a tokenizer.
      task: what is asked.
      out: folder for the result and its examples; None keeps nothing.
      limit: examples at most, the first ones; None is all.
      seed: of sampling and of the intervals.
      fresh: whether to begin again where examples are there already.

    Raises:
      EvaluationError: the task and the model do not fit, or a file is none of ours.
    """
    is_whole = lambda number: isinstance(number, int) and not isinstance(number, bool)
    if limit is not None and not (is_whole(limit) and limit > 0):
        raise EvaluationError(f"limit={limit!r} is not possible; give a whole number above 0")
    if not (is_whole(seed) and seed >= 0):
        raise EvaluationError(f"seed={seed!r} is not possible; give a whole number, 0 or more")
    rows = task.examples()
    shown = task.shown_rows(rows)
    task_hash, model_hash = task.fingerprint(rows, shown), fingerprint(model)
    settings = settings_of(model, task)
    # What a result depends on is in its name: another model, task, seed or release of what computes
    # it never goes on with it.
    programs = {name: each for name, each in versions().items() if name in ("llmasos_jax", "jax")}
    key = hashlib.sha256(
        json.dumps([task_hash, model_hash, seed, settings, programs], sort_keys=True).encode()
    ).hexdigest()[:12]
    stem = "-".join(map(_in_file_name, (task.name, model.manifest.name, key)))
    # Examples are drawn from all rows, so that a prompt does not depend on the limit.
    prompts = prompts_of(task, rows, shown, len(rows[:limit]), _chat(model, task))
    rows = rows[:limit]
    file = None if out is None else out / f"{stem}.jsonl"
    records = {} if file is None else _kept(file, fresh, task.kind)
    todo = [i for i in range(len(rows)) if i not in records]
    start = time.monotonic()
    found = stream(Asked(model, task, rows, prompts, todo, seed))
    for record in _appended(found, file, len(todo), task.name):
        records[record["index"]] = record
    seconds = time.monotonic() - start
    result = TaskResult(
        task=task.name,
        task_hash=task_hash,
        model=model.manifest.name,
        model_hash=model_hash,
        metrics=figures(task.metrics, [records[i] for i in range(len(rows))], seed),
        num_examples=len(rows),
        num_truncated=sum(bool(records[i].get("cut")) for i in range(len(rows))),
        seed=seed,
        settings={**settings, "limit": limit},
        versions=versions(),
        seconds=round(seconds, 3),
        examples=None if file is None else file.name,
        records=[records[i] for i in range(len(rows))],
    )
    if file is not None:
        write_file(file.with_suffix(".json"), result.to_json().encode("utf-8", "surrogatepass"))
    return result


def _chat(model: Model, task: Task) -> Chat | None:
    """How the model writes a conversation down, where the task is one."""
    if not task.chat:
        return None
    tokenizer, name = model._require_tokenizer(), model.manifest.name
    return lambda messages: chat_text(model.chat_template(), messages, tokenizer, name)


def _in_file_name(text: str) -> str:
    """A name as part of a file's, whose own may have 255 bytes."""
    clean = re.sub(r"[^\w.]+", "_", text)
    return clean.encode("utf-8", "replace")[:100].decode("utf-8", "ignore")


def figures(names: Sequence[str], records: list[Record], seed: int) -> dict[str, Figure]:
    """The metrics of some examples, each with its interval."""
    found = {}
    for name in names:
        (measured,) = measure(name, records)
        interval = bootstrap(measured.rows, measured.finish, seed=seed)
        found[name] = Figure(interval.value, interval.low, interval.high, measured.signature)
    return found


def settings_of(model: Model, task: Task) -> dict[str, Any]:
    """How a task runs on a model."""
    weights = model._weights
    return {
        "kind": task.kind,
        "dtype": str(jnp.dtype(weights.runtime.dtype)),
        "platform": weights.placing.platform,
        "max_length": task.max_length if task.kind == "generation" else None,
        "temperature": task.temperature if task.kind == "generation" else None,
        **({} if task.fewshot is None else {"fewshot": _named(task.fewshot)}),
        **({"chat_template": model.chat_template()} if task.chat else {}),
    }


def _named(fewshot: Mapping[str, Any]) -> dict[str, Any]:
    """The same wherever its file lies."""
    file = fewshot["file"]
    return {**fewshot, "file": None if file is None else Path(file).name}


def fingerprint(model: Model) -> str:
    """SHA-256 in hex of a model: its parameters, its tokenizer's files, its weights as stored.

    Made once for each model, whose weights never change: all of them are read for it.
    """
    found = model.__dict__.get("_fingerprint")
    if found is None:
        found = model.__dict__["_fingerprint"] = _fingerprint(model)
    return found


def _fingerprint(model: Model) -> str:
    digest = hashlib.sha256()
    manifest = model.manifest
    generation = asdict(manifest.generation)
    text = json.dumps([asdict(manifest.parameters), generation], sort_keys=True, default=str)
    digest.update(text.encode("utf-8", "surrogatepass"))
    if model.tokenizer is not None:
        with tempfile.TemporaryDirectory() as name:
            entry = model.tokenizer.save(Path(name))
            digest.update(json.dumps(entry, sort_keys=True, default=str).encode())
            for path in sorted(Path(name).rglob("*")):
                if path.is_file():
                    digest.update(path.read_bytes())
    for name, tensor in sorted(model._weights.stored().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.read().view("uint8").reshape(-1).data)
    return digest.hexdigest()


def _kept(file: Path, fresh: bool, kind: str) -> dict[int, Record]:
    """Examples that are there already, by index; what a killed program left of one is cut off."""
    if fresh or not file.exists():
        file.unlink(missing_ok=True)
        return {}
    records = read_records(file, kind)
    raw = file.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) != len(raw):
        with open(file, "rb+") as opened:
            opened.truncate(len(whole))
    return {record["index"]: record for record in records}


def _appended(
    records: Iterator[Record], file: Path | None, total: int, label: str
) -> Iterator[Record]:
    """Passes records on, each on disk before the next one is asked for."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    with Progress(label, total) as progress:
        for record in records:
            if file is not None:
                with open(file, "ab") as opened:
                    line = json.dumps(record, ensure_ascii=False)
                    opened.write(line.encode("utf-8", "surrogatepass") + b"\n")
            progress.advance(1)
            yield record
