r"""A task as a small file: data, prompt, choices, metrics.

    name = "capitals"
    kind = "choice"                       # or "generation", or "perplexity"
    prompt = "Question: {question}\nAnswer:"
    choices = "options"                   # a field that lists them, or a list of texts
    answer = "right"                      # a field: the place of the right one from 0, or its text
    metrics = ["accuracy"]

    [data]
    file = "capitals.jsonl"               # beside the task's file

docs/evaluation.md has every key.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmasos_jax.errors import EvaluationError, did_you_mean
from llmasos_jax.evals.tasks.builtin import BUILTIN, DATA
from llmasos_jax.evals.tasks.prompts import read_fewshot

KINDS = {
    "choice": ("accuracy",),
    "generation": ("exact_match",),
    "perplexity": ("perplexity",),
}
_FIELD = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Task:
    """What is asked and how it is scored.

    Attributes:
      name: of the task.
      kind: "choice" (the likeliest of several continuations), "generation" or "perplexity".
      data: {"file": JSON lines}, {"dataset": name, "split": ..., "config": ...} of `datasets`, or
        {"builtin": name}.
      prompt: what the model reads; {field} stands for a field of the example.
      choices: the field that lists them, or texts with fields; () where there are none.
      continuation: what is scored after the prompt; {choice} is the choice.
      chat: whether the prompt is a user's message, which the model reads in its own chat template;
        examples that are shown are turns before it. `continuation` is "{choice}" then unless a
        task's file says another one.
      system: with `chat`, a system message before all; None leaves it to the template.
      answer: the field with the right choice's place from 0, or its text; for "generation" with
        the text that is right, or a list of such.
      metrics: names of figures; () is what the kind usually has.
      max_length, stop, temperature: of a generated text.
      fewshot: examples that are shown before each one, with their answers: {"num", "seed",
        "separator", "file"} (see `tasks.prompts`); None shows none.
      window, stride: of perplexity; None as in `evals.perplexity`.
      description: for people.
      folder: what `data.file` is relative to.
    """

    name: str
    kind: str
    data: Mapping[str, Any]
    prompt: str
    choices: str | Sequence[str] = ()
    continuation: str = " {choice}"
    chat: bool = False
    system: str | None = None
    answer: str = "answer"
    metrics: Sequence[str] = ()
    max_length: int = 64
    stop: Sequence[str] = ()
    temperature: float = 0.0
    fewshot: Mapping[str, Any] | None = None
    window: int | None = None
    stride: int | None = None
    description: str = ""
    folder: Path = field(default=Path("."), compare=False)

    def examples(self) -> list[dict[str, Any]]:
        """The rows of the data.

        Raises:
          EvaluationError: there are none, or they cannot be read.
        """
        return read_rows(self)

    def shown_rows(self, rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """The rows that examples are shown of: the task's own, or a file's; () where none are.

        Raises:
          EvaluationError: the file cannot be read.
        """
        if self.fewshot is None:
            return ()
        file = self.fewshot["file"]
        return rows if file is None else _lines(self.folder / file)

    def fingerprint(
        self, rows: Sequence[Mapping[str, Any]], shown: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """SHA-256 in hex of all that decides what is asked: the task's keys and its rows.

        Args:
          rows: of its data.
          shown: what `shown_rows` gave of them.
        """
        keys = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("folder", "description", "data"):
            del keys[name]
        if not self.chat:
            del keys["chat"], keys["system"]
        parts: list[Any] = [keys, list(rows)]
        if self.fewshot is None:
            del keys["fewshot"]
        else:  # where a file lies does not matter, what is in it does
            keys["fewshot"] = {**self.fewshot, "file": None}
            parts.append(None if self.fewshot["file"] is None else list(shown))
        text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def prompt_of(self, row: Mapping[str, Any], number: int) -> str:
        """The prompt of an example."""
        return fill(self.prompt, row, f"example {number}")

    def choices_of(self, row: Mapping[str, Any], number: int) -> list[str]:
        """The choices of an example.

        Raises:
          EvaluationError: fewer than two, or no such field.
        """
        where = f"example {number}"
        if isinstance(self.choices, str):
            found = _get(row, self.choices, where)
            texts = [str(text) for text in found] if isinstance(found, list) else []
        else:
            texts = [fill(text, row, where) for text in self.choices]
        if len(texts) < 2:
            raise EvaluationError(f"{where} of {self.name} has choices {texts}; give at least two")
        return texts

    def answer_of(self, row: Mapping[str, Any], choices: Sequence[str], number: int) -> int:
        """The place of the right choice.

        Raises:
          EvaluationError: it is none of them.
        """
        found = _get(row, self.answer, f"example {number}")
        if isinstance(found, str) and found in choices:
            return choices.index(found)
        if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < len(choices):
            return found
        raise EvaluationError(
            f'example {number} of {self.name}: "{self.answer}" is {found!r}; expected one of '
            f"{list(choices)} or its place, 0 to {len(choices) - 1}"
        )

    def solution_of(self, row: Mapping[str, Any], number: int) -> str:
        """What stands after the prompt of an example that is shown: `continuation`, answered right.

        Raises:
          EvaluationError: it has no right answer.
        """
        if self.kind == "choice":
            choices = self.choices_of(row, number)
            right = choices[self.answer_of(row, choices, number)]
        else:
            right = self.references_of(row, number)[0]
        return fill(self.continuation, {**row, "choice": right}, f"example {number}")

    def references_of(self, row: Mapping[str, Any], number: int) -> list[str]:
        """The texts that are right.

        Raises:
          EvaluationError: there is none.
        """
        found = _get(row, self.answer, f"example {number}")
        texts = found if isinstance(found, list) else [found]
        if not texts or not all(isinstance(text, str | int | float) for text in texts):
            raise EvaluationError(
                f'example {number} of {self.name}: "{self.answer}" is {found!r}; give a text, or a '
                "list of at least one"
            )
        return [str(text) for text in texts]


def load_task(source: str | os.PathLike[str] | Task | Mapping[str, Any]) -> Task:
    """Reads a task.

    Args:
      source: a .toml or .json file, the name of a task that comes with the package, or its keys.

    Raises:
      EvaluationError: there is none, or a key is unknown, missing or of the wrong kind.

    Example:
      >>> load_task("addition").kind
      'generation'
    """
    if isinstance(source, Task):
        return source
    if isinstance(source, Mapping):
        return _task(dict(source), "the task", Path("."))
    text = os.fspath(source)
    if text in BUILTIN:
        return _task({"name": text, **BUILTIN[text]}, text, Path("."))
    path = Path(text)
    if not path.is_file():
        hint = did_you_mean(text, BUILTIN)
        raise EvaluationError(f'no task is named "{text}"{hint} (or give a .toml or .json file)')
    try:
        raw = path.read_text(encoding="utf-8")
        keys = json.loads(raw) if path.suffix == ".json" else tomllib.loads(raw)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} cannot be read as a task: {error}") from error
    if not isinstance(keys, dict):
        raise EvaluationError(f"{path} holds no keys; a task is a table of them")
    return _task({"name": path.stem, **keys}, str(path), path.parent)


def read_rows(task: Task) -> list[dict[str, Any]]:
    """The rows of a task's data.

    Raises:
      EvaluationError: there are none, or they cannot be read.
      MissingExtraError: a built-in task's data comes with a package that is not installed.
    """
    data = dict(task.data)
    if "builtin" in data:
        rows = DATA[data["builtin"]]()
    elif "file" in data:
        rows = _lines(task.folder / data["file"])
    else:
        from llmasos_jax.data.rows import dataset_rows

        rows = dataset_rows(data["dataset"], data.get("config"), data.get("split", "test"))
    if not rows:
        raise EvaluationError(f"{task.name}: the data has no rows; give at least one example")
    return rows


def fill(template: str, row: Mapping[str, Any], where: str) -> str:
    """Puts fields of a row where {field} stands; {{ and }} are braces.

    Raises:
      EvaluationError: no such field.

    Example:
      >>> fill("{{{a}}} b", {"a": 1}, "here")
      '{1} b'
    """
    parts = re.split(r"(\{\{|\}\}|\{[^{}]*\})", template)
    braces = {"{{": "{", "}}": "}"}
    return "".join(
        braces.get(part) or (str(_get(row, part[1:-1], where)) if _FIELD.fullmatch(part) else part)
        for part in parts
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        # By "\n" alone: a JSON text may hold U+2028 and its like. Some editors begin with a mark.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise EvaluationError(f"{path}, line {number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise EvaluationError(f"{path}, line {number} is no JSON object; give one a line")
        rows.append(row)
    return rows


def _get(row: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in row:
        raise EvaluationError(f'{where} has no field "{name}"{did_you_mean(name, row)}')
    return row[name]


def _task(keys: dict[str, Any], where: str, folder: Path) -> Task:
    fields = {f.name: f for f in dataclasses.fields(Task) if f.name != "folder"}
    for name, value in keys.items():
        if name not in fields:
            raise EvaluationError(f'{where}: "{name}" is no key{did_you_mean(str(name), fields)}')
        if not _fits(value, str(fields[name].type)):
            raise EvaluationError(
                f"{where}: {name}={value!r} is a {type(value).__name__}, expected "
                f"{fields[name].type}"
            )
    for name in ("name", "kind", "data", "prompt"):
        if name not in keys:
            raise EvaluationError(
                f'{where}: "{name}" is missing; a task needs kind, data, prompt, and where it is '
                "no file a name"
            )
    if keys.get("chat"):
        keys = {"continuation": "{choice}", **keys}
    if keys.get("fewshot") is not None:
        keys = {**keys, "fewshot": read_fewshot(keys["fewshot"], where)}
    task = Task(**keys, folder=folder)
    _check(task, where)
    return task if task.metrics else dataclasses.replace(task, metrics=KINDS[task.kind])


def _fits(value: Any, kind: str) -> bool:
    if value is None or isinstance(value, bool):
        return _has(kind, "None" if value is None else "bool")
    if isinstance(value, list | tuple) and not all(isinstance(one, str) for one in value):
        return False  # all lists of a task are of texts
    allowed = {
        "Mapping": dict,
        "Sequence": (list, tuple),
        "str": str,
        "int": int,
        "float": (int, float),
    }
    return any(isinstance(value, kinds) for word, kinds in allowed.items() if _has(kind, word))


def _has(kind: str, word: str) -> bool:
    """Whether a type names this one itself, not inside of brackets."""
    return word in re.sub(r"\[.*?\]", "", kind).replace("|", " ").split()


def _check(task: Task, where: str) -> None:
    from llmasos_jax.evals.tasks.measures import MEASURES

    if task.kind not in KINDS:
        raise EvaluationError(f'{where}: kind="{task.kind}"{did_you_mean(task.kind, KINDS)}')
    known = {name: kind for name, (kind, _) in MEASURES.items()}
    for name in task.metrics:
        if known.get(name) != task.kind:
            own = [n for n, kind in known.items() if kind == task.kind]
            raise EvaluationError(
                f'{where}: metrics has "{name}", which is none of {task.kind}; it has '
                f"{', '.join(own)}"
            )
    if task.kind == "choice" and not task.choices:
        raise EvaluationError(f'{where}: "choices" is missing; a choice task needs them')
    if task.kind == "choice" and "{choice}" not in task.continuation:
        raise EvaluationError(
            f"{where}: continuation={task.continuation!r} has no {{choice}}, so all choices would "
            'score alike; give one that has it, as " {choice}"'
        )
    if task.kind == "perplexity" and (task.fewshot is not None or task.chat):
        name = "chat" if task.fewshot is None else "fewshot"
        raise EvaluationError(
            f"{where}: a perplexity task has {name}, but its texts have no answers; leave it out"
        )
    if task.system is not None and not task.chat:
        raise EvaluationError(
            f"{where}: system={task.system!r} is a message of a conversation; set chat = true, or "
            "leave it out"
        )
    sources = [name for name in ("file", "dataset", "builtin") if name in task.data]
    if len(sources) != 1:
        raise EvaluationError(
            f"{where}: data={dict(task.data)}; give one of file, dataset, builtin"
        )
    known_keys = {"file": (), "builtin": (), "dataset": ("config", "split")}[sources[0]]
    for name in task.data:
        if name not in (*sources, *known_keys):
            hint = did_you_mean(str(name), (*sources, *known_keys))
            raise EvaluationError(f'{where}: data has no key "{name}"{hint}')
    wrong = [name for name, value in task.data.items() if not isinstance(value, str | None)]
    if wrong:
        raise EvaluationError(
            f"{where}: data.{wrong[0]}={task.data[wrong[0]]!r} is a "
            f"{type(task.data[wrong[0]]).__name__}, expected a text"
        )
    if sources == ["builtin"] and task.data["builtin"] not in DATA:
        hint = did_you_mean(str(task.data["builtin"]), DATA)
        raise EvaluationError(f'{where}: data.builtin="{task.data["builtin"]}" is unknown{hint}')
