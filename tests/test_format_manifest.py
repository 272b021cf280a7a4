"""`model.json`: one schema, strictly read, errors that say what to do."""

import dataclasses
import json
import pathlib
import sys

import jsonschema
import pytest
from cpu_time import cpu_time_under

from llmasos_jax.config.model import GATED_MLPS, ModelConfig, RopeScaling
from llmasos_jax.errors import FormatError
from llmasos_jax.format.manifest import (
    Generation,
    Manifest,
    Weights,
    WeightsFile,
    parse_manifest,
    to_json,
)
from llmasos_jax.format.read import read_manifest, read_model
from llmasos_jax.format.strict import schema
from llmasos_jax.nn.kernels import ATTENTIONS
from llmasos_jax.nn.mlp import ACTIVATIONS
from llmasos_jax.nn.norm import NORMS

SMALLEST = {
    "name": "my_model",
    "version": "1.0",
    "architecture": "Transformer",
    "parameters": {"vocab_size": 10000, "embedding_dim": 512, "num_layers": 12},
}


def text(**changes: object) -> bytes:
    return json.dumps({**SMALLEST, **changes}).encode()


def with_parameters(**changes: object) -> bytes:
    return text(parameters={**SMALLEST["parameters"], **changes})


def refused(raw: bytes) -> str:
    with pytest.raises(FormatError) as caught:
        parse_manifest(raw)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_smallest_file_is_a_whole_model() -> None:
    manifest = parse_manifest(text())
    assert manifest.parameters == ModelConfig(10000, 512, 12)
    assert (manifest.format_version, manifest.weights, manifest.tokenizer) == ("1", None, None)


def test_schema_is_a_valid_json_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(SMALLEST, schema())


@pytest.mark.parametrize(
    ("kind", "rules"),
    [
        (ModelConfig, schema()["properties"]["parameters"]),
        (RopeScaling, schema()["properties"]["parameters"]["properties"]["rope_scaling"]),
    ],
)
def test_schema_equals_the_dataclass(kind: type, rules: dict) -> None:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    assert list(rules["properties"]) == list(fields)
    required = [
        n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING
    ]
    assert rules.get("required", []) == required
    for name, field in fields.items():
        rule = rules["properties"][name]
        assert rule["description"], name
        kinds = rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
        assert ("null" in kinds) == (
            "None" in str(field.type) and "tuple" not in str(field.type)
        ), name
        if field.default is not dataclasses.MISSING:
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            assert rule["default"] == default and type(rule["default"]) is type(default), name
        if {"integer", "number"} & set(kinds):
            assert "maximum" in rule, f"{name} needs a stated maximum"


def test_schema_names_the_parts_that_ship() -> None:
    rules = schema()["properties"]["parameters"]["properties"]
    assert set(rules["mlp"]["examples"]) == set(ACTIVATIONS) and set(GATED_MLPS) <= set(ACTIVATIONS)
    assert set(rules["norm"]["examples"]) == set(NORMS)
    assert set(rules["attention"]["examples"]) == set(ATTENTIONS)


FULL = Manifest(
    name="all keys, 全部",
    version="2.1",
    architecture="LLaMA",
    parameters=ModelConfig(
        vocab_size=300,
        embedding_dim=64,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        attention_windows=(8, None),
        rope_scaling=RopeScaling("llama3", 8.0, 1024),
        qk_norm="head",
        logit_soft_cap=30.0,
    ),
    weights=Weights((WeightsFile("model.safetensors", 100, "0" * 64),)),
    tokenizer={"kind": "sentencepiece", "file": "tokenizer.model"},
    generation=Generation(eos_ids=(2, 5), stop=("\n\n",)),
    metadata={"step": 12, "anything": [{"deep": None}]},
)


def test_round_trip() -> None:
    written = to_json(FULL)
    assert parse_manifest(written.encode()) == FULL
    jsonschema.validate(json.loads(written), schema())
    assert json.loads(written)["parameters"]["rope_theta"] == 10000.0  # defaults are written too


def test_whole_numbers_are_floats_where_the_field_is_one() -> None:
    theta = parse_manifest(with_parameters(rope_theta=500000)).parameters.rope_theta
    assert theta == 500000.0 and type(theta) is float


@pytest.mark.parametrize("version", ["1", "1.0", "1.37"])
def test_minor_versions_are_read(version: str) -> None:
    assert parse_manifest(text(format_version=version)).format_version == version


@pytest.mark.parametrize("version", ["2", "2.0", "17.3", "0"])
def test_another_major_is_refused_by_name(version: str) -> None:
    # Its unknown keys are not what the message is about.
    message = refused(text(format_version=version, brand_new_key=1, parameters=7))
    assert f"is of format {version}" in message and "reads format 1" in message


