"""The report of a sweep's folder: its leaderboard, page, JSON and TensorBoard's HParams."""

import html.parser
import json
import math
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from small_sweep import BASE, seeds_of, write_run, write_seeds, write_sweep

from llmasos_jax.errors import ConfigError
from llmasos_jax.sweep.places import Places, write_json
from llmasos_jax.sweep.report.axes import Axis, axis_over
from llmasos_jax.sweep.report.curves import thinned
from llmasos_jax.sweep.report.effects import places_of
from llmasos_jax.sweep.report.outcomes import read_outcomes
from llmasos_jax.sweep.report.statistics import paired, summarize
from llmasos_jax.sweep.report.write import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
LOW, BASELINE, HIGH, WILD = (f"learning_rate={rate}" for rate in ("0.001", "0.003", "0.01", "1"))


@pytest.fixture
def ends():
    """Last losses by setting: HIGH is better by far, LOW is like the baseline, WILD partly dies."""
    rng = np.random.default_rng(11)
    luck = rng.normal(0, 0.05, 4)
    noise = lambda: rng.normal(0, 0.005, 4)
    return {
        LOW: (2.5 + luck + 10 * noise()).tolist(),
        BASELINE: (2.5 + luck + noise()).tolist(),
        HIGH: (2.3 + luck + noise()).tolist(),
        WILD: (1.5 + luck + noise()).tolist(),
    }


@pytest.fixture
def places(tmp_path, ends):
    """16 points: 13 done, 1 diverged, 1 failed, 1 under way."""
    rates = {LOW: 0.001, BASELINE: 0.003, HIGH: 0.01, WILD: 1.0}
    points = {
        name: seeds_of(name, {"optim.learning_rate": rate}, 4, baseline=name == BASELINE)
        for name, rate in rates.items()
    }
    places = write_sweep(
        tmp_path / "sweep", [point for found in points.values() for point in found]
    )
    for name in (LOW, BASELINE, HIGH):
        write_seeds(places, points[name], ends[name])
    write_seeds(places, points[WILD][:1], ends[WILD][:1])
    write_run(places, points[WILD][1][0], [4.0, 9.0, 1e4], done=False)
    write_json(places.diverged(points[WILD][1][0]), {"step": 61, "why": "loss is nan at step 61"})
    write_run(places, points[WILD][2][0], [4.0], done=False)
    failed = {"why": "killed: <4 GiB>", "log": "groups/abc/log.txt"}
    write_json(places.failed(points[WILD][2][0]), failed)
    places.group("abc").mkdir(parents=True)
    (places.group("abc") / "log.txt").write_text("first\n" * 50 + "<b>last words</b>\n")
    write_json(places.group("abc") / "time.json", {"runs": 16, "total_s": 75.0})
    write_run(places, points[WILD][3][0], [4.0, 3.5], done=False)
    return places


def test_each_point_is_read_as_it_ended(places, ends):
    found = read_outcomes(places)
    assert [setting.name for setting in found.settings] == [LOW, BASELINE, HIGH, WILD]
    assert found.baseline.name == BASELINE and found.group_seconds == 75.0
    assert found.varied() == ["optim.learning_rate"]
    wild = found.settings[3]
    assert [(o.status, o.step, o.seed) for o in wild.outcomes] == [
        ("done", 100, 0),
        ("diverged", 61, 1),
        ("failed", 20, 2),
        ("waiting", 40, 3),
    ]
    assert wild.overrides == {"optim.learning_rate": 1.0}
    assert wild.outcomes[1].why == "loss is nan at step 61" and wild.outcomes[1].log is None
    assert wild.outcomes[2].log == "groups/abc/log.txt"
    assert wild.outcomes[3].curves["heldout_loss"] == ((20, 4.0), (40, 3.5))
    assert wild.outcomes[3].tokens == 40 * 512 and wild.outcomes[3].seconds is None
    assert wild.values("heldout_loss") == {0: ends[WILD][0]}
    assert found.settings[0].values("heldout_loss") == dict(enumerate(ends[LOW]))
    done = found.settings[0].outcomes[0]
    assert done.values["heldout_perplexity"] == pytest.approx(math.exp(ends[LOW][0]))
    assert done.values["loss"] == ends[LOW][0] - 0.1 and done.seconds == 2.5


