"""`llmasos plan` without the TPU compiler: the closed form against what the compiler said."""

import dataclasses
import functools
import importlib.util
import json

import pytest
from small_plan import TOPOLOGY, compiled, small

from llmasos_jax.config.build import load_config
from llmasos_jax.errors import MissingExtraError
from llmasos_jax.plan import run
from llmasos_jax.plan.chips import parse_topology
from llmasos_jax.plan.estimate import estimate_figures
from llmasos_jax.plan.figures import from_json
from llmasos_jax.plan.pod import pod_devices
from llmasos_jax.plan.stand_in import stand_ins

GIB = 1 << 30
LLAMA = "llama2_7b:v5e:16x16"


@functools.cache
def llama():
    return estimate_figures(load_config(LLAMA), parse_topology("v5e:16x16"))


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    """A machine without libtpu, and with an empty cache."""
    find_spec = importlib.util.find_spec
    without = lambda name, *more: None if name == "libtpu" else find_spec(name, *more)
    monkeypatch.setattr(importlib.util, "find_spec", without)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def sent(figures):
    totals = {}
    for traffic in figures.traffic:
        totals[traffic.kind] = totals.get(traffic.kind, 0) + traffic.link_bytes
    return totals


@pytest.mark.slow
def test_it_is_what_the_compiler_says_of_a_small_step():
    pytest.importorskip("libtpu", reason="needs the extra `tpu`")
    real, made = compiled()[2], estimate_figures(small(), TOPOLOGY)
    assert made.state == real.state and made.mesh == real.mesh
    assert (made.tokens, made.model_flops) == (real.tokens, real.model_flops)
    assert made.work.flops == pytest.approx(real.work.flops, rel=0.001)
    assert made.work.kernel_flops == pytest.approx(real.work.kernel_flops, rel=1e-6)
    assert made.memory.peak == pytest.approx(real.memory.peak, rel=0.35)
    for kind in ("all-gather", "reduce-scatter"):
        assert sent(made)[kind] == pytest.approx(sent(real)[kind], rel=0.02)
        torus = {t.axes: t.torus for t in real.traffic if t.kind == kind}
        assert {t.axes: t.torus for t in made.traffic if t.kind == kind} == torus


def test_stand_ins_are_where_the_compilers_devices_are():
    pytest.importorskip("libtpu", reason="needs the extra `tpu`")
    for text in ("v5e:2x4", "tpu7x:2x2x1"):
        topology = parse_topology(text)
        places = [
            (tuple(d.coords), d.core_on_chip, d.device_kind, d.platform)
            for d in pod_devices(topology)
        ]
        found = stand_ins(topology)
        assert [(d.coords, d.core_on_chip, d.device_kind, d.platform) for d in found] == places


def test_a_7b_on_256_chips():
    """What libtpu 0.0.42.1 said is in docs/plan.md."""
    figures = llama()
    assert figures.state.parameters / GIB == pytest.approx(0.099, abs=5e-4)
    assert figures.state.optimizer / GIB == pytest.approx(0.198, abs=5e-4)
    assert figures.memory.peak / GIB == pytest.approx(9.99, rel=0.05)
    assert figures.work.flops == pytest.approx(381.93e12, rel=1e-4)
    assert figures.work.kernel_flops == pytest.approx(24.20e12, rel=1e-3)
    assert sum(sent(figures).values()) == pytest.approx(40.01e9, rel=0.01)
    assert figures.work.cycles is None and figures.work.doubts == ()
    assert from_json(json.loads(json.dumps(dataclasses.asdict(figures)))) == figures


def test_remat_changes_memory_and_products_as_it_should():
    by_policy = {r: estimate_figures(small(remat=r), TOPOLOGY) for r in ("none", "dots", "full")}
    peaks = [by_policy[r].memory.peak for r in ("none", "dots", "full")]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == 3
    none, dots, full = (by_policy[r].work for r in ("none", "dots", "full"))
    assert dots.flops == none.flops
    # Forward again, but for the last product of each block, and the rotation.
    cfg, tokens = small().model, 8 * 256 / 4
    again = 2 * (4 * 1024**2 + 2 * 1024 * cfg.ffn_width) + 2 * (8 + 8) * 128**2
    assert full.flops - none.flops == round(2 * tokens * again)
    assert full.kernel_flops / none.kernel_flops == pytest.approx(11 / 9)
    parts = estimate_figures(small(remat="full", accumulate_steps=2), TOPOLOGY)
    assert sent(parts)["all-gather"] == 2 * sent(by_policy["full"])["all-gather"]


def test_replicas_sum_their_gradients():
    mesh = dataclasses.replace(small().mesh, data=2, fsdp=(2,))
    figures = estimate_figures(dataclasses.replace(small(), mesh=mesh), TOPOLOGY)
    sums = next(t for t in figures.traffic if t.kind == "all-reduce" and t.axes == ("data",))
    # Half of the weights' gradients in float32, to and fro between two.
    weights = figures.num_parameters - 5 * 1024
    assert sums.link_bytes == pytest.approx(4 * weights / 2)


def test_places_of_experts_are_the_steps():
    """What libtpu 0.0.42.1 said of Mixtral with capacity 2: 29.99 GiB, 941.42 and 2,348.03 T."""
    cfg = load_config("mixtral_8x7b:v5p:4x4x4")
    cfg = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, expert_capacity=2.0))
    figures = estimate_figures(cfg, parse_topology("v5p:4x4x4"))
    assert figures.memory.peak / GIB == pytest.approx(29.99, rel=0.03)
    done = figures.work.flops + figures.work.kernel_flops
    assert done == pytest.approx(3289.45e12, rel=1e-4)
    assert sent(figures)["all-to-all"] == pytest.approx(64.47e9, rel=0.01)
    assert figures.work.doubts == ()


def test_the_command_says_that_it_is_an_estimate(no_compiler, capsys):
    from llmasos_jax.cli.main import main

    words = ["plan", "--config=tiny", "--topology=v5e:2x2"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert told.startswith("no TPU compiler here: an estimate in closed form; pip install")
    assert "yes, by an estimate" in told and "cycles" not in told and "compiled" not in told
    assert not list(no_compiler.rglob("*.json"))  # no compiler's answer
    assert main([*words, "--json", "--config.train.batch_size=4000000"]) == 1
    plan = json.loads(capsys.readouterr().out)
    assert plan["source"] == "closed form" and not plan["fits"] and plan["advice"]
    assert plan["out_of_memory"]["needed"] == plan["memory"]["peak"] > 16 * GIB
    assert main([*words, "--config.mesh.fsdp=3"]) == 2
    assert main([*words, "--search"]) == 2
    assert "llmasos-jax[tpu]" in capsys.readouterr().err


def test_an_encoder_decoder_has_no_estimate(no_compiler):
    with pytest.raises(MissingExtraError, match="encoder-decoder"):
        run.make_plan(load_config("t5_tiny"), "v5e:2x2")
