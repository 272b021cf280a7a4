"""Checks an implementation of LLMasOS format 1 against the kit. Needs Python and nothing else.

    python conformance/check.py COMMAND...

For each model, COMMAND is run with three more arguments: MODEL_DIR REQUEST.json ANSWER.json.
The request is `{"sequences": [[id, ...], ...], "prompt": [id, ...], "count": n, "texts": [...]}`.
The answer that COMMAND writes is `{"logits": [[[number] * V] * T, ...], "greedy": [id] * n,
"ids": [[id]]}`: scores for each sequence, n greedy ids after the prompt, the ids of each text.
`prompt` and `texts` may be absent, and then so are their answers. `"token_types": [[type]]` has one
for each id of each sequence. Of an encoder-decoder a sequence and the prompt are what the encoder
reads, and `"decoder": [[id]]` what the decoder reads beside each sequence: the logits are of these.
With `prefix_lm`, `"prefixes": [n]` says how many ids of each sequence are its prefix, and the whole
prompt is one. A model without an output layer answers
`{"hidden": [[[number] * D] * T, ...]}`, what the last layer gives (after the final norm where there
is one), in place of `logits`. Of an encoder `ids` are what it reads of each text, with
`"embeddings": [[number] * D]` (not divided by their length) and, where it has a classifier,
`"labels": [[probability] * C]`, or `[[[probability] * C] * tokens]` without the special ids; and
`"pairs": [[text, text]]` asks for `"next_sentence": [probability]`. For a model that breaks the
format, COMMAND must say so by an exit status that is not 0.

Prints one line for each case; exit status 0 if all passed, 1 if not, 2 if COMMAND cannot be run.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

KIT = Path(__file__).resolve().parent
TOLERANCE = 1e-4  # of float32 logits: absolute, and relative to the expected value
TIMEOUT_S = 300
VALUES = ("logits", "hidden", "embeddings", "labels", "next_sentence")


def run(command: list[str], model: Path, request: dict, folder: Path) -> tuple[int, dict, str]:
    """Runs the command; gives its exit status, its answer and what it said."""
    asked, answered = folder / "request.json", folder / "answer.json"
    asked.write_text(json.dumps(request))
    answered.unlink(missing_ok=True)
    done = subprocess.run(
        [*command, str(model), str(asked), str(answered)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    said = (done.stderr.strip().splitlines() or [""])[-1][:200]
    answer = json.loads(answered.read_text()) if answered.exists() else {}
    return done.returncode, answer, said


def worst(found: list, expected: list) -> float:
    """The largest difference in units of the tolerance; infinite where the shapes differ."""
    if isinstance(expected, list):
        if not isinstance(found, list) or len(found) != len(expected):
            return float("inf")
        return max((worst(f, e) for f, e in zip(found, expected, strict=True)), default=0.0)
    if not isinstance(found, (int, float)) or found != found:
        return float("inf")
    return abs(found - expected) / (TOLERANCE * (1 + abs(expected)))


def check_model(command: list[str], case: dict, folder: Path) -> str:
    """Runs one model; returns what is wrong, or an empty text."""
    expected = case["expected"]
    status, answer, said = run(command, KIT / "models" / case["model"], case["request"], folder)
    if status:
        return f"exit status {status}: {said}"
    for key in VALUES:
        off = worst(answer.get(key, []), expected.get(key, []))
        if off > 1:
            return f"{key} are off by {off:.3g} tolerances"
    for key in ("greedy", "ids"):
        if key in expected and answer.get(key) != expected[key]:
            return f"{key} are {answer.get(key)}, expected {expected[key]}"
    return ""


def check_refusal(command: list[str], case: dict, folder: Path) -> str:
    """Breaks a model as the case says; the command must refuse it."""
    model = folder / "broken"
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(KIT / "models" / case["model"], model)
    path = model / case["file"]
    raw = path.read_bytes()
    if "replace" in case:
        old, new = (text.encode() for text in case["replace"])
        if raw.count(old) != 1:
            sys.exit(f"the kit is damaged: {case['what']}")
        raw = raw.replace(old, new)
    path.write_bytes(raw[: case.get("cut", len(raw))])
    status, _, _ = run(command, model, {"sequences": [[1, 2, 3]]}, folder)
    return "" if status else "was not refused"


def main(command: list[str]) -> int:
    """Runs all cases; returns the exit status."""
    if not command:
        print(__doc__)
        return 2
    failed = 0
    cases = [json.loads(p.read_text()) for p in sorted((KIT / "cases").glob("*.json"))]
    refusals = json.loads((KIT / "refused.json").read_text())
    with tempfile.TemporaryDirectory() as name:
        work = [(c["model"], check_model, c) for c in cases]
        work += [(f"refuses {c['what']}", check_refusal, c) for c in refusals]
        for title, check, case in work:
            try:
                problem = check(command, case, Path(name))
            except (OSError, ValueError, subprocess.TimeoutExpired) as error:
                problem = str(error)
                if isinstance(error, (FileNotFoundError, PermissionError)):
                    print(f"cannot run {command[0]}: {error}")
                    return 2
            failed += bool(problem)
            print(f"{'FAIL' if problem else 'ok  '} {title}{': ' + problem if problem else ''}")
    print(f"{len(cases) + len(refusals) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
