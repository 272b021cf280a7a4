"""What a sweep that goes on may meet: other numbers, other devices, another process, divergence."""

import contextlib
import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest
from small_run import small_config

from llmasos_jax.errors import ConfigError, PreemptedError
from llmasos_jax.sweep import job, together
from llmasos_jax.sweep.grouping import Group, compilation_key, grouped
from llmasos_jax.sweep.places import Places, write_json
from llmasos_jax.sweep.points import Point, Sweep
from llmasos_jax.sweep.run import _check_folder, _groups, run_sweep
from llmasos_jax.sweep.together import train_together
from llmasos_jax.train.hooks import read_metrics
from llmasos_jax.train.workdir import lock


def changed(config, **groups):
    parts = {name: dataclasses.replace(getattr(config, name), **v) for name, v in groups.items()}
    return dataclasses.replace(config, **parts)


def group_of(configs):
    (group,) = grouped([Point(f"p{i}", f"p{i}", {}, c) for i, c in enumerate(configs)], 64)
    return group


def seeds(config, count):
    return [changed(config, train={"seed": seed}) for seed in range(count)]


def stopped_at(step):
    def tell(now, losses):
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return tell


def quiet(step, losses):
    pass


def sweep_of(points, path):
    return Sweep(path, "", points[0].config, "heldout_loss", tuple(points))


def begun(places, group):
    """A group's folder as one that was stopped leaves it."""
    job.write_job(places, group)
    (places.group(group.name) / "checkpoints/4").mkdir(parents=True)


def test_stopped_where_held_out_text_is_scored_it_is_scored_later(tmp_path):
    """The signal comes while step 3 computes, so the runs stop after step 4, which is due."""
    start = small_config(tmp_path, 6, train={"eval_every_steps": 2})
    group, places = group_of(seeds(start, 2)), Places(tmp_path / "w")
    with pytest.raises(PreemptedError, match="step 4"):
        train_together(group, places, tmp_path / "cache", stopped_at(3))
    train_together(group, places, tmp_path / "cache", quiet)
    lines = read_metrics(places.point("p1") / "metrics.jsonl")
    assert [line["step"] for line in lines if "heldout_loss" in line] == [2, 4, 6]


def test_it_goes_on_where_other_places_are_filled_up(tmp_path, monkeypatch):
    """Three runs on two devices (a fourth place stands empty), then on three."""
    start = small_config(tmp_path, 6, mesh={"data": 1})
    group, lay_out = group_of(seeds(start, 3)), together.lay_out

    def on(count):
        devices = jax.devices()[:count]
        monkeypatch.setattr(together, "lay_out", lambda cfg, n: lay_out(cfg, n, devices))

    def losses(places):
        lines = [read_metrics(places.point(p.name) / "metrics.jsonl") for p in group.points]
        return [[line["loss"] for line in found if "loss" in line] for found in lines]

    on(2)
    places, straight = Places(tmp_path / "w"), Places(tmp_path / "straight")
    with pytest.raises(PreemptedError):
        train_together(group, places, tmp_path / "cache", stopped_at(2))
    on(3)
    train_together(group, places, tmp_path / "cache", quiet)
    train_together(group, straight, tmp_path / "cache", quiet)
    assert np.shape(losses(places)) == (3, 6)
    np.testing.assert_array_equal(losses(places), losses(straight))


def test_each_data_seed_has_rows_of_its_own(tmp_path, monkeypatch):
    """Which pairs of sentences are cut shorter hangs on data.seed (`data/objectives.py`)."""
    build, opened = together.build_objective, []

    class SeenError(Exception):
        pass

    def built(cfg, vocabulary):
        return dataclasses.replace(build(cfg, vocabulary), rows=cfg.data.seed)

    def seen(cfg, *args, rows, **rest):
        opened.append((cfg.data.seed, rows))
        if len(opened) == 2:
            raise SeenError
        return contextlib.ExitStack()

    monkeypatch.setattr(together, "build_objective", built)
    monkeypatch.setattr(together, "open_data", seen)
    start = small_config(tmp_path)
    configs = [changed(start, data={"seed": seed}) for seed in (0, 7)]
    with pytest.raises(SeenError):
        train_together(group_of(configs), Places(tmp_path / "w"), tmp_path / "cache", quiet)
    assert opened == [(0, 0), (7, 7)]


def test_what_an_objective_from_outside_reads_is_not_shared(tmp_path):
    start = small_config(tmp_path, objective={"name": "mine:objective"})
    key = compilation_key(start)
    assert key == compilation_key(changed(start, train={"seed": 3}))
    assert key != compilation_key(changed(start, data={"seed": 3}))
    assert key != compilation_key(changed(start, optim={"learning_rate": 0.5}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim": {"beta1": 0.8}}, "beta1"),
        ({"train": {"steps": 9}}, "begun for train.steps=8, and now has 9"),
    ],
)
def test_a_group_that_was_begun_takes_no_other_numbers(tmp_path, change, message):
    """Else its state would go on under them."""
    places, group = Places(tmp_path / "w"), group_of(seeds(small_config(tmp_path), 2))
    begun(places, group)
    now = [dataclasses.replace(p, config=changed(p.config, **change)) for p in group.points]
    with pytest.raises(ConfigError, match=message) as error:
        _check_folder(sweep_of(now, tmp_path), places)
    assert 'point "p0"' in str(error.value)


def test_a_group_that_was_begun_goes_on_with_other_logging(tmp_path):
    places, group = Places(tmp_path / "w"), group_of(seeds(small_config(tmp_path), 3))
    begun(places, group)
    change = {"train": {"log_every_steps": 5}}
    now = [dataclasses.replace(p, config=changed(p.config, **change)) for p in group.points]
    _check_folder(sweep_of(now, tmp_path), places)
    (found,) = _groups(places, now[1:], now, 1)
    assert (found.name, found.points) == (group.name, tuple(now))


def test_what_diverged_with_other_numbers_is_not_taken_for_this(tmp_path):
    places, config = Places(tmp_path / "w"), small_config(tmp_path)
    points = [Point("p0", "p0", {}, config)]
    write_json(places.point("p0") / "config.json", job.to_dict(config))
    write_json(places.diverged("p0"), {"step": 3, "why": "loss is nan"})
    _check_folder(sweep_of(points, tmp_path), places)
    now = [Point("p0", "p0", {}, changed(config, optim={"clip_norm": 0.5}))]
    with pytest.raises(ConfigError, match="clip_norm"):
        _check_folder(sweep_of(now, tmp_path), places)


def test_one_that_diverges_alone_has_done_so(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    start = small_config(tmp_path, optim={"clip_norm": None, "name": "sgd", "learning_rate": 1e30})
    places, group = Places(tmp_path / "w"), Group("g", (Point("p0", "p0", {}, start),))
    job._train(places, group)
    found = json.loads(places.diverged("p0").read_text())
    lines = read_metrics(places.point("p0") / "metrics.jsonl")
    assert found["step"] == max(line["step"] for line in lines) + 1
    assert f"at step {found['step']}" in found["why"]


def test_two_sweeps_in_one_folder_are_refused(tmp_path):
    path, folder = tmp_path / "sweep.py", tmp_path / "w"
    path.write_text('CONFIG = "tiny"\ndef sweep(add):\n    add({})\n')
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        lock(folder, stack)
        with pytest.raises(ConfigError, match="another process"):
            run_sweep(path, folder)
    assert not list(folder.iterdir())
