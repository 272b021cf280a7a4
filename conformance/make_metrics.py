"""Makes `metrics.json`: the kit's cases of metrics.

    python conformance/make_metrics.py

Perplexity is computed here from `numpy_reader.py` in float64, BLEU and chrF by sacrebleu, ROUGE by
rouge-score (Chinese with a space put between characters, and each character replaced by a Latin
word, since it deletes others); the rest was computed by hand and stands here as fractions.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

KIT = Path(__file__).resolve().parent
sys.path[:0] = [str(KIT)]

from numpy_reader import Model  # noqa: E402
from text_reader import encode  # noqa: E402

TEXTS = ["The cat sat on the mat. 猫坐在垫子上。", "a", "One two three four five six seven eight."]
HYPOTHESES = ["The cat is on the mat.", "There's a dog in the garden, isn't there?"]
REFERENCES = ["The cat sat on the mat.", "There is a dog in the garden, no?"]
SECOND = ["A cat is on the mat.", "A dog's in the garden."]
CHINESE = ["你好，世界！今天天气很好。", "他们在图书馆里读书。"]
OTHER_CHINESE = ["你好，世界！今天下雨了。", "他们在家里读一本书。"]
KINDS = ["rouge1", "rouge2", "rougeL", "rougeLsum"]


def perplexity(name: str, window: int, stride: int) -> dict:
    """Of a model of the kit."""
    folder = KIT / "models" / name
    model, nats, tokens = Model(folder), 0.0, 0
    for text in TEXTS:
        ids, done = encode(folder, text), 1
        for begin in range(0, max(len(ids) - 1, 0), stride):
            end = min(begin + window, len(ids))
            scores = np.asarray(model.logits(ids[begin:end]), np.float64)
            logp = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
            for place in range(done, end):
                nats -= logp[place - 1 - begin, ids[place]]
                tokens += 1
            done = end
            if end == len(ids):
                break
    num_bytes, words = sum(len(t.encode()) for t in TEXTS), sum(len(t.split()) for t in TEXTS)
    return {
        "value": math.exp(nats / tokens),
        "per_byte": math.exp(nats / num_bytes),
        "per_word": math.exp(nats / words),
    }


def rouge(hypotheses: list[str], references: list[str]) -> dict:
    """By rouge-score, each Chinese character as a word of its own."""
    latin = lambda text: "".join(
        f" u{ord(c):x} " if c > "\u2e80" and c.isalpha() else c for c in text
    )
    scorer = RougeScorer(KINDS)
    rows = [scorer.score(latin(r), latin(h)) for h, r in zip(hypotheses, references, strict=True)]
    return {kind: float(np.mean([row[kind].fmeasure for row in rows])) for kind in KINDS}


def texts(metric: str, references: list, value: float, hypotheses: list[str], **options) -> dict:
    """A case of a metric of texts."""
    arguments = {"hypotheses": hypotheses, "references": references}
    return case(metric, arguments, {"value": value}, **options)


def case(metric: str, arguments: dict, expected: dict, **options) -> dict:
    """A case."""
    return {"metric": metric, "arguments": arguments, "options": options, "expected": expected}


def labels(metric: str, a: list, b: list, value: float, **options) -> dict:
    """A case of a metric of two lists."""
    names = {
        "exact_match": ("predictions", "references"),
        "calibration_error": ("confidences", "is_correct"),
    }.get(metric, ("predictions", "labels"))
    return case(metric, dict(zip(names, (a, b), strict=True)), {"value": value}, **options)


def main() -> None:
    """Writes the cases."""
    found = []
    for name, window, stride in (
        ("defaults", 1024, 512),
        ("sentencepiece", 8, 3),
        ("tokenizers", 6, 5),
    ):
        most = json.loads((KIT / "models" / name / "model.json").read_text())["parameters"]
        window = min(window, most["context_length"])
        options = {"window": window, "stride": min(stride, window - 1)}
        given = {"model": name, "texts": TEXTS}
        found.append(case("perplexity", given, perplexity(name, **options), **options))
    both = [list(pair) for pair in zip(REFERENCES, SECOND, strict=True)]
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
    zh = sacrebleu.BLEU(tokenize="zh")
    found += [
        labels("accuracy", [1, 2, 3, 1], [1, 2, 1, 1], 3 / 4),
        labels("f1", [1, 1, 0, 1, 0], [1, 0, 1, 1, 0], 2 / 3),
        labels("f1", ["a", "b", "c", "a"], ["a", "b", "b", "b"], 7 / 18, average="macro"),
        labels("f1", ["a", "b", "c", "a"], ["a", "b", "b", "b"], 1 / 2, average="micro"),
        labels("exact_match", ["Paris ", "rome"], ["paris", ["Roma", "rome"]], 1 / 2),
        labels("exact_match", ["Paris ", "rome"], ["paris", ["Roma", "rome"]], 1.0, normalize=True),
        labels("calibration_error", [0.41, 0.49, 0.6, 0.9, 1.0], [1, 0, 0, 1, 1], 3 / 25, bins=5),
        labels("calibration_error", [0.07, 0.065], [1, 0], (1 - 0.135) / 2, bins=100),
        case("pass_at_k", {"num_samples": 10, "num_passed": 3, "k": 5}, {"value": 11 / 12}),
        texts("bleu", REFERENCES, bleu.corpus_score(HYPOTHESES, [REFERENCES]).score, HYPOTHESES),
        texts("bleu", both, bleu.corpus_score(HYPOTHESES, [REFERENCES, SECOND]).score, HYPOTHESES),
        texts("bleu", OTHER_CHINESE, zh.corpus_score(CHINESE, [OTHER_CHINESE]).score, CHINESE),
        texts("bleu", CHINESE, 100.0, CHINESE),
        texts("bleu", ["你好"], 100.0, ["你好"]),
        texts("chrf", REFERENCES, chrf.corpus_score(HYPOTHESES, [REFERENCES]).score, HYPOTHESES),
        texts("chrf", OTHER_CHINESE, chrf.corpus_score(CHINESE, [OTHER_CHINESE]).score, CHINESE),
    ]
    for hypotheses, references in ((HYPOTHESES, REFERENCES), (CHINESE, OTHER_CHINESE)):
        given = {"hypotheses": hypotheses, "references": references}
        found.append(case("rouge", given, rouge(hypotheses, references)))
    lines = ",\n".join(json.dumps(one, ensure_ascii=False) for one in found)
    (KIT / "metrics.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
