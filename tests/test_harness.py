"""lm-evaluation-harness on a tiny model: a local task through its own program, and wrong input."""

import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_model import SMALL, small_model
from tolerances import SIMPLE

from llmasos_jax import evals
from llmasos_jax.errors import EvaluationError
from llmasos_jax.generate.model import Model

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")  # of lm-eval and what it imports

ROOT = Path(__file__).resolve().parent.parent
PAIRS = [("Q: ab ", "yes"), ("Q: ab ", "no"), ("Q: ab", " a"), ("", "word"), ("x" * 120, "yz")]
TASK = """
task: tiny
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{q}}\\nA:"
doc_to_choice: "{{options}}"
doc_to_target: right
metric_list: [{metric: acc}]
"""


@functools.cache
def model() -> Model:
    return small_model(SMALL)


@functools.cache
def adapter():
    from llmasos_jax.evals.harness.model import LLMasOSLM

    return LLMasOSLM(model())


def asked(*args):
    return SimpleNamespace(args=args)


def test_log_likelihoods_are_those_of_the_whole_forward_pass():
    found = adapter().loglikelihood([asked(*pair) for pair in PAIRS], disable_tqdm=True)
    for (context, continuation), (total, is_greedy) in zip(PAIRS, found, strict=True):
        ids = model().encode(context + continuation)
        num = len((context[len(context.rstrip()) :] + continuation).encode())
        ids = ids[-97:] if len(ids) > 97 else ids
        logits = np.asarray(model().logits([ids[:-1]]), np.float64)[0, -num:]
        logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        expected = logp[np.arange(num), ids[-num:]].sum()
        assert total == pytest.approx(expected, rel=SIMPLE)
        assert is_greedy == (logp.argmax(1) == ids[-num:]).all()


def test_a_rolling_likelihood_is_the_perplexity():
    text = "a text that fits"
    (total,) = adapter().loglikelihood_rolling([asked(text)])
    # The beginning token is there twice: lm-eval puts it before what the tokenizer gives.
    ids = [256, *model().encode(text)]
    logits = np.asarray(model().logits([ids[:-1]]), np.float64)[0]
    logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    assert total == pytest.approx(logp[np.arange(len(ids) - 1), ids[1:]].sum(), rel=SIMPLE)
    assert math.isfinite(evals.perplexity(model(), text))


def test_texts_are_those_of_generate_text():
    options = {"until": ["\n"], "max_gen_toks": 4, "do_sample": False}
    found = adapter().generate_until([asked("one", options), asked("two two", options)])
    written = model().generate_text(["one", "two two"], 4, 0, stop="\n")
    assert found == written


def test_an_option_that_is_not_known_is_refused():
    with pytest.raises(EvaluationError, match="generate_until was given num_beams=4"):
        adapter().generate_until([asked("one", {"num_beams": 4, "max_gen_toks": 2})])
    with pytest.raises(EvaluationError, match="max_gen_toks=96 leaves no room"):
        adapter().generate_until([asked("one", {"max_gen_toks": 96})])
    with pytest.raises(EvaluationError, match="--apply_chat_template is not possible"):
        adapter().apply_chat_template([{"role": "user", "content": "x"}])


@pytest.mark.slow
def test_the_program_runs_a_local_task(tmp_path):
    rows = [
        {"q": "ab", "options": ["x", "yes"], "right": 1},
        {"q": "c", "options": ["u", "v"], "right": 0},
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny.yaml").write_text(TASK.replace("DATA", str(data)))
    model().save(tmp_path / "model")
    words = ["run", "--model=llmasos", f"--model_args=pretrained={tmp_path}/model", "--tasks=tiny"]
    words += [f"--include_path={tmp_path}/tasks", f"--output_path={tmp_path}/out", "--log_samples"]
    done = subprocess.run(
        [sys.executable, "-m", "llmasos_jax.evals.harness", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        # datasets would look for the torch that is installed beside it.
        env={**os.environ, "USE_TORCH": "0"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (tmp_path / "out").rglob("samples_tiny*.jsonl")
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    pairs = [asked(f"Q: {row['q']}\nA:", f" {c}") for row in rows for c in row["options"]]
    expected = [total for total, _ in adapter().loglikelihood(pairs, disable_tqdm=True)]
    found = [float(r[0][0]) for s in sorted(samples, key=lambda s: s["doc_id"]) for r in s["resps"]]
    np.testing.assert_allclose(found, expected, rtol=SIMPLE)