def test_the_leaderboard_ranks_and_tests(places, ends):
    report = write_report(places)
    by_name = {row.setting.name: row for row in report.rows}
    # What is left of a setting of which a seed diverged is best, and has no rank for that.
    assert [(row.rank, row.setting.name) for row in report.rows][0] == (1, HIGH)
    assert report.rows[-1] is by_name[WILD] and by_name[WILD].rank is None
    assert by_name[WILD].test is None and by_name[WILD].verdict == ""
    assert report.best is by_name[HIGH] and by_name[HIGH].verdict == "better"
    assert by_name[LOW].verdict == "no difference shown" and by_name[LOW].is_better is None
    assert by_name[BASELINE].verdict == "baseline" and by_name[BASELINE].test is None
    assert by_name[HIGH].summary == summarize(ends[HIGH])
    tests = {name: paired(ends[name], ends[BASELINE]) for name in (LOW, HIGH)}
    assert by_name[HIGH].test == tests[HIGH]
    assert by_name[HIGH].p == pytest.approx(2 * tests[HIGH].p)  # the smaller of two, by Holm
    assert by_name[LOW].p == pytest.approx(tests[LOW].p)
    assert by_name[HIGH].tokens == 4 * 100 * 512 and by_name[HIGH].seconds == 10.0
    assert (report.num_failed, report.num("waiting"), report.num("done")) == (1, 1, 13)


def test_it_prints_as_a_table(places, ends):
    text = str(write_report(places))
    lines = text.splitlines()
    assert lines[0] == "Which rate is best?"
    assert lines[1] == ("16 points: 13 done, 1 diverged, 1 failed, 1 waiting; programs took 1m15s")
    first = next(line for line in lines if line.startswith("1 "))
    assert re.match(rf"1  {HIGH} +\d\.\d+ ± 0\.\d+ +4/4  -0\.2\d* ± .*better +205k +10s$", first)
    wild = next(line for line in lines if WILD in line)
    assert wild.startswith("-") and "1/4" in wild and "1 diverged, 1 failed, 1 waiting" in wild
    assert "paired t-test by seed" in text and "Holm over 2 tests" in text
    assert f"failed: {WILD},seed=2: killed: <4 GiB> (log: {places.root}/groups/abc/log.txt)" in text
    assert lines[-1] == f"curves and plots: {places.root / 'report.html'}"
    shown = write_report(places)._repr_html_()
    assert shown.count("<tr>") == 5 and "better" in shown


def test_the_json_has_every_figure(places, ends):
    report = write_report(places)
    strict = lambda name: pytest.fail(f"{name} is no JSON")
    kept = json.loads((places.root / "report.json").read_text(), parse_constant=strict)
    assert kept == json.loads(json.dumps(report.to_dict()))
    assert kept["counts"] == {"done": 13, "diverged": 1, "failed": 1, "waiting": 1}
    assert kept["baseline"] == BASELINE and kept["lower_is_better"] is True
    first = kept["settings"][0]
    assert first["setting"] == HIGH and first["verdict"] == "better"
    assert first["summary"]["mean"] == pytest.approx(sum(ends[HIGH]) / 4)
    assert first["test"]["kind"] == "paired" and first["p_holm"] < 0.05
    assert kept["settings"][-1]["seeds"] == {
        **{"asked": 4, "done": 1, "diverged": 1, "failed": 1, "waiting": 1}
    }
    assert len(kept["points"]) == 16 and kept["points"][0]["overrides"]["train.seed"] == 0
    assert not list(places.root.glob("*.part"))


