"""Tasks that come with the package, over data that is on every machine or in a package.

mmlu_dev       282 questions of MMLU's development set, by letter; the extra `harness` brings them
mmlu_dev_text  the same, the choices' texts scored
addition       sums of two numbers, to be written
python_docs    perplexity of the standard library's docstrings
"""

from __future__ import annotations

import ast
import importlib.util
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmasos_jax.errors import MissingExtraError

_OPTION = re.compile(r"\s*\(([A-E])\)\s*")
_MODULES = (
    *("argparse", "ast", "base64", "bisect", "calendar", "collections", "configparser"),
    *("contextlib", "copy", "csv", "datetime", "difflib", "enum", "fractions", "functools"),
    *("getopt", "heapq", "json", "logging", "os", "pathlib", "pickle", "random", "shelve"),
    *("shutil", "statistics", "string", "subprocess", "tempfile", "textwrap", "typing", "zipfile"),
)


def mmlu_dev() -> list[dict[str, Any]]:
    """The questions that lm-evaluation-harness ships as examples, with their answers.

    Raises:
      MissingExtraError: it is not installed.
    """
    import yaml

    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            "the task mmlu_dev reads questions that come with lm-eval, which is not installed; "
            "pip install 'llmasos-jax[harness]'"
        )
    folder = Path(spec.origin).parent / "tasks" / "mmlu" / "flan_cot_fewshot"
    rows = []
    for path in sorted(folder.glob("mmlu_*.yaml")):
        samples = yaml.safe_load(path.read_text("utf-8")).get("fewshot_config", {})["samples"]
        for sample in samples:
            row = _mmlu_row(path.stem.removeprefix("mmlu_"), sample)
            if row is not None:
                rows.append(row)
    return rows


def _mmlu_row(subject: str, sample: Mapping[str, str]) -> dict[str, Any] | None:
    """A question with its options, which end its text; None where they or the answer lack."""
    question, *parts = _OPTION.split(sample["question"])
    letters, choices = parts[0::2], [text.strip() for text in parts[1::2]]
    answer = re.findall(r"answer is \(?([A-E])\)?", sample["target"])
    if letters not in (list("ABCD"), list("ABCDE")) or not answer or answer[-1] not in letters:
        return None
    return {
        "subject": subject.replace("_", " "),
        "question": question.strip(),
        "letters": letters,
        "choices": choices,
        "options": "\n".join(f"{a}. {text}" for a, text in zip(letters, choices, strict=True)),
        "answer": letters.index(answer[-1]),
    }


def addition() -> list[dict[str, Any]]:
    """200 sums of numbers below 100, with four examples before each."""
    rng = random.Random(0)
    pair = lambda: (rng.randrange(100), rng.randrange(100))
    rows = []
    for _ in range(200):
        shown = "\n".join(f"{a} + {b} = {a + b}" for a, b in (pair() for _ in range(4)))
        a, b = pair()
        rows.append({"examples": shown, "a": a, "b": b, "sum": str(a + b)})
    return rows


def python_docs() -> list[dict[str, Any]]:
    """The docstrings of a few modules of the standard library, of the Python that runs this."""
    rows = []
    for name in _MODULES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            text = ast.get_docstring(ast.parse(Path(spec.origin).read_text("utf-8")))
            if text:
                rows.append({"module": name, "text": text})
    return rows


DATA: Mapping[str, Callable[[], list[dict[str, Any]]]] = {
    "mmlu_dev": mmlu_dev,
    "addition": addition,
    "python_docs": python_docs,
}

BUILTIN: Mapping[str, Mapping[str, Any]] = {
    "mmlu_dev": {
        "description": "MMLU's development questions (Hendrycks et al., 2021), by letter",
        "kind": "choice",
        "data": {"builtin": "mmlu_dev"},
        "prompt": "{question}\n{options}\nAnswer:",
        "choices": "letters",
        "metrics": ["accuracy", "f1_macro", "calibration_error"],
    },
    "mmlu_dev_text": {
        "description": "MMLU's development questions, the choices' texts scored",
        "kind": "choice",
        "data": {"builtin": "mmlu_dev"},
        "prompt": "Question: {question}\nAnswer:",
        "choices": "choices",
        "metrics": ["accuracy", "accuracy_per_byte"],
    },
    "addition": {
        "description": "sums of two numbers below 100, after four examples",
        "kind": "generation",
        "data": {"builtin": "addition"},
        "prompt": "{examples}\n{a} + {b} =",
        "answer": "sum",
        "metrics": ["exact_match_normalized"],
        "max_length": 6,
        "stop": ["\n"],
    },
    "python_docs": {
        "description": "docstrings of the standard library",
        "kind": "perplexity",
        "data": {"builtin": "python_docs"},
        "prompt": "{text}",
        "metrics": ["perplexity", "perplexity_per_byte", "perplexity_per_word"],
    },
}
