"""DPO in bfloat16, on a base of codes, on a mixture of experts: what is reported is the model's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_model import small_model
from tolerances import WHOLE_MODEL
from tuning_processes import BASE, prepare

import llmasos_jax
from llmasos_jax.config.build import default_config
from llmasos_jax.config.experts import Experts
from llmasos_jax.data.records.encode import Scored
from llmasos_jax.data.records.preferences import read_preferences
from llmasos_jax.finetune.resolve import resolve
from llmasos_jax.generate.model import Model
from llmasos_jax.train.hooks import read_metrics

BETA = 0.5


def config(folder: Path, **groups: dict[str, Any]) -> Any:
    made = default_config()
    made.finetune.update(base=str(folder / "base"), rank=4, beta=BETA, targets=("attn.*",))
    made.objective.name = "dpo"
    made.data.update(
        source="jsonl",
        path=str(folder / "pairs.jsonl"),
        sequence_length=64,
        heldout_fraction=0.2,
    )
    made.train.update(steps=4, batch_size=8, log_every_steps=1, eval_every_steps=4)
    made.optim.update(learning_rate=1e-2, warmup_steps=0)
    for name, values in groups.items():
        made[name].update(values)
    return made


def answers(made: Any, cache: Path) -> list[tuple[Scored, Scored]]:
    """The held-out pairs."""
    resolved, base = resolve(made)
    return read_preferences(resolved, base.tokenizer, cache).heldout.rows.pairs


def log_prob(model: Model, text: Scored) -> tuple[float, float]:
    """Of the scored tokens, nats; and how far off it may be in bfloat16.

    A logit is a product with rows of unit roundoff 2^-9 on both sides, so of about 2^-8 of the
    largest one; a log-probability is the difference of two such numbers.
    """
    logits_tv = np.asarray(model.logits([text.ids.tolist()]), np.float64)[0, :-1]
    top_t1 = logits_tv.max(axis=-1, keepdims=True)
    scores_tv = logits_tv - top_t1 - np.log(np.exp(logits_tv - top_t1).sum(axis=-1, keepdims=True))
    own_t = np.take_along_axis(scores_tv, text.ids[1:, None], axis=-1)[:, 0]
    is_scored_t = text.is_scored[1:]
    bound = 2 * 2.0**-8 * np.abs(logits_tv[is_scored_t]).max(axis=-1).sum()
    return float(own_t[is_scored_t].sum()), float(bound)


def rewards(tuned: Model, base: Model, pairs: list[Any]) -> tuple[np.ndarray, float]:
    """The rewards beta (log p - log p') of answers, [pairs, 2], and the bound of their means."""
    found, bounds = [], []
    for pair in pairs:
        mine, theirs = ([log_prob(model, text) for text in pair] for model in (tuned, base))
        found.append([BETA * (a[0] - b[0]) for a, b in zip(mine, theirs, strict=True)])
        bounds.append(BETA * max(a[1] + b[1] for a, b in zip(mine, theirs, strict=True)))
    return np.array(found), float(np.mean(bounds))


def check(values: dict[str, float], rewards_p2: np.ndarray, bound: float) -> None:
    margin_p = rewards_p2[:, 0] - rewards_p2[:, 1]
    chosen, rejected = rewards_p2.mean(axis=0)
    assert abs(values["heldout_chosen_reward"] - chosen) < bound
    assert abs(values["heldout_rejected_reward"] - rejected) < bound
    assert abs(values["heldout_margin"] - margin_p.mean()) < 2 * bound
    # The loss moves by at most as much as the margin.
    assert abs(values["heldout_loss"] - np.mean(np.log1p(np.exp(-margin_p)))) < 2 * bound
    assert margin_p.mean() > 0.05  # it learned something that could be compared


def run(made: Any, workdir: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    llmasos_jax.finetune(made, workdir)
    lines = read_metrics(workdir / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    return next(line for line in lines if "heldout_loss" in line), steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("dpo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(path / "cache"))
        prepare(path)
        yield path


@pytest.fixture(scope="module")
def plain(folder: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """A run in float32, which is what others are compared with, too."""
    return run(config(folder), folder / "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rewards_are_those_of_the_merged_model(folder: Path, plain: Any, dtype: str) -> None:
    made = config(folder, precision={"dtype": dtype})
    values, steps = plain if dtype == "float32" else run(made, folder / dtype)
    tuned, base = (llmasos_jax.load_model(str(folder / name)) for name in (dtype, "base"))
    found, bound = rewards(tuned, base, answers(made, folder / "cache"))
    check(values, found, bound if dtype == "bfloat16" else WHOLE_MODEL)
    # No adapter has moved yet: the run is its own reference.
    start = abs(steps[0]["loss"] - math.log(2))
    assert start < (1e-6 if dtype == "float32" else bound)


def test_on_codes_it_is_the_run_on_what_the_codes_say(folder: Path, plain: Any) -> None:
    pytest.importorskip("qwix", reason="needs the extra `finetune`")
    values, steps = run(config(folder, finetune={"quantize": "int8"}), folder / "codes")
    untouched = config(folder, finetune={"quantize": "int8"}, optim={"learning_rate": 1e-30})
    run(untouched, folder / "untouched")
    # An adapter that did not move adds nothing: this is the base as its codes say it.
    llmasos_jax.convert(str(folder / "untouched"), folder / "said")
    on_said = config(folder, finetune={"base": str(folder / "said")})
    same_values, same_steps = run(on_said, folder / "on said")
    for ours, theirs in ((steps, same_steps), ([values], [same_values])):
        for one, other in zip(ours, theirs, strict=True):
            names = [n for n in one if n.endswith(("loss", "margin", "reward"))]
            assert len(names) >= 4
            for name in names:
                assert one[name] == pytest.approx(other[name], rel=WHOLE_MODEL, abs=1e-5), name
    # And the codes do say something else than the base.
    far, _ = plain
    assert abs(far["heldout_margin"] - values["heldout_margin"]) > 1e-3


def test_on_a_mixture_of_experts(folder: Path) -> None:
    experts = Experts(count=4, per_token=2, ffn_dim=64)
    small_model(BASE.replace(experts=experts)).save(folder / "mixture")
    options = {"finetune": {"base": str(folder / "mixture")}}
    made = config(folder, objective={"router_balance": 0.0, "router_z": 0.0}, **options)
    values, steps = run(made, folder / "experts")
    tuned, base = (llmasos_jax.load_model(str(folder / name)) for name in ("experts", "mixture"))
    found, _ = rewards(tuned, base, answers(made, folder / "cache"))
    check(values, found, WHOLE_MODEL)
    assert abs(steps[0]["nll"] - math.log(2)) < 1e-6