def test_of_an_accuracy_more_is_better(places, ends):
    asked = json.loads(places.sweep.read_text())
    write_json(places.sweep, asked | {"metric": "heldout_accuracy"})
    report = write_report(places)
    assert report.rows[0].setting.name == HIGH and report.rows[0].test.difference > 0
    assert report.rows[0].verdict == "better" and "higher is better" in str(report)
    # The metric, and both losses.
    assert (places.root / "report.html").read_text().count('<svg class="curves"') == 3


def test_one_seed_each_has_no_test_and_says_so(tmp_path):
    points = [
        ("base", "base", {}, True),
        ("a", "a", {"model.mlp": "gelu"}, False),
        ("b", "b", {"model.mlp": "relu"}, False),
    ]
    places = write_sweep(tmp_path, points)
    write_seeds(places, points, [2.0, 1.9, 2.1])
    report = write_report(places)
    assert [row.setting.name for row in report.rows] == ["a", "base", "b"]
    assert [row.verdict for row in report.rows] == ["one seed: no test", "baseline"] + [
        "one seed: no test"
    ]
    assert "±" not in str(report).partition("\n\n")[2].partition("\n\n")[0]
    assert "one seed has no interval" in str(report)


def test_without_a_baseline_nothing_is_tested(tmp_path):
    points = seeds_of("a", {}, 3) + seeds_of("b", {"model.mlp": "gelu"}, 3)
    places = write_sweep(tmp_path, points)
    write_seeds(places, points, [2.0, 2.1, 2.2, 1.0, 1.1, 1.2])
    report = write_report(places)
    assert [row.test for row in report.rows] == [None, None]
    assert report.rows[0].summary.half_width is not None
    assert "no baseline, so no tests; add(..., baseline=True) makes one" in str(report)


def test_other_seeds_are_compared_by_welch(tmp_path):
    points = seeds_of("a", {}, 4, baseline=True) + seeds_of("b", {"model.mlp": "gelu"}, 3)
    places = write_sweep(tmp_path, points)
    write_seeds(places, points, [2.0, 2.1, 2.2, 2.15, 1.0, 1.1, 1.2])
    report = write_report(places)
    assert report.rows[0].test.kind == "welch" and "Welch's t-test" in str(report)


def test_a_sweep_of_which_nothing_is_done(tmp_path):
    points = seeds_of("a", {}, 2, baseline=True) + seeds_of("b", {"model.mlp": "gelu"}, 2)
    places = write_sweep(tmp_path, points)
    report = write_report(places)
    assert report.best is None and report.num("waiting") == 4
    assert "4 points: 4 waiting" in str(report)
    page = (places.root / "report.html").read_text()
    assert "<svg" not in page and "4 waiting" in page
    # One begins; its curve is there before any is done.
    write_run(places, points[0][0], [3.0, 2.0], done=False)
    write_report(places)
    page = (places.root / "report.html").read_text()
    assert page.count('<svg class="curves"') == 2 and '<svg class="effect"' not in page


def test_a_result_of_fewer_steps_than_asked_is_not_done(tmp_path):
    points = [("a", "a", {"train.steps": 200}, False), ("b", "b", {}, False)]
    places = write_sweep(tmp_path, points)
    write_seeds(places, points, [2.0, 2.1])
    assert [point.status for point in read_outcomes(places).points] == ["waiting", "done"]


