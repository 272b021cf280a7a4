"""Metrics beside what others published, or compute.

BLEU of the sixteen English-German systems of WMT17 in sacrebleu's source archive, beside the
figures of mteval-v13a.pl that stand in its `test.sh`; ROUGE of 1,000 pairs of English docstrings
beside rouge-score; Chinese texts beside themselves and beside others; perplexity of
SmolLM2-135M-Instruct beside transformers, which reads the same dequantised weights. What was found
goes to `metrics_published.json` beside this file:

    pip download --no-deps --no-binary sacrebleu sacrebleu==2.6.0
    python experiments/acceptance/metrics_published.py sacrebleu-2.6.0.tar.gz SmolLM2.gguf

Needs the extras `eval` and `parity`; `--skip-model` leaves the last part out. Exit status 1 if a
figure is off.
"""

from __future__ import annotations

import argparse
import ast
import bz2
import importlib.metadata
import io
import json
import math
import pickle
import re
import sys
import sysconfig
import tarfile
from pathlib import Path
from typing import Any

from llmasos_jax import evals

HERE = Path(__file__).parent
SYSTEMS = "test/wmt17_en_de_systems.pkl.bz2"
KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
PAIRS = 1000
CHINESE = [
    "今天天气很好，我们去公园散步吧。",
    "他在图书馆里读了一本关于历史的书。",
    "这家餐厅的菜又便宜又好吃。",
    "火车晚点了两个小时，大家都很着急。",
]
UNRELATED = [
    "股票市场昨日大幅下跌，投资者损失惨重。",
    "请把窗户关上，外面风太大！",
    "孩子们正努力学习游泳。",
    "新型手机将于下月发布，价格未定。",
]


class Plain(pickle.Unpickler):
    """Reads lists, tuples and texts; whatever names a class is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuses."""
        raise pickle.UnpicklingError(f"the archive names {module}.{name}")


def wmt17(archive: Path) -> dict[str, Any]:
    """Each system's BLEU here and as published."""
    with tarfile.open(archive) as tar:
        members = {m.name.partition("/")[2]: m for m in tar.getmembers()}

        def read(name: str) -> bytes:
            file = tar.extractfile(members[name])
            if file is None:
                raise SystemExit(f"{archive} has no {name}")
            return file.read()

        systems = Plain(io.BytesIO(bz2.decompress(read(SYSTEMS)))).load()
        table = read("test.sh").decode().partition("declare -A MTEVAL=(")[2].partition(")")[0]
        figures = dict(re.findall(r'\["(\S+en-de)\.sgm"\]=([\d.]+)', table))
    *named, (_, references) = systems
    references = references[0] if isinstance(references[0], list) else references
    rows = {}
    for name, hypotheses in named:
        score = evals.bleu(hypotheses, references)
        rows[name] = {"bleu": round(score, 4), "published": float(figures[name])}
        rows[name]["signature"] = score.signature
        print(name, rows[name], flush=True)
    worst = max(abs(row["bleu"] - row["published"]) for row in rows.values())
    # Published with two digits, cut or rounded.
    return {"systems": rows, "worst": round(worst, 4), "ok": worst <= 0.01 and len(rows) == 16}


def docstrings(num: int) -> list[tuple[str, str]]:
    """Pairs of English texts: a docstring's first paragraph, and the whole of it."""
    found: list[tuple[str, str]] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        tree = ast.parse(path.read_text("utf-8", errors="replace"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node) or ""
                head, _, rest = text.partition("\n\n")
                if len(rest) > 80:
                    found.append((head, rest))
    step = len(found) / num
    return [found[int(i * step)] for i in range(num)]


def rouge() -> dict[str, Any]:
    """ROUGE of English pairs beside rouge-score's own tokenizer."""
    from rouge_score.rouge_scorer import RougeScorer

    from llmasos_jax.evals.metrics.summaries import rouge_rows

    pairs = docstrings(PAIRS)
    scorer = RougeScorer(list(KINDS))
    ours = rouge_rows([a for a, _ in pairs], [b for _, b in pairs])
    worst = 0.0
    for row, (hypothesis, reference) in zip(ours, pairs, strict=True):
        theirs = scorer.score(reference, hypothesis)
        worst = max(worst, *(abs(row[i] - theirs[k].fmeasure) for i, k in enumerate(KINDS)))
    means = dict(zip(KINDS, ours.mean(axis=0).round(4).tolist(), strict=True))
    return {"pairs": len(pairs), "means": means, "worst": worst, "ok": worst == 0}


def chinese() -> dict[str, Any]:
    """Figures of equal and of unrelated texts."""

    def figures(a: list[str], b: list[str]) -> dict[str, float]:
        found = {"bleu": evals.bleu(a, b), "chrf": evals.chrf(a, b), **evals.rouge(a, b)}
        return {name: round(float(value), 4) for name, value in found.items()}

    same, other = figures(CHINESE, CHINESE), figures(CHINESE, UNRELATED)
    largest = {name: 1.0 if name in KINDS else 100.0 for name in same}
    is_near_0 = all(value <= 0.15 * largest[name] for name, value in other.items())
    return {"same": same, "unrelated": other, "ok": same == largest and is_near_0}


def perplexity(path: Path) -> dict[str, Any]:
    """Ours, and transformers' by the loop of its own page on perplexity."""
    import torch
    import transformers

    from llmasos_jax.generate.load import load_model

    text = " ".join(" ".join(pair) for pair in docstrings(30))[:12000]
    model = load_model(path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    ids = torch.tensor([model.encode(text)])
    rows = []
    for window, stride in ((1024, 512), (256, 64)):
        score = evals.perplexity(model, text, window=window, stride=stride)
        nats, done = 0.0, 0
        for begin in range(0, ids.shape[1], stride):
            end = min(begin + window, ids.shape[1])
            labels = ids[:, begin:end].clone()
            labels[:, : -(end - done)] = -100
            with torch.no_grad():
                logits = theirs(ids[:, begin:end]).logits
            losses = torch.nn.functional.cross_entropy(
                logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum"
            )
            nats, done = nats + float(losses), end
            if end == ids.shape[1]:
                break
        expected = math.exp(nats / (ids.shape[1] - 1))
        row = {"window": window, "stride": stride, "tokens": ids.shape[1] - 1}
        row |= {"ours": float(score), "theirs": expected, "relative": abs(score / expected - 1)}
        rows.append(row)
        print(row, flush=True)
    return {"rows": rows, "ok": max(row["relative"] for row in rows) <= 1e-4}


def main() -> None:
    """Runs all parts and writes what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path, help="sacrebleu's source archive")
    parser.add_argument("model", type=Path, nargs="?", help="SmolLM2's .gguf")
    parser.add_argument("--skip-model", action="store_true")
    args = parser.parse_args()
    found: dict[str, Any] = {"wmt17": wmt17(args.archive), "rouge": rouge(), "chinese": chinese()}
    if not args.skip_model:
        found["perplexity"] = perplexity(args.model)
    names = ("sacrebleu", "rouge-score", "jax", "transformers", "torch")
    found["versions"] = {name: importlib.metadata.version(name) for name in names}
    is_ok = all(part["ok"] for name, part in found.items() if name != "versions")
    if not args.skip_model:
        text = json.dumps({"ok": is_ok, **found}, indent=1, ensure_ascii=False)
        (HERE / "metrics_published.json").write_text(text + "\n")
    print({name: part.get("ok") for name, part in found.items()})
    sys.exit(not is_ok)


if __name__ == "__main__":
    main()
