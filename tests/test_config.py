"""Configs: defaults, overrides, files, JSON, and what is said when one is wrong."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_jax.config import build, files
from llmasos_jax.config.flags import apply_overrides, parse_value
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config
from llmasos_jax.errors import ConfigError

MODEL = {"vocab_size": 259, "embedding_dim": 64, "num_layers": 2}


def small(**groups):
    """A valid config as nested dicts, with some fields changed."""
    values = build.to_dict(build.from_dict({"model": MODEL, "data": {"sequence_length": 64}}))
    for group, fields in groups.items():
        values[group].update(fields)
    return values


def message(function, *args):
    with pytest.raises(ConfigError) as caught:
        function(*args)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_default_config_has_every_field_of_the_schema():
    config = build.default_config()
    config.model.update(MODEL)
    assert build.build(config) == Config(model=ModelConfig(**MODEL))
    names = {path.partition(".")[0] for path, _ in build.fields_of(build.build(config))}
    assert names == {field.name for field in dataclasses.fields(Config)}


def test_default_config_is_locked_and_typed():
    config = build.default_config()
    with pytest.raises(AttributeError):
        config.train.stepss = 3
    with pytest.raises(TypeError):
        config.train.steps = "many"
    config.tokenizer.path = "x.model"  # an optional field takes its type
    with pytest.raises(TypeError):
        config.model.num_kv_heads = "two"


@pytest.mark.parametrize("name", files.packaged_configs())
def test_every_packaged_config_builds_and_survives_json(name):
    source = build.read_config(name)
    if source.finetune.base is not None:
        # Its parameters are the base's; any that an objective of this kind can have will do.
        is_decoder = source.objective.name in ("causal", "sft", "dpo")
        head = "linear" if is_decoder else None
        model = ModelConfig(300, 64, 2, causal=is_decoder, head=head)
        source = build.with_model(source, model)
    config = build.load_config(source)
    assert config.name == name
    assert build.from_dict(json.loads(json.dumps(build.to_dict(config)))) == config


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    windows=st.lists(st.none() | st.integers(1, 9), min_size=1, max_size=2),
    rate=st.floats(1e-9, 1.0, exclude_min=True),
    path=st.none() | st.text(max_size=8),
    fsdp=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    clip=st.none() | st.floats(1e-3, 10),
)
def test_json_round_trip_is_exact(windows, rate, path, fsdp, clip):
    values = small(
        model={"attention_windows": windows},
        optim={"learning_rate": rate, "clip_norm": clip},
        tokenizer={"path": path},
        mesh={"fsdp": fsdp},
    )
    config = build.from_dict(values)
    assert config.mesh.fsdp == tuple(fsdp) and config.optim.learning_rate == rate
    assert build.from_dict(json.loads(json.dumps(build.to_dict(config)))) == config
    assert build.build(build.read_config(config)) == config


def test_a_field_that_json_lacks_takes_its_default():
    values = small()
    del values["checkpoint"]["keep"], values["sample"]
    assert build.from_dict(values) == build.from_dict(small())


def test_a_field_that_has_moved_is_read_from_an_earlier_resolved_config():
    earlier = small()
    earlier["train"]["dtype"] = "bfloat16"
    del earlier["precision"]
    assert build.from_dict(earlier).precision.dtype == "bfloat16"
    assert earlier["train"]["dtype"] == "bfloat16"  # what was given is left as it was
    both = earlier | {"precision": {"dtype": "float32"}}
    assert 'it is "precision.dtype" now' in message(build.from_dict, both)
    assert "precision" in message(build.from_dict, earlier | {"precision": None})
    # Written by hand it is an error, with the new name.
    assert 'it is "precision.dtype" now' in message(build.build, earlier)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (small(train={"stepss": 3}), 'no field "train.stepss"; did you mean "train.steps"?'),
        (small(train={"learning_rate": 3}), 'did you mean "optim.learning_rate"?'),
        (small(model={"rope_scaling": {"knd": "yarn"}}), 'did you mean "model.rope_scaling.kind"?'),
        ({**small(), "optimizer": {}}, 'did you mean "optim"?'),
        (small(train={"steps": "9"}), "train.steps='9' is a str; expected int"),
        (small(train={"steps": 9.0}), "train.steps=9.0 is a float; expected int"),
        (small(train={"steps": True}), "train.steps=True is a bool; expected int"),
        (small(train={"steps": None}), "train.steps=None; expected int"),
        (small(optim={"clip_norm": "x"}), "expected float or None"),
        (small(mesh={"fsdp": [2, "4"]}), "mesh.fsdp[1]='4' is a str; expected int"),
        (small(mesh={"fsdp": 2}), "mesh.fsdp=2 is a int; expected tuple of int"),
        ({**small(), "train": 3}, "train=3 must be a group of fields"),
        ({"model": {"vocab_size": 9}}, "model.embedding_dim has no value; set it (int)"),
        ({}, "model has no value"),
        (small(model={"num_heads": 6, "num_kv_heads": 4, "head_dim": 8}), "try one of 1, 2, 3, 6"),
        (small(train={"batch_size": 6, "accumulate_steps": 4}), "not divisible by accumulate"),
        (small(optim={"learning_rate": float("nan")}), "optim.learning_rate=nan"),
        (small(model={"logit_soft_cap": 0.0}), "model.logit_soft_cap=0.0 must be above 0"),
        (small(model={"rope_theta": float("nan")}), "model.rope_theta=nan must be a finite number"),
        (small(optim={"weight_decay": float("inf")}), "optim.weight_decay=inf must be a finite"),
        (small(optim={"momentum": -1.0}), "optim.momentum=-1.0 must be at least 0 and below 1"),
        (small(objective={"span_length": 1e9}), "=1000000000.0 is more than data.sequence_length="),
        (
            small(model={"causal": False}, sample={"prompt": "a"}),
            "one with model.causal=False reads; set sample.prompt=None",
        ),
        (small(train={"expert_capacity": 2.0}), "set model.experts.count, or leave out"),
        (
            small(model={"rope_scaling": {"factor": 2.0}}),
            "factor=2.0 without a kind scales",
        ),
        (
            small(model={"position": "alibi", "rope_scaling": {"kind": "linear", "factor": 2.0}}),
            'goes with position="rope", not "alibi"',
        ),
        (small(train={"seed": 2**32}), "train.seed=4294967296 must be below 2**32"),
        (small(model={"position": "rop"}), "model.position='rop' is not known; did you mean"),
    ],
)
def test_a_wrong_config_says_field_value_and_remedy(values, said):
    assert said in message(build.from_dict, values)


def test_overrides_are_typed():
    config = build.read_config("tiny")
    apply_overrides(
        config,
        {
            "train.steps": "7",
            "optim.learning_rate": "1e-2",
            "optim.clip_norm": "none",
            "model.causal": "false",
            "sample.prompt": "none",
            "model.attention_windows": "none, 8",
            "mesh.fsdp": "(2, 4)",
            "train.hooks": "a.b:c",
            "tokenizer.path": "none",
            "name": "7",
        },
    )
    built = build.build(config)
    assert (built.train.steps, built.optim.learning_rate, built.optim.clip_norm) == (7, 0.01, None)
    assert (built.model.causal, built.model.attention_windows) == (False, (None, 8))
    assert (built.mesh.fsdp, built.train.hooks, built.name) == ((2, 4), ("a.b:c",), "7")
    assert build.read_config("tiny").train.steps == 20, "a packaged config must not remember"


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("train.steps", "1.5", 'config.train.steps="1.5" is not an int'),
        ("model.causal", "yes", "is not a bool"),
        ("mesh.fsdp", "2,x", "is not a tuple of int"),
        ("model.attention_windows", "x", "is not a tuple of (int or None)"),
        ("train.step", "1", 'did you mean "train.steps"?'),
        ("trian.steps", "1", 'did you mean "train"?'),
        ("model.rope_scaling.factr", "1", 'did you mean "model.rope_scaling.factor"?'),
        ("model.rope_scaling", "1", "is a group of fields; set one of them"),
        ("train.steps.x", "1", '"train.steps" is one value'),
        ("learning_rate", "1", 'did you mean "optim.learning_rate"?'),
    ],
)
def test_a_wrong_override_is_one_clear_line(path, text, said):
    assert said in message(parse_value, path, text)


def test_differences_name_both_values():
    config = build.load_config("tiny")
    other = build.read_config("tiny")
    other.train.steps, other.mesh.fsdp = 40, (2, 4)
    assert build.differences(config, build.build(other)) == [
        "train.steps: 20 -> 40",
        "mesh.fsdp: (1,) -> (2, 4)",
    ]
    assert build.differences(config, config) == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "c.train.stepss = 3",
            ':4 `c.train.stepss = 3`: config has no field "stepss"; did you mean',
        ),
        ("c.train.steps = 'x'", "steps got a str; expected int"),
        ("c.train.steps = (", "was never closed"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("raise SystemExit(5)", ":4 `raise SystemExit(5)`"),
        ("return 3", "get_config() returned a int"),
    ],
)
def test_a_config_file_that_fails_says_where(tmp_path, monkeypatch, body, said):
    file = tmp_path / "mine.py"
    file.write_text(
        "from llmasos_jax.config.build import read_config\n"
        "def get_config():\n"
        "    c = read_config('tiny')\n"
        f"    {body}\n"
        "    return c\n"
    )
    text = message(build.load_config, file)
    assert said in text and "mine.py" in text
    monkeypatch.chdir(tmp_path)
    assert message(build.load_config, "mine.py") == text.replace(str(file), "mine.py")


def test_a_config_file_may_take_a_variant(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from llmasos_jax.config.build import read_config\n"
        "def get_config(variant='plain'):\n"
        "    c = read_config('tiny')\n"
        "    c.name = variant\n"
        "    return c\n"
    )
    assert build.load_config(f"{file}:wide").name == "wide"
    assert build.load_config(file).name == "plain"
    assert 'takes no variant, got "wide"' in message(build.load_config, "tiny:wide")


def test_a_resolved_config_loads_again(tmp_path):
    config = build.load_config("tiny")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(build.to_dict(config)))
    assert build.load_config(file) == config
    file.write_text("{")
    assert "not readable as JSON" in message(build.load_config, file)


def test_a_config_that_is_not_there_names_the_nearest():
    assert 'did you mean "quickstart"?' in message(build.load_config, "quikstart")
    assert "no such config file" in message(build.load_config, "configs/nope.py")