def test_values_that_are_not_finite_are_no_values(tmp_path):
    places = write_sweep(tmp_path, [("a", "a", {}, False)])
    write_run(places, "a", [3.0, 2.0], done=False)
    with (places.point("a") / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "loss": NaN}\n{"step": 60, "heldout_loss": null}\n{"step": 8')
    point = write_report(places).outcomes.points[0]
    assert [step for step, _ in point.curves["loss"]] == [20, 40] and point.step == 60
    assert [step for step, _ in point.curves["heldout_loss"]] == [20, 40]
    assert point.values["loss"] == 1.9 and point.values["heldout_loss"] == 2.0
    assert "NaN" not in (tmp_path / "report.json").read_text()


def test_two_seeds_are_said_to_tell_little(many):
    report = write_report(many)
    assert "one degree of freedom" in str(report)
    assert {row.test.degrees for row in report.rows if row.test} == {1}


def test_a_metric_that_no_run_has_is_said(tmp_path):
    points = [("a", "a", {}, False)]
    places = write_sweep(tmp_path, points, metric="heldout_blue")
    write_seeds(places, points, [2.0])
    text = str(write_report(places))
    assert 'no finished run has "heldout_blue"' in text and "heldout_accuracy, heldout_loss" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "is no sweep's folder: it has no sweep.json; give what --workdir was"),
        ("{", "cannot be read"),
        ("[]", "is no JSON object"),
        ('{"base": {}}', "not what a sweep writes (KeyError: 'points')"),
        ('{"base": {}, "points": [{"name": "a"}]}', "not what a sweep writes"),
        ('{"base": {}, "points": []}', "names no points"),
        ('{"base": 3, "points": 4}', "not what a sweep writes"),
    ],
)
def test_a_bad_folder_is_one_line(tmp_path, text, said):
    if text is not None:
        (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        write_report(Places(tmp_path))
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_damaged_metrics_name_the_point(places):
    (places.point(f"{LOW},seed=1") / "metrics.jsonl").write_text("no JSON\n")
    with pytest.raises(ConfigError, match=f'point "{LOW},seed=1".*line 1'):
        write_report(places)


class _Tags(html.parser.HTMLParser):
    """What a page asks for from elsewhere, and which of its tags are not closed."""

    VOID = ("meta", "br", "wbr")

    def __init__(self):
        super().__init__()
        self.asked, self.open, self.wrong, self.rows = [], [], [], 0

    def handle_starttag(self, tag, attrs):
        self.rows += tag == "tr"
        self.asked += [value for name, value in attrs if name in ("src", "href", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def svgs(page, kind):
    found = re.findall(rf'<svg class="{kind}".*?</svg>', page, re.S)
    return [ET.fromstring(text) for text in found]


def test_the_page_stands_alone(places, ends):
    write_report(places)
    page = (places.root / "report.html").read_text()
    tags = _Tags()
    tags.feed(page)
    assert not tags.asked and not tags.wrong and not tags.open
    assert not re.search(r"https?:|@import|url\((?!#)|<script", page)
    assert "<title>Which rate is best?</title>" in page
    assert "killed: &lt;4 GiB&gt;" in page and "&lt;b&gt;last words&lt;/b&gt;" in page
    assert page.count("first\n") == 29  # the last 30 lines of the log
    assert "prefers" not in page and "color-scheme: light dark" in page
    assert page.count("Values above the axis are cut off") == 2  # the run that diverged
    # Of each setting: a line a seed, and one mean, in the metric's plot and the training loss's.
    for plot in svgs(page, "curves"):
        lines = plot.findall(".//polyline")
        assert len([one for one in lines if one.get("class") == "mean"]) == 3
        dots = [one for one in plot.findall(".//circle") if one.get("class") == "seed"]
        assert len([one for one in lines if one.get("class") == "seed"]) + len(dots) == 16
        titles = [one.findtext("title") for one in lines]
        assert any(t.startswith(f"{WILD},seed=1: ") and "diverged" in t for t in titles)


def test_lines_and_dots_are_where_the_values_are(places, ends):
    write_report(places)
    page = (places.root / "report.html").read_text()
    curves, effect = svgs(page, "curves")[0], svgs(page, "effect")[0]
    first, second = (
        next(
            line.get("points").split()
            for line in curves.findall(".//polyline")
            if line.findtext("title").startswith(f"{name},seed=0:")
        )
        for name in (HIGH, BASELINE)
    )
    assert len(first) == 5
    x, y = (float(v) for v in first[-1].split(","))
    assert x > 1000 and y > float(second[-1].split(",")[1]), "a lower loss lies lower"
    runs = [c for c in effect.findall(".//circle") if c.get("class") == "run"]
    assert len(runs) == 13 and len(effect.findall(".//path")) == 1  # one cross
    at = {c.findtext("title").partition(",")[0]: float(c.get("cx")) for c in runs}
    # 0.001 to 1: equal factors are equally far apart.
    assert at[BASELINE] - at[LOW] == pytest.approx((at[WILD] - at[LOW]) * math.log10(3) / 3, abs=1)
    means = {
        c.findtext("title"): float(c.get("cy"))
        for c in effect.findall(".//circle")
        if c.get("class") == "mean"
    }
    assert len(means) == 3  # one run of WILD has no interval
    assert any(title.startswith(f"{HIGH}: {sum(ends[HIGH]) / 4:.5g} ± ") for title in means)


def test_values_of_a_hyper_parameter_have_their_scale():
    log = places_of([1e-4, 1e-3, 1e-2])
    assert log.axis.is_log and [text for _, text in log.labels] == ["0.0001", "0.001", "0.01"]
    near = places_of([4, 2, 8])
    assert not near.axis.is_log and [text for _, text in near.labels] == ["2", "4", "8"]
    gaps = np.diff([place for place, _ in near.labels])
    assert gaps[0] == pytest.approx(gaps[1], abs=0.2)
    with_none = places_of([None, 1.0])
    assert [text for _, text in with_none.labels] == ["none", "1"]
    texts = places_of(["rope", "alibi", "rope"])
    assert [text for _, text in texts.labels] == ["rope", "alibi"]
    many = places_of([0.1 * i for i in range(20)])
    assert many.by_text[repr(0.1 * 19)] > many.by_text[repr(0.1 * 18)]
    assert {text for _, text in many.labels} >= {"0.5", "1", "1.5"}


def test_axes_have_round_ticks():
    assert Axis(0.0, 10.0, 0, 100).place(2.5) == 25.0
    assert axis_over([0.0, 100.0], 0, 100).ticks() == [0, 20, 40, 60, 80, 100]
    assert axis_over([2.31, 2.52], 0, 1).ticks() == [2.3, 2.35, 2.4, 2.45, 2.5]
    assert axis_over([1e-5, 1.0], 0, 1, is_log=True).ticks() == pytest.approx(
        [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    )
    assert axis_over([3.0], 0, 1).place(3.0) == 0.5
    curve = tuple((i, float(i)) for i in range(1, 1001))
    assert len(thinned(curve, 100)) == 101 and thinned(curve, 100)[-1] == (1000, 1000.0)


@pytest.fixture
def many(tmp_path):
    """64 points: 32 settings of two seeds."""
    rng = np.random.default_rng(3)
    points = []
    for i in range(32):
        changed = {"optim.learning_rate": float(rng.uniform(1e-4, 1e-1)), "optim.weight_decay": 0.1}
        points += seeds_of(f"drawn-{i}", changed, 2, baseline=i == 31)
    places = write_sweep(tmp_path / "many", points)
    ends = [2 + 0.1 * (i // 2) + 0.01 * (i % 2) for i in range(64)]
    write_seeds(places, points, ends)
    return places


def test_of_many_settings_the_best_ten_and_the_baseline_are_named(many):
    write_report(many)
    page = (many.root / "report.html").read_text()
    legend = re.search(r'<p class="legend">(.*?)</p>', page).group(1)
    named = re.findall(r'title="(drawn-\d+)"', legend)
    assert named == [f"drawn-{i}" for i in range(10)] + ["drawn-31"]
    assert "21 other settings" in legend and "(baseline, dashed)" in legend
    groups = [g.get("stroke") for g in svgs(page, "curves")[0].findall(".//g") if g.get("stroke")]
    assert len(groups) == 32 and groups.count("#8888") == 21 and groups.count("currentColor") == 1
    assert len(set(groups)) == 12
    assert len(page) < 400_000


def test_tensorboard_reads_the_sessions(places, ends):
    from tensorboard import context
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import (
        api_pb2,
        backend_context,
        get_experiment,
        list_session_groups,
    )

    write_report(places)
    write_report(places)  # anew, not beside the old
    folder = str(places.root / "tensorboard_hparams")
    runs = plugin_event_multiplexer.EventMultiplexer()
    runs.AddRunsFromDirectory(folder).Reload()
    assert len(runs.Runs()) == 17
    provider = data_provider.MultiplexerDataProvider(runs, folder)
    backend = backend_context.Context(base_plugin.TBContext(logdir=folder, data_provider=provider))
    asked, request = context.RequestContext(), api_pb2.GetExperimentRequest(include_metrics=True)
    experiment = get_experiment.Handler(asked, backend, "", request).run()
    assert experiment.description == "Which rate is best?"
    assert [info.name for info in experiment.hparam_infos] == ["optim.learning_rate"]
    assert experiment.hparam_infos[0].type == api_pb2.DATA_TYPE_FLOAT64
    request = api_pb2.ListSessionGroupsRequest(
        slice_size=10,
        aggregation_type=api_pb2.AGGREGATION_AVG,
        allowed_statuses=[
            *(api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE),
            *(api_pb2.STATUS_RUNNING, api_pb2.STATUS_UNKNOWN),
        ],
        include_metrics=True,
    )
    groups = list_session_groups.Handler(asked, backend, "", request).run().session_groups
    found = {group.name: group for group in groups}
    assert set(found) == {LOW, BASELINE, HIGH, WILD}
    assert found[HIGH].hparams["optim.learning_rate"].number_value == 0.01
    means = {m.name.tag: m.value for m in found[HIGH].metric_values}
    assert means["heldout_loss"] == pytest.approx(sum(ends[HIGH]) / 4, rel=1e-6)
    statuses = {session.name: session.status for session in found[WILD].sessions}
    assert [statuses[f"{WILD},seed={seed}"] for seed in range(4)] == [
        api_pb2.STATUS_SUCCESS,
        api_pb2.STATUS_FAILURE,
        api_pb2.STATUS_FAILURE,
        api_pb2.STATUS_UNKNOWN,  # under way: it has no end yet
    ]


def test_values_of_several_types_are_texts_in_tensorboard(tmp_path):
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.plugins.hparams import metadata

    points = [
        ("a", "a", {"optim.clip_norm": None, "model.is_x": True, "model.w": [1, 2]}, False),
        ("b", "b", {"optim.clip_norm": 1.0, "model.is_x": False, "model.w": [3]}, False),
    ]
    base = BASE | {"model": {"is_x": False, "w": [1]}, "optim": {"clip_norm": 1.0}}
    places = write_sweep(tmp_path, points, base=base)
    write_seeds(places, points, [2.0, 2.1])
    write_report(places)
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard_hparams" / "a"))
    events.Reload()
    tag = metadata.SESSION_START_INFO_TAG
    start = metadata.parse_session_start_info_plugin_data(
        events.SummaryMetadata(tag).plugin_data.content
    )
    assert start.group_name == "a"
    assert start.hparams["optim.clip_norm"].string_value == "none"
    assert start.hparams["model.is_x"].bool_value is True
    assert start.hparams["model.w"].string_value == "1, 2"
    heldout = events.Scalars("heldout_loss")
    assert [event.step for event in heldout] == [20, 40, 60, 80, 100]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("which", ["places", "many"])
def test_a_browser_shows_the_page_without_complaint(which, request, tmp_path):
    places = request.getfixturevalue(which)
    write_report(places)
    picture = tmp_path / "page.png"
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--window-size=1100,3000", f"--screenshot={picture}"),
            (places.root / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert ":CONSOLE" not in done.stderr
    image = pytest.importorskip("PIL.Image")
    pixels = np.asarray(image.open(picture).convert("RGB")).reshape(-1, 3).astype(int)
    for colour in ("#4269d0", "#efb118"):  # lines and dots of the best two
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (abs(pixels - rgb).max(axis=1) < 8).sum() > 200
