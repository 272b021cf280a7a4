"""Checks an implementation of LLMasOS's metrics against the kit. Needs Python and nothing else.

    python conformance/check_metrics.py COMMAND...

For each case of `metrics.json`, COMMAND is run with two more arguments: REQUEST.json ANSWER.json.
The request is `{"metric": name, "arguments": {...}, "options": {...}}`, names as in
docs/metrics.md; of "perplexity" the arguments are `{"model": folder, "texts": [...]}`. The answer
that COMMAND writes is `{figure: number}`: "value", or the kinds of ROUGE by name, or for
perplexity "value", "per_byte" and "per_word".

Prints one line for each case; exit status 0 if all passed, 1 if not, 2 if COMMAND cannot be run.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

KIT = Path(__file__).resolve().parent
TOLERANCE = 1e-4  # relative, and absolute where the value is below 1
TIMEOUT_S = 300


def problem(found: dict, expected: dict) -> str:
    """What is wrong with an answer, or an empty text."""
    for name, value in expected.items():
        number = found.get(name)
        if not isinstance(number, (int, float)):
            return f"{name} is {number!r}, expected {value}"
        if not abs(number - value) <= TOLERANCE * max(1.0, abs(value)):
            return f"{name} is {number}, expected {value}"
    return ""


def run(command: list[str], case: dict, folder: Path) -> dict:
    """Runs the command on a case; gives its answer."""
    asked, answered = folder / "request.json", folder / "answer.json"
    request = {name: case[name] for name in ("metric", "arguments", "options")}
    if "model" in request["arguments"]:
        model = str(KIT / "models" / request["arguments"]["model"])
        request["arguments"] = {**request["arguments"], "model": model}
    asked.write_text(json.dumps(request))
    answered.unlink(missing_ok=True)
    words = [*command, str(asked), str(answered)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode or not answered.exists():
        raise ValueError(f"status {done.returncode}: {done.stderr.strip()[-200:]}")
    return json.loads(answered.read_text())


def main(command: list[str]) -> int:
    """Runs all cases; returns the exit status."""
    if not command:
        print(__doc__)
        return 2
    failed = 0
    cases = json.loads((KIT / "metrics.json").read_text())
    with tempfile.TemporaryDirectory() as name:
        for number, case in enumerate(cases):
            try:
                wrong = problem(run(command, case, Path(name)), case["expected"])
            except (FileNotFoundError, PermissionError) as error:
                print(f"cannot run {command[0]}: {error}")
                return 2
            except (OSError, ValueError, subprocess.TimeoutExpired) as error:
                wrong = str(error)
            failed += bool(wrong)
            title = f"{'FAIL' if wrong else 'ok  '} {number} {case['metric']}"
            print(f"{title}{': ' + wrong if wrong else ''}")
    print(f"{len(cases) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
