"""A sweep's file: its points, their names, what is refused, which of them train together."""

import contextlib

import pytest

from llmasos_jax.errors import ConfigError
from llmasos_jax.sweep import drawn, grid, log_uniform, uniform, zipped
from llmasos_jax.sweep.check import check_on_devices
from llmasos_jax.sweep.grouping import compilation_key, grouped
from llmasos_jax.sweep.points import read_sweep, varied

HEAD = '''"""Which is best?

More.
"""

CONFIG = "tiny"


def sweep(add):
    '''


def read(folder, body, head=HEAD, **overrides):
    path = folder / "sweep.py"
    path.write_text(head + body + "\n")
    return read_sweep(path, {name.replace("__", "."): text for name, text in overrides.items()})


def test_points_have_names_seeds_and_whole_configs(tmp_path):
    found = read(
        tmp_path,
        'add({"optim.learning_rate": 3e-3, "model.mlp": "gelu"}, seeds=2)\n'
        '    add({"train.seed": 7}, name="my point!", seeds=2, baseline=True)\n'
        "    add({})",
        train__steps="30",
    )
    assert found.question == "Which is best?" and found.metric == "heldout_loss"
    assert [point.name for point in found.points] == [
        "learning_rate=0.003,mlp=gelu,seed=0",
        "learning_rate=0.003,mlp=gelu,seed=1",
        "my-point-,seed=7",
        "my-point-,seed=8",
        "base",
    ]
    first, second, third, _, last = found.points
    assert first.config.optim.learning_rate == 3e-3 and first.config.model.mlp == "gelu"
    assert (first.config.train.seed, second.config.train.seed) == (0, 1)
    assert third.config.train.seed == 7 and third.is_baseline and not first.is_baseline
    assert first.setting == second.setting == "learning_rate=0.003,mlp=gelu"
    assert last.config == found.base and {p.config.train.steps for p in found.points} == {30}
    assert varied(found.points) == ["model.mlp", "optim.learning_rate"]


def test_names_keep_all_alphabets_and_fit_a_folder(tmp_path):
    found = read(
        tmp_path,
        'add({}, name="学习率 一")\n    add({}, name="学习率 二")\n    add({}, name="长" * 99)',
    )
    *short, long = [point.name for point in found.points]
    assert short == ["学习率-一", "学习率-二"]
    assert long == "长" * 66 and len(f"{long},seed=4294967295".encode()) < 255


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("heldout_acuracy", 'METRIC="heldout_acuracy" .*; did you mean "heldout_accuracy"'),
        ("rouge", 'METRIC="rouge" is not reported by this run; known: accuracy, data_wait'),
        ("heldout_accuracy", None),
        ("mfu", None),
    ],
)
def test_a_metric_is_one_that_runs_report(tmp_path, metric, said):
    sweep = read(tmp_path, "add({})", head=HEAD.replace("CONFIG", f'METRIC = "{metric}"\nCONFIG'))
    with contextlib.nullcontext() if said is None else pytest.raises(ConfigError, match=said):
        check_on_devices(grouped(sweep.points, 9), sweep.metric)


def test_a_config_beside_the_file_and_a_function(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from llmasos_jax.config.build import read_config\n"
        "def get_config():\n"
        "    config = read_config('tiny')\n"
        "    config.train.steps = 11\n"
        "    return config\n"
    )
    head = 'CONFIG = "mine.py"\ndef sweep(add):\n    '
    assert read(tmp_path, "add({})", head).base.train.steps == 11
    head = "from mine import get_config\ndef sweep(add):\n    "
    with pytest.raises(ConfigError, match="ModuleNotFoundError"):
        read(tmp_path, "add({})", head)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            'add({"optim.lerning_rate": 1.0})',
            r'"lerning_rate=1": .*did you mean "optim.learning_rate"',
        ),
        ('add({"train.steps": 1.5})', r'"steps=1.5": train.steps=1.5 is a float; expected an int'),
        ('add({"train.steps": "many"}, name="x")', r'point "x": train.steps=.many. is a str'),
        ('add({"optim": 3})', r"point .optim=3.: "),
        ('add({"model.num_heads": 5})', r'"num_heads=5": model.embedding_dim=32 .*divisible'),
        ('add({"train.batch_size": 0})', r'"batch_size=0": train.batch_size=0'),
        ('add({"optim.learning_rate": 1.0})\n    add({"optim.learning_rate": 1.0})', "two points"),
        ('add({}, name="A")\n    add({}, name="a")', 'two points are named "A"'),
        ('add({}, name="..")', "no name of a folder"),
        ("add({}, seeds=0)", "seeds=0 must be a whole number"),
        ('add({"train.seed": 1.5}, seeds=2)', '"seed=1.5": train.seed=1.5 is a float; expected an'),
        ('add({}, name="a", baseline=True)\n    add({}, name="b", baseline=True)', "baselines"),
        ("pass", "added no point"),
        ("add(1)", r"sweep.py:\d+ `add\(1\)`"),
        ("1 / 0", r"sweep.py:10 `1 / 0`: ZeroDivisionError"),
    ],
)
def test_what_is_wrong_is_said_with_the_points_name(tmp_path, body, message):
    with pytest.raises(ConfigError, match=message) as error:
        read(tmp_path, body)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("def sweep(add):\n    ", "has to say what it sweeps over"),
        ('CONFIG = "tiny"\nMETRIC = ["loss"]\ndef sweep(add):\n    ', "METRIC=.* is not a text"),
        ('CONFIG = "tinny"\ndef sweep(add):\n    ', 'did you mean "tiny"'),
        ('CONFIG = "tiny"\ndef sweeps(add):\n    ', "no function sweep"),
        ("import nothing_like_it\ndef sweep(add):\n    ", "sweep.py:1"),
    ],
)
def test_a_file_that_is_no_sweep(tmp_path, head, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, "add({})", head)
    with pytest.raises(ConfigError, match="no such file"):
        read_sweep(tmp_path / "absent.py")


