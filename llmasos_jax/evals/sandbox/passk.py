"""pass@k: how often one of k samples of a program passes its tests."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmasos_jax.errors import EvaluationError
from llmasos_jax.evals.sandbox.limits import Limits
from llmasos_jax.evals.sandbox.run import run_python

_FIELDS = ("task_id", "prompt", "test", "entry_point")


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """The unbiased estimate of pass@k from n samples of which c passed: 1 - C(n-c, k) / C(n, k).

    Chen et al., 2021, arXiv 2107.03374, equation 1, in whole numbers up to the last division.

    Raises:
      EvaluationError: `k` is not 1 to n, or `num_passed` not 0 to n.

    Example:
      >>> pass_at_k(10, 3, 1), round(pass_at_k(10, 3, 5), 6)
      (0.3, 0.916667)
    """
    n, c = num_samples, num_passed
    if not (1 <= k <= n and 0 <= c <= n):
        raise EvaluationError(f"k={k} and {c} of {n} passed; give k from 1 to {n}, and 0 to {n}")
    return (math.comb(n, k) - math.comb(n - c, k)) / math.comb(n, k)


@dataclass(frozen=True)
class Problem:
    """A function to be written.

    Attributes:
      name: of the problem.
      prompt: code before what a model writes.
      test: code after it, which defines `check(candidate)`.
      entry_point: the function's name.
    """

    name: str
    prompt: str
    test: str
    entry_point: str


@dataclass(frozen=True)
class PassAtK:
    """What came out.

    Attributes:
      estimates: by k, the mean over problems.
      passed: by problem, whether each sample passed.
      trouble: by problem, for each sample the last line that it printed, or "timed out".
    """

    estimates: dict[int, float]
    passed: dict[str, tuple[bool, ...]]
    trouble: dict[str, tuple[str, ...]]


def read_problems(path: str | os.PathLike[str]) -> dict[str, Problem]:
    """Problems of a file in HumanEval's form: JSON lines of task_id, prompt, test, entry_point.

    Raises:
      EvaluationError: a line has not these fields.
    """
    problems = {}
    # By "\n" alone: a JSON text may hold U+2028 and its like.
    lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, prompt, test, entry = (str(row[field]) for field in _FIELDS)
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(
                f"{path}, line {number}: {error!r}; give JSON with {', '.join(_FIELDS)}"
            ) from error
        problems[name] = Problem(name, prompt, test, entry)
    return problems


def score_code(
    problems: Mapping[str, Problem],
    samples: Mapping[str, Sequence[str]],
    ks: Sequence[int] = (1,),
    *,
    limits: Limits | None = None,
    workers: int | None = None,
) -> PassAtK:
    """Runs samples of code against their problems' tests, each in a sandbox of its own.

    A sample passes if its tests ran to their end: the last line of the program then prints a word
    of this call, so a sample that exits early with status 0 does not pass. Sample and tests share
    one process: the walls hold whatever is written, but a sample that is made to cheat its own
    tests (reads its file for the word, answers "equal" to everything) passes.

    Args:
      problems: by name.
      samples: by problem, what a model wrote after the prompt, n for each.
      ks: for which k; each at most n.
      limits: of each program.
      workers: programs at a time; None is one for each processor.

    Raises:
      EvaluationError: names do not match, there are fewer samples than k, or this platform cannot
        build the sandbox.
    """
    if set(problems) != set(samples) or not problems:
        odd = sorted(set(problems) ^ set(samples))[:3]
        raise EvaluationError(f"problems and samples differ: {odd}; give samples of each problem")
    short = min(len(each) for each in samples.values())
    if not ks or max(ks) > short or min(ks) < 1:
        raise EvaluationError(f"ks={tuple(ks)}, and a problem has {short} samples; give as many")
    jobs = [(name, text) for name, texts in samples.items() for text in texts]
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        ended = list(pool.map(lambda job: _run(problems[job[0]], job[1], limits), jobs))
    passed: dict[str, tuple[bool, ...]] = dict.fromkeys(samples, ())
    trouble: dict[str, tuple[str, ...]] = dict.fromkeys(samples, ())
    for (name, _), (is_right, word) in zip(jobs, ended, strict=True):
        passed[name] += (is_right,)
        trouble[name] += (word,)
    estimates = {
        k: float(np.mean([pass_at_k(len(each), sum(each), k) for each in passed.values()]))
        for k in ks
    }
    return PassAtK(estimates, passed, trouble)


def _run(problem: Problem, sample: str, limits: Limits | None) -> tuple[bool, str]:
    word = secrets.token_hex(16)
    parts = (problem.prompt + sample, problem.test, f"check({problem.entry_point})")
    # On a line of its own, wherever the program's own output ended.
    outcome = run_python("\n".join((*parts, f"print({chr(10) + word!r})")), limits)
    lines = outcome.output.strip().splitlines()
    if outcome.status == 0 and lines and lines[-1] == word:
        return True, ""
    if outcome.timed_out:
        return False, "timed out"
    return False, lines[-1] if lines else f"ended with status {outcome.status}"
