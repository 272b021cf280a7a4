"""`llmasos plan`: figures against the compiler's and the closed form; cache, advice, search."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from xml.etree import ElementTree

import commands
import numpy as np
import pytest
from small_plan import TOPOLOGY, compiled, small

import llmasos_jax
from llmasos_jax.config.build import load_config
from llmasos_jax.config.schema import MeshConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.models.count import count_matmul_parameters
from llmasos_jax.plan import cache, run
from llmasos_jax.plan.advice import advise
from llmasos_jax.plan.best import write_best
from llmasos_jax.plan.candidates import changed, reason_against
from llmasos_jax.plan.estimate import estimate_figures
from llmasos_jax.plan.figures import Figures, Memory, OutOfMemory, State, Traffic, Work, from_json
from llmasos_jax.plan.hlo.live import Buffer
from llmasos_jax.plan.picture import draw, to_html, to_png, to_svg
from llmasos_jax.plan.search import Limits, search

GIB = 1 << 30
MANY = Limits(tries=50)


def made(peak=2 * GIB, cycles=1_000_000_000, **changes) -> Figures:
    """Figures as a compiler might give them."""
    figures = Figures(
        versions={"jax": "0", "jaxlib": "0", "libtpu": "0"},
        mesh={"data": 1, "fsdp_0": 2, "fsdp_1": 2, "tensor": 1},
        num_parameters=1000,
        tokens=2048,
        model_flops=4 * 100e12,
        state=State(GIB // 4, GIB // 2, 1024, 12),
        seconds={"trace": 1.0, "compile": 2.0},
        host_gib=1.0,
        memory=Memory(GIB, GIB, GIB, peak, 0, peak),
        work=Work(197 * 10**12, 0, 0.0, 819 * 10**8, cycles, {}),
        traffic=(Traffic("all-gather", ("fsdp_0",), 1, 2, 4 * 10**9, 2e9, 0.0, (1,)),),
    )
    return dataclasses.replace(figures, **changes)


@pytest.fixture
def real():
    pytest.importorskip("libtpu", reason="needs the extra `tpu`")
    return compiled()


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.slow
def test_memory_is_the_compilers(real):
    stats, memory = real[1].memory_analysis(), real[2].memory
    assert memory.argument == stats.argument_size_in_bytes
    assert memory.temporary == stats.temp_size_in_bytes
    assert memory.peak == stats.peak_memory_in_bytes
    state = real[2].state
    assert state.parameters + state.optimizer + state.batch <= memory.argument
    assert state.optimizer == 2 * state.parameters + 8  # two moments and two counters


@pytest.mark.slow
def test_products_are_the_closed_form_where_nothing_is_computed_again(real):
    cfg, _, figures = real
    tokens = cfg.train.batch_size * cfg.data.sequence_length
    assert figures.tokens == tokens
    # The rotation of queries and keys is a product too on a TPU: one per cent at this width.
    wanted = 6 * count_matmul_parameters(cfg.model) * tokens / 4
    np.testing.assert_allclose(figures.work.flops, wanted, rtol=0.02)
    # Scores and sums over values: 2 products forward, 3 and 4 backward, of half the places.
    pairs = cfg.data.sequence_length * (cfg.data.sequence_length + 1) / 2
    attention = 2 * 9 * pairs * 2 * 128 * 8 * 2
    np.testing.assert_allclose(figures.work.kernel_flops, attention, rtol=1e-6)
    assert figures.work.opaque == () and figures.work.doubts == ()


@pytest.mark.slow
def test_traffic_is_named_by_mesh_axis(real):
    sent = {(t.kind, t.axes): t for t in real[2].traffic}
    assert ("all-gather", ("fsdp_0",)) in sent and ("reduce-scatter", ("fsdp_1",)) in sent
    assert all(t.axes and t.network_bytes == 0 for t in sent.values())
    assert {axis for t in sent.values() for axis in t.torus} == {0, 1}


@pytest.mark.slow
def test_figures_survive_json(real):
    assert from_json(json.loads(json.dumps(dataclasses.asdict(real[2])))) == real[2]
    with pytest.raises(TypeError):
        from_json({"versions": {}})


def test_roofline_and_what_follows_from_it():
    plan = run.plan_of(small(), TOPOLOGY, made(), tokens=2048 * 3600)
    line = plan.roofline
    assert (line.compute_s, line.memory_s, line.link_s) == (1.0, 0.1, 0.02)
    assert (line.bound_s, line.bound_by) == (1.0, "compute")
    assert line.cycles_s == pytest.approx(1 / 1.5)
    assert plan.tokens_per_s == 2048
    assert plan.mfu == pytest.approx(100 / 197)
    assert (plan.budget.hours, plan.budget.chip_hours) == (1.0, 4.0)
    busy = Traffic("all-reduce", ("data",), 1, 1, 10**9, 300e9, 200e9, (0, 1))
    plan = run.plan_of(small(), TOPOLOGY, made(traffic=(busy,)))
    assert plan.roofline.link_s == 0.5  # half along each axis, two links of 50 GB/s each
    assert plan.roofline.bound_by == "network" and plan.roofline.bound_s == 64.0


def test_what_does_not_fit_comes_with_changes_that_are_valid():
    trouble = OutOfMemory(40 * GIB, 16 * GIB, "the program", (), "RESOURCE_EXHAUSTED")
    cfg = dataclasses.replace(
        small(batch_size=64), model=dataclasses.replace(small().model, vocab_size=2**19)
    )
    figures = made(memory=None, work=None, traffic=(), out_of_memory=trouble)
    plan = run.plan_of(cfg, TOPOLOGY, figures)
    assert not plan.fits and plan.roofline is None and plan.budget is None
    assert "24.00 too much" in plan.verdict and "what to change" in str(plan)
    told = {path for advice in plan.advice for path in advice.change}
    assert {"train.loss_chunk", "train.accumulate_steps", "train.batch_size"} <= told
    for advice in plan.advice:
        assert advice.saves > 0
        assert reason_against(changed(cfg, advice.change), TOPOLOGY) is None, advice
    parts = next(a for a in plan.advice if "train.accumulate_steps" in a.change)
    times = parts.change["train.accumulate_steps"]
    # As few parts as make 40 - 0.75 GiB of temporaries fit beside the state.
    assert (40 - 0.75) / times <= 16 - 0.75 < (40 - 0.75) / (times / 2)


@pytest.mark.parametrize("remat", ["none", "dots", "tags"])
def test_what_is_kept_can_be_computed_again(remat):
    save = {"remat_save": ("q", "gate")} if remat == "tags" else {}
    trouble = OutOfMemory(17 * GIB, 16 * GIB, "temporaries", (), "")
    cfg = small(remat=remat, **save)
    advice = advise(cfg, made(memory=None, out_of_memory=trouble), 1 << 20)
    full = next(a for a in advice if a.change.get("train.remat") == "full")
    assert changed(cfg, full.change).train.remat == "full" and full.saves > 0


def test_a_second_plan_is_from_the_cache(own_cache, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(run, "compile_or_say", lambda *_: calls.append(1) or made())
    first = run.make_plan(small(), "v5e:2x2")
    again = run.make_plan(dataclasses.replace(small(), name="other"), "v5e:2x2", tokens=1e9)
    assert (len(calls), first.from_cache, again.from_cache) == (1, False, True)
    assert again.figures == first.figures and again.budget.tokens == 10**9
    run.make_plan(small(remat="full"), "v5e:2x2")
    run.make_plan(dataclasses.replace(small(), mesh=MeshConfig()), "v5e:4x4")
    assert len(calls) == 3
    for file in (cache.cache_folder() / "plan").glob("*.json"):
        file.write_text('{"versions": ')
    assert not run.make_plan(small(), "v5e:2x2").from_cache
    assert "is no plan" in capsys.readouterr().err


def test_what_a_killed_process_left_is_taken_away(own_cache, monkeypatch):
    folder = cache.cache_folder() / "plan"
    folder.mkdir(parents=True)
    old, new = folder / "a.1.part", folder / "b.2.part"
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    monkeypatch.setattr(cache.json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cache.save_figures("key", made())
    assert [path.name for path in folder.iterdir()] == ["b.2.part"]


def test_a_cache_that_cannot_be_written_to_is_said(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache.save_figures("key", made())
    assert "note: the plan is not kept for the next call" in capsys.readouterr().err


def test_lines_fit_a_terminal():
    long = Buffer(
        GIB, "bf16[32,4,2048,32,128]", "jit(_step)/" + "transpose(jvp())/" * 5, "temporary"
    )
    kernels = {f"splash_mha_{name}_segmented_residuals": 64 for name in ("fwd", "dq", "dkv")}
    work = dataclasses.replace(made().work, kernels=kernels, doubts=("a doubt " * 20,))
    plan = run.plan_of(small(), TOPOLOGY, made(buffers=(long,), work=work))
    told = str(plan).splitlines()
    assert max(map(len, told)) <= 80 and "yes: 2.00 of 15.75 GiB" in str(plan)
    state = State(12 * GIB, 24 * GIB, 1024, 12)
    trouble = OutOfMemory(20 * GIB, plan.available, "temporaries", (), "")
    wrong = made(memory=None, work=None, traffic=(), out_of_memory=trouble, state=state)
    text = str(run.plan_of(small(), TOPOLOGY, wrong))
    # 36 GiB on each of four devices, 15.75 are there: ten devices.
    assert "take 36.0 GiB" in text and "at least 10 devices" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


def answers(cfg, topology, say):
    """A compiler for searches: the more is kept, the fewer cycles and the more memory."""
    say("compiling")
    kept = {"full": 0, "tags": len(cfg.train.remat_save), "none": 30}[cfg.train.remat]
    ways = 1 + cfg.mesh.tensor / 2
    share = cfg.train.batch_size / 8
    figures = made(peak=(1 + kept) * GIB, cycles=int(share * ways * (20 - kept) * 10**9))
    return dataclasses.replace(figures, tokens=int(2048 * share))


def test_search_ranks_what_fits_and_goes_on_from_the_best(own_cache, tmp_path):
    lines = []
    found = search(small(), "v5e:2x2", compile_one=answers, limits=MANY, say=lines.append)
    best = found.best
    save = ("q", "k", "v", "attention", "attention_out", "gate", "up")
    assert best.config.train.remat_save == save
    assert best.config.mesh.tensor == 1 and best.plan.fits and found.is_complete
    scores = [tried.score for tried in found.ranked]
    assert scores == sorted(scores) and math.isfinite(scores[-1])
    out = {t.text: t.trouble for t in found.tried if t.trouble}
    assert any("31.00 of 15.75" in trouble for trouble in out.values())
    first = str(found).partition("candidate\n")[2].split("\n")[0]
    assert first.endswith(best.text) or best.text.startswith(first.split("  ")[-1])
    assert any("min at most" in line for line in lines)
    file = write_best("tiny", best.config, best.text, tmp_path)
    assert load_config(str(file)) == best.config
    again = search(small(), "v5e:2x2", compile_one=lambda *_: 1 / 0, limits=Limits(tries=1))
    assert again.best.config == best.config  # all of it from the cache


def promised(cfg, topology, say):
    """A compiler that says what the closed form says, with cycles in place of its operations."""
    figures = estimate_figures(cfg, topology)
    work = dataclasses.replace(figures.work, cycles=int(figures.work.flops / 1e5))
    return dataclasses.replace(figures, work=work)


def test_search_asks_the_closed_form_first(own_cache):
    calls = []
    compile_one = lambda cfg, *more: calls.append(cfg.train) or promised(cfg, *more)
    cfg = small(batch_size=128)
    found = search(cfg, "v5e:2x2", compile_one=compile_one)
    # Nothing is faster than what computes nothing again, so little else is compiled.
    assert found.is_complete and found.best.config.train.remat == "none"
    assert found.compiled == len(calls) < 9
    out = {t.text: t.trouble for t in found.tried if t.trouble}
    assert "ms/ktoken in closed form" in next(v for k, v in out.items() if "remat full" in k)
    ends = [small(batch_size=128, remat=remat) for remat in ("full", "none")]
    peaks = [estimate_figures(end, TOPOLOGY).memory.peak for end in ends]
    room = (peaks[0] + peaks[1]) // 2
    calls.clear()
    limits = Limits(memory_gib=room / GIB)
    within = search(cfg, "v5e:2x2", compile_one=compile_one, limits=limits)
    assert within.best.plan.figures.memory.peak <= room < found.best.plan.figures.memory.peak
    assert within.best.config.train.remat == "tags" and "out  as it is" in str(within)
    assert found.best.score <= within.best.score
    assert max(map(len, str(within).splitlines())) <= 80
    none = search(cfg, "v5e:2x2", compile_one=compile_one, limits=Limits(memory_gib=0.01))
    assert none.best is None and str(none).startswith("nothing that was tried fits\nout  as it is")


def test_search_ends_in_time(own_cache, monkeypatch):
    from llmasos_jax.plan import search as module

    clock = iter(range(0, 100_000, 50))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    limits, lines = Limits(minutes=3), []
    found = search(small(), "v5e:2x2", compile_one=answers, limits=limits, say=lines.append)
    assert found.compiled == 3 and found.seconds == 150 and not found.is_complete
    assert "goes on from here" in str(found) and "about 1 min at most" in lines[-1]


def test_an_interrupted_search_keeps_what_it_found(own_cache):
    calls = []

    def stops(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answers(*args)

    found = search(small(remat="full"), "v5e:2x2", compile_one=stops)
    assert len(found.ranked) == 2 and not found.is_complete and "not all" in str(found)
    few = search(
        small(remat="full", seed=1), "v5e:2x2", compile_one=answers, limits=Limits(tries=3)
    )
    assert not few.is_complete


def test_the_command_searches_and_writes_the_best(own_cache, tmp_path, capsys):
    from llmasos_jax.cli.main import main

    found = search(load_config("tiny"), "v5e:2x2", compile_one=answers, limits=MANY)
    words = ["plan", "--config=tiny", "--topology=v5e:2x2", "--search", f"--out={tmp_path}"]
    assert main(words) == 0  # from the cache: nothing is compiled
    assert f"the best: {found.best.text}" in capsys.readouterr().out
    assert load_config(str(tmp_path / "best.py")) == found.best.config
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ranked"][0]["candidate"] == found.best.text and told["best"]["fits"]
    assert main(["plan", f"--config={tmp_path}/best.py", "--topology=v5e:2x2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["memory"] == told["best"]["memory"]


def test_pictures():
    plan = run.plan_of(small(), TOPOLOGY, made())
    drawing = draw(plan)
    texts = [node.text for node in ElementTree.fromstring(to_svg(drawing)).iter() if node.text]
    assert any("2.00 of 15.75, fits" in text for text in texts) and "compute" in texts
    page = to_html(plan)
    assert page.count("<svg") == 1 and "http" not in page.replace("http://www.w3.org", "")
    assert plan._repr_html_().count("<svg") == 1
    pytest.importorskip("PIL", reason="needs the extra `plot`")
    assert to_png(drawing).startswith(b"\x89PNG")


def test_a_worker_leaves_with_the_one_that_asked(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    inside = "import pathlib, time; from llmasos_jax.plan.worker import leave_with_parent as f; "
    inside += f"f(pathlib.Path({str(folder)!r})); print(flush=True); time.sleep(60)"
    outside = "import subprocess, sys, time; "
    outside += f"subprocess.Popen([sys.executable, '-c', {inside!r}]); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", outside], stdout=subprocess.PIPE) as parent:
        parent.stdout.readline()  # the worker watches
        assert folder.exists()
        parent.terminate()
        # The end of the pipe, which the worker holds open too, is the end of both.
        assert parent.communicate(timeout=20) == (b"", None)
    assert not folder.exists()


def test_numbers_of_tokens():
    with pytest.raises(ConfigError, match="write 300B"):
        llmasos_jax.plan("quickstart", "v5e:2x2", tokens=-1)
    assert run.parse_tokens("300B") == 3e11 and run.parse_tokens("1e6") == 1e6
    for wrong in ("many", "0", "-1T", "nan", ""):
        with pytest.raises(ConfigError, match="--tokens"):
            run.parse_tokens(wrong)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--config=tiny", "--topology=v5f:2x2"], "v5p"),
        (["--config=tinny", "--topology=v5e:2x2"], "tiny"),
        (["--config=tiny", "--topology=gpu:8"], "only TPUs"),
        (["--config=tiny", "--topology=v5e:2x2", "--tries=3"], "--search"),
        (["--config=tiny", "--topology=v5e:2x2", "--minutes=3"], "--search"),
        (["--config=tiny", "--topology=v5e:2x2", "--search", "--memory=0"], "above 0"),
        (["--config=tiny", "--topology=v5e:2x2", "--search", "--memory=inf"], "above 0"),
        (["--config=tiny", "--topology=v5e:2x2", "--slices=0"], "slices"),
        (["--config=tiny", "--topology=v5e:0x2"], "at least one chip"),
        (["--config=tiny", "--topology=v5e:3x5"], "two even numbers"),
        (["--config=tiny", "--topology=v5p:2x3x4"], "any third"),
        (["--config=tiny", "--topology=v5e:32x32"], "--slices=N joins more"),
        (["--config=tiny", "--topology=v5e:2x2", "--out=/dev/null/x"], "take another --out"),
    ],
)
def test_wrong_input_is_one_line(words, says, capsys, own_cache):
    from llmasos_jax.cli.main import main

    assert main(["plan", *words]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


@pytest.mark.slow
def test_the_command_answers_by_its_status(tmp_path):
    pytest.importorskip("libtpu", reason="needs the extra `tpu`")
    base = ["plan", "--config=tiny", "--topology=v5e:2x2", "--config.mesh.fsdp=4", "--json"]
    done = commands.llmasos(*base, f"--out={tmp_path}/out", home=tmp_path)
    plan = json.loads(done.stdout)
    assert plan["fits"] and not plan["from_cache"] and plan["host_gib"] < 4
    assert (tmp_path / "out" / "plan.html").stat().st_size > 2000
    assert json.loads(commands.llmasos(*base, home=tmp_path).stdout)["from_cache"]
    large = [*base, "--config.train.batch_size=4000000"]
    refused = json.loads(commands.llmasos(*large, home=tmp_path, status=1).stdout)
    assert not refused["fits"] and refused["out_of_memory"]["needed"] > 16 * GIB
    assert refused["advice"][0]["saves"] > 0
    wrong = commands.llmasos(*base, "--config.mesh.fsdp=3", home=tmp_path, status=2)
    assert "4" in wrong.stderr.splitlines()[-1]
