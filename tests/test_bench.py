"""`llmasos bench`: its arithmetic, its formats, and rates that the clock agrees with."""

import csv
import io
import json
import statistics
import time

import jax
import pytest
from engine_model import model

from llmasos_jax.cli.bench import shown
from llmasos_jax.cli.main import main
from llmasos_jax.engine.bench import Bench, Test, bytes_a_token, measure, num_runs
from llmasos_jax.errors import GenerationError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(model().save(tmp_path_factory.mktemp("bench") / "tiny"))


def test_rates_are_tokens_over_seconds():
    seen = []
    start = time.perf_counter()
    bench = measure(model(), (20, 150), (17,), (1, 4), 3, seen.append)
    lasted = time.perf_counter() - start
    assert [(t.name, t.batch) for t in bench.tests] == [
        ("pp20", 1),
        ("pp150", 1),
        ("tg17", 1),
        ("tg17", 4),
    ]
    assert len(seen) == num_runs((20, 150), (17,), (1, 4), 3) == 17
    timed = sum(
        tokens / rate
        for tokens, test in zip((20, 150, 17, 68), bench.tests, strict=True)
        for rate in test.rates
    )
    assert 0 < timed < lasted
    assert all(len(test.rates) == 3 for test in bench.tests)
    assert bench.num_parameters == model().num_parameters
    weights = model().weights
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(weights.params))
    row = weights.params["embed"]["table"].nbytes // 264
    tied = model().config.tie_embeddings
    assert bytes_a_token(weights) == (total if tied else total - 263 * row)
    share = bench.tests[2].mean * bytes_a_token(weights) / 1e9 / bench.memory_gb_s
    assert bench.memory_share == pytest.approx(share)


def test_formats_say_the_same():
    rates = (90.0, 110.0, 100.0)
    tests = (Test("pp8", 1, (400.0,)), Test("tg4", 8, rates))
    bench = Bench("m", 3 * 2**20, 1_500_000, "tpu", 4, "bfloat16", tests, 33.0, 0.5)
    markdown = shown(bench, "md").splitlines()
    assert markdown[3].split("|")[-2].strip() == f"100.00 ± {statistics.stdev(rates):.2f}"
    assert markdown[3].split("|")[1:-1][1].strip() == "3.00 MiB"
    assert markdown[2].split("|")[-3].strip() == "pp8" and "tg4 b8" in markdown[3]
    assert "400.00 ± 0.00" in markdown[2] and len({len(line) for line in markdown}) == 1
    whole = json.loads(shown(bench, "json"))
    assert whole["memory_share"] == 0.5
    lines = [json.loads(line) for line in shown(bench, "jsonl").splitlines()]
    assert lines == whole["tests"] and lines[1]["rates"] == list(rates)
    table = list(csv.DictReader(io.StringIO(shown(bench, "csv"))))
    assert [row["test"] for row in table] == ["pp8", "tg4"]
    assert float(table[1]["tokens_per_s"]) == 100 and table[1]["devices"] == "4"


def test_the_verb_prints_its_table(folder, capsys):
    assert main(["bench", folder, "-p", "16", "-n", "4", "-b", "1,2", "-r", "2"]) == 0
    out, err = capsys.readouterr()
    assert [line.split("|")[-3].strip() for line in out.splitlines()[2:]] == [
        "pp16",
        "tg4",
        "tg4 b2",
    ]
    assert "GB/s" in err
    assert main(["bench", folder, "-p", "0", "-n", "4", "-r", "1", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["tests"]
    assert (row["test"], row["deviation"], len(row["rates"])) == ("tg4", 0, 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-p", "500"], "context of 192"),
        (["-p", "x"], "no list of whole numbers"),
        (["-b", "0"], "at least 1"),
        (["-r", "0"], "at least 1"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(folder, capsys, words, said):
    assert main(["bench", folder, *words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    with pytest.raises(GenerationError):
        measure(model(), (0,))