REFUSED = {
    "unknown parameter": (with_parameters(num_layer=3), 'did you mean "num_layers"'),
    "unknown key": (text(wieghts=None), 'did you mean "weights"'),
    "unknown nested": (with_parameters(rope_scaling={"kin": None}), "rope_scaling.kin"),
    "missing": (text(parameters={"vocab_size": 1, "embedding_dim": 8}), "parameters.num_layers"),
    "negative": (with_parameters(num_layers=-1), "parameters.num_layers = -1 must be at least 1"),
    "zero": (with_parameters(vocab_size=0), "at least 1"),
    "huge": (with_parameters(vocab_size=10**30), "at most 16777216"),
    "endless": (b'{"name": ' + b"9" * 5000 + b"}", "not JSON"),
    "a billion layers": (with_parameters(num_layers=10**9), "at most 4096"),
    "fraction": (with_parameters(num_layers=2.5), "must be integer"),
    "bool": (with_parameters(num_layers=True), "must be integer"),
    "text": (with_parameters(vocab_size="10"), "must be integer"),
    "null": (with_parameters(vocab_size=None), "must be integer"),
    "unknown norm": (with_parameters(norm="rmsnrom"), 'did you mean "rmsnorm"'),
    "unknown position": (with_parameters(position="ropes"), 'did you mean "rope"'),
    "unknown family": (text(architecture="LLaMa"), 'did you mean "LLaMA"'),
    "trailing newline": (with_parameters(norm="rmsnorm\n"), "not known"),
    "heads": (with_parameters(num_heads=6, num_kv_heads=4, head_dim=8), "try one of 1, 2, 3, 6"),
    "NaN": (b'{"name": NaN}', "NaN is not a JSON number"),
    "infinite": (with_parameters(rope_theta=1).replace(b": 1}", b": 1e999}"), "too large"),
    "twice": (b'{"name": "a", "name": "b"}', 'the key "name" stands twice'),
    "deep": (b"[" * 100_000 + b"]" * 100_000, "nested deeper"),
    "rather deep": (b'{"metadata": ' + b"[" * 80 + b"]" * 80 + b"}", "nested deeper"),
    "not UTF-8": (b'{"name": "\xff"}', "not JSON"),
    "surrogate": (text().replace(b"my_model", b"\\ud800"), "surrogate"),
    "not an object": (b"[]", "must be object"),
    "empty": (b"", "not JSON"),
    "format_version": (text(format_version=1), 'must be a string such as "1"'),
    "path": (
        text(weights={"files": [{"file": "../x", "size": 9, "sha256": "0" * 64}]}),
        "weights.files[0].file",
    ),
    "eos": (text(generation={"eos_ids": [10000]}), "vocab_size - 1 = 9999"),
    "tokenizer kind": (text(tokenizer={"kind": "sentencepeice"}), 'did you mean "sentencepiece"'),
    "tokenizer key": (text(tokenizer={"kind": "bytes", "fiel": "x"}), 'did you mean "file"'),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_with_one_line(what: str) -> None:
    raw, expected = REFUSED[what]
    with cpu_time_under(2):
        assert expected in refused(raw)


@pytest.mark.parametrize("what", [w for w in REFUSED if REFUSED[w][0][:1] == b"{"])
def test_the_published_schema_refuses_it_too(what: str) -> None:
    """A JSON Schema validator comes to the same answer, but for what a schema cannot say."""
    beyond_schema = {
        "heads",
        "NaN",
        "infinite",
        "twice",
        "rather deep",
        "not UTF-8",
        "surrogate",
        "eos",
        "endless",
        "trailing newline",  # only in Python, whose `$` stands before a last line end too
    }
    if what not in beyond_schema:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(json.loads(REFUSED[what][0]), schema())


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (with_parameters(attention="this:that"), "parameters.attention"),
        (with_parameters(mlp="math:sin"), "parameters.mlp"),
        (with_parameters(norm="this:that"), "parameters.norm"),
        (text(tokenizer={"kind": "this:that", "own": 1}), "tokenizer.kind"),
    ],
)
def test_code_is_refused(tmp_path: pathlib.Path, raw: bytes, path: str) -> None:
    (tmp_path / "model.json").write_bytes(raw)
    for read in (read_manifest, read_model):
        with pytest.raises(FormatError, match=f'{path} = ".*" names code, .*allow_code=True'):
            read(tmp_path)
    assert "this" not in sys.modules  # importing it would print the Zen of Python
    assert read_manifest(tmp_path, allow_code=True).name == "my_model"


def test_code_that_is_not_there_is_a_format_error(tmp_path: pathlib.Path) -> None:
    cfg = ModelConfig(11, 8, 1, norm="no_such_module:norm")
    (tmp_path / "model.json").write_text(to_json(Manifest("m", cfg)))
    (tmp_path / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    with pytest.raises(FormatError, match='parameters.norm="no_such_module:norm": cannot import'):
        read_model(tmp_path, allow_code=True)


def test_what_cannot_be_read_cannot_be_written() -> None:
    for broken in (
        FULL.replace(name=""),
        FULL.replace(metadata={"x": float("nan")}),
        FULL.replace(metadata={"x": object()}),
        FULL.replace(architecture="Lama"),
        FULL.replace(name="\ud800"),
    ):
        with pytest.raises(FormatError):
            to_json(broken)