def test_sets_of_points():
    assert grid({"a": [1, 2], "b": range(2)}) == [
        {"a": 1, "b": 0},
        {"a": 1, "b": 1},
        {"a": 2, "b": 0},
        {"a": 2, "b": 1},
    ]
    assert zipped({"a": [1, 2], "b": "xy".split("|") * 2})[1] == {"a": 2, "b": "xy"}
    points = drawn(
        400, {"rate": log_uniform(1e-4, 1e-2), "share": uniform(0, 2), "kind": ["p", "q"]}
    )
    below = sum(point["rate"] < 1e-3 for point in points)
    assert 160 < below < 240  # half of them: 1e-3 is the middle of the logarithms
    assert 0.9 < sum(point["share"] for point in points) / 400 < 1.1
    assert 160 < sum(point["kind"] == "p" for point in points) < 240
    assert points[:3] == drawn(
        3, {"rate": log_uniform(1e-4, 1e-2), "share": uniform(0, 2), "kind": ["p", "q"]}
    )
    assert points[0] != drawn(1, {"rate": log_uniform(1e-4, 1e-2)}, seed=1)[0]
    for wrong in (
        lambda: grid({"a": []}),
        lambda: grid({"a": "text"}),
        lambda: zipped({"a": [1], "b": [1, 2]}),
        lambda: drawn(0, {"a": [1]}),
        lambda: log_uniform(0, 1),
        lambda: uniform(2, 1),
    ):
        with pytest.raises(ConfigError):
            wrong()


def test_points_of_one_program(tmp_path):
    found = read(
        tmp_path,
        "for rate in (1e-3, 1e-2):\n"
        '        warm = {"optim.warmup_steps": int(rate * 1e3)}\n'
        '        add({"optim.learning_rate": rate, **warm}, seeds=3)\n'
        '    add({"optim.weight_decay": 0.0, "data.seed": 3})\n'
        '    add({"optim.weight_decay": 0.01, "train.dropout_rate": 0.0, "optim.beta2": 0.99})\n'
        '    add({"train.dropout_rate": 0.1})\n'
        '    add({"train.dropout_rate": 0.2, "train.init_std": 0.1, "optim.clip_norm": 2.0})\n'
        '    add({"optim.clip_norm": None})\n'
        '    add({"model.num_layers": 3})',
    )
    groups = grouped(found.points, 64)
    assert [len(group.points) for group in groups] == [7, 1, 2, 1, 1]
    assert [point.setting for point in groups[0].points][-1].startswith("weight_decay=0.01")
    assert [len(group.points) for group in grouped(found.points, 4)] == [4, 3, 1, 2, 1, 1]
    assert len({group.name for group in groups}) == len(groups)


def test_what_is_compiled_in(tmp_path):
    two = 'add({"data.seed": 1})\n    add({"data.seed": 2})'
    a, b = (point.config for point in read(tmp_path, two).points)
    assert compilation_key(a) == compilation_key(b)
    # Then the tokenizer is trained on what the seed leaves in the training text.
    trained = {"tokenizer__kind": "sentencepiece", "model__vocab_size": "300"}
    a, b = (point.config for point in read(tmp_path, two, **trained).points)
    assert compilation_key(a) != compilation_key(b)
    # A function of the user's own may read any of the optimizer's numbers in Python.
    rates = 'add({"optim.learning_rate": 1.0})\n    add({"optim.learning_rate": 2.0})'
    a, b = (p.config for p in read(tmp_path, rates, optim__name="my.module:mine").points)
    assert compilation_key(a) != compilation_key(b)
