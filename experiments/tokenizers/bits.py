"""Makes bits per byte of a sweep's losses per token, which then may be compared.

    python experiments/tokenizers/bits.py runs/tokenizers/report.json

Every run scores all of the same held-out documents, each token but the first of a document
(`<s>`) once, `</s>` too: bits per byte are loss x tokens / (ln 2 x bytes of the text). Means,
intervals and tests are those of the sweep's report. Writes result.json beside this file.
"""

import json
import math
import sys
from pathlib import Path

from llmasos_jax.config.build import load_config
from llmasos_jax.data.sources import documents
from llmasos_jax.data.split import split_documents
from llmasos_jax.sweep.report.statistics import compare, holm, summarize

HERE = Path(__file__).parent


def heldout_bytes() -> int:
    """Bytes of the documents that `ablation` holds out, as UTF-8."""
    data = load_config("ablation").data
    texts = documents(data)
    return sum(len(texts[i].encode()) for i in split_documents(texts, data).heldout)


def bits_per_byte(report: dict, count: int) -> dict[str, dict[int, float]]:
    """Of each setting, by seed."""
    found: dict[str, dict[int, float]] = {}
    for point in report["points"]:
        if point["status"] != "done":
            raise SystemExit(f"{point['name']} is {point['status']}; run the sweep again")
        nats = point["values"]["heldout_loss"] * point["values"]["heldout_tokens"]
        found.setdefault(point["setting"], {})[point["seed"]] = nats / (math.log(2) * count)
    return found


def counting(report: dict, count: int) -> dict[str, dict[str, float]]:
    """Bits per byte of counts of the training text: of pieces, and of pairs of them."""
    found = {}
    for point in report["points"]:
        values = point["values"]
        found[point["setting"]] = {
            name: math.log2(values[f"{name}_perplexity"]) * values["heldout_tokens"] / count
            for name in ("unigram", "bigram")
        }
    return found


def standings(found: dict[str, dict[int, float]], baseline: str) -> list[dict]:
    """Each setting's mean with its interval, and its difference to the baseline, best first."""
    summaries = {name: summarize(list(seeds.values())) for name, seeds in found.items()}
    tests = {name: compare(found[name], found[baseline]) for name in found if name != baseline}
    adjusted = dict(zip(tests, holm([t.p for t in tests.values() if t]), strict=True))
    rows = []
    for name in sorted(found, key=lambda name: summaries[name].mean):
        summary, test = summaries[name], tests.get(name)
        row = {"setting": name, "mean": summary.mean, "half_width": summary.half_width}
        if test is not None:
            row |= {"difference": test.difference, "difference_half_width": test.half_width}
            row |= {"p_holm": adjusted[name]}
        rows.append(row)
    return rows


def main(path: Path) -> None:
    """Writes and prints."""
    report = json.loads(path.read_text("utf-8"))
    count = heldout_bytes()
    rows = standings(bits_per_byte(report, count), report["baseline"])
    result = {"heldout_bytes": count, "bits_per_byte": rows, "counting": counting(report, count)}
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    for row in rows:
        print(*(f"{x:.4f}" if isinstance(x, float) else x for x in row.values()), sep="  ")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
