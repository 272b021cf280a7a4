"""MMLU's development questions in two halves of subjects, each held out from the other.

    python experiments/questions/data.py DIR

takes the questions that lm-evaluation-harness ships (the extra `harness`). For each half H, 0 and
1, DIR/trainH.jsonl has the other half's questions with the letter of the right choice, {"prompt",
"completion"}, DIR/askedH.jsonl its own, and DIR/halfH.toml asks them. A subject is in one half.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmasos_jax.evals.tasks.builtin import mmlu_dev

PROMPT = "{question}\n{options}\nAnswer:"
TASK = """kind = "choice"
description = "MMLU's development questions by letter, the subjects of half {half}"
prompt = "{{prompt}}"
choices = "letters"
metrics = ["accuracy", "f1_macro", "calibration_error"]

[data]
file = "asked{half}.jsonl"
"""


def halves(subjects: Sequence[str]) -> dict[str, int]:
    """The half of each subject, by the hash of its name: as many in both, to one."""
    by_hash = lambda subject: hashlib.sha256(subject.encode()).digest()
    return {subject: place % 2 for place, subject in enumerate(sorted(set(subjects), key=by_hash))}


def write(rows: Sequence[dict[str, Any]], folder: Path) -> dict[str, int]:
    """Writes the files of both halves; returns how many rows each has."""
    half = halves([row["subject"] for row in rows])
    counts = {}
    for held in (0, 1):
        train, asked = [], []
        for row in rows:
            prompt = PROMPT.format(**row)
            letter = row["letters"][row["answer"]]
            if half[row["subject"]] == held:
                kept = {name: row[name] for name in ("subject", "letters", "answer")}
                asked.append({"prompt": prompt, **kept})
            else:
                train.append({"prompt": prompt, "completion": f" {letter}"})
        for name, some in ((f"train{held}", train), (f"asked{held}", asked)):
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in some)
            (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
            counts[name] = len(some)
        (folder / f"half{held}.toml").write_text(TASK.format(half=held), encoding="utf-8")
    return counts


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    print(json.dumps(write(mmlu_dev(), args.folder)))


if __name__ == "__main__":
    main()
