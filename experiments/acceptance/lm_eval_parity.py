"""lm-evaluation-harness on the same weights: our adapter beside its own transformers backend.

SmolLM2-135M-Instruct is written as a Hugging Face folder in float32, which both read. Two local
tasks over the 282 MMLU development questions that lm-eval ships: by letter, and by the choices'
texts. Every log-likelihood may differ by 1e-4 of its size (1e-4 where that is below 1), every
"greedy" and the accuracies not at all. What was found goes to `lm_eval_parity.json` beside this
file:

    python experiments/acceptance/lm_eval_parity.py SmolLM2-135M-Instruct.Q4_1.gguf

Needs the extras `harness` and `parity`, and accelerate and peft. Exit status 1 if a figure is off.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import llmasos
from llmasos_jax.evals.tasks.builtin import mmlu_dev

HERE = Path(__file__).parent
TOLERANCE = 1e-4
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{text}"
doc_to_choice: "{{{{{choices}}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
TASKS = {
    "mmlu_dev_letters": ("{{question}}\\n{{options}}\\nAnswer:", "letters"),
    "mmlu_dev_texts": ("Question: {{question}}\\nAnswer:", "choices"),
}


def write_tasks(folder: Path) -> None:
    """The questions, and a file for each task."""
    data = folder / "mmlu_dev.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in mmlu_dev()), encoding="utf-8")
    for name, (text, choices) in TASKS.items():
        filled = TASK.format(name=name, data=data, text=text, choices=choices)
        (folder / f"{name}.yaml").write_text(filled)


def evaluate(model: Any, folder: Path, limit: int | None) -> dict[str, Any]:
    """What lm-eval finds, by task: its figures, and every answer."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model=model,
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(folder)),
        limit=limit,
        bootstrap_iters=0,
        log_samples=True,
    )
    if found is None:
        raise SystemExit("lm-eval gave nothing")
    rows = {}
    for name in TASKS:
        samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
        answers = [tuple(answer[0]) for sample in samples for answer in sample["resps"]]
        figures = {k: v for k, v in found["results"][name].items() if k.startswith("acc")}
        rows[name] = {"figures": figures, "answers": answers, "num": len(samples)}
    return rows


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """How far one task's answers are apart."""
    pairs = list(zip(ours["answers"], theirs["answers"], strict=True))
    worst = max(abs(float(a[0]) - float(b[0])) / max(1.0, abs(float(b[0]))) for a, b in pairs)
    greedy = sum(str(a[1]) != str(b[1]) for a, b in pairs)
    names = [name for name in theirs["figures"] if "stderr" not in name]
    same = all(ours["figures"][name] == theirs["figures"][name] for name in names)
    return {
        "examples": ours["num"],
        "log_likelihoods": len(pairs),
        "worst": worst,
        "greedy_that_differ": greedy,
        "ours": {name: ours["figures"][name] for name in names},
        "theirs": {name: theirs["figures"][name] for name in names},
        "ok": worst <= TOLERANCE and greedy == 0 and same,
    }


def main() -> None:
    """Runs both and writes what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="SmolLM2's .gguf, or its name in the library")
    parser.add_argument("--limit", type=int, help="examples of each task; writes no file")
    args = parser.parse_args()
    from lm_eval.models.huggingface import HFLM

    from llmasos_jax.evals.harness.model import LLMasOSLM

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tasks(folder)
        llmasos.export(args.model, "hf", folder / "hf", dtype="float32", unproven=True)
        ours = evaluate(LLMasOSLM(str(folder / "hf")), folder, args.limit)
        peer = HFLM(pretrained=str(folder / "hf"), device="cpu", dtype="float32", batch_size=4)
        theirs = evaluate(peer, folder, args.limit)
    found = {name: compare(ours[name], theirs[name]) for name in TASKS}
    is_ok = all(row["ok"] for row in found.values())
    versions = {
        n: importlib.metadata.version(n) for n in ("lm-eval", "jax", "transformers", "torch")
    }
    text = json.dumps({"ok": is_ok, "tasks": found, "versions": versions}, indent=1)
    print(text)
    if args.limit is None:
        (HERE / "lm_eval_parity.json").write_text(text + "\n")
    sys.exit(not is_ok)


if __name__ == "__main__":
    main()
