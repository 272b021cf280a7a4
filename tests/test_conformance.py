"""The conformance kit: the package and an independent NumPy implementation give the same values."""

import json
import pathlib
import shutil
import subprocess
import sys

import commands
import jax
import numpy as np
import pytest

from llmasos_jax.errors import FormatError
from llmasos_jax.format.manifest import parse_manifest
from llmasos_jax.format.read import read_model
from llmasos_jax.format.strict import schema
from llmasos_jax.format.validate import validate
from llmasos_jax.models.definition import file_def
from llmasos_jax.nn.runtime import Runtime

ROOT = pathlib.Path(__file__).resolve().parent.parent
KIT = ROOT / "conformance"
sys.path.insert(0, str(KIT))

import check  # noqa: E402
import llmasos_reader  # noqa: E402
import numpy_reader  # noqa: E402

OPTIMIZED = True  # conftest.py: programs as users have them

CASES = sorted(path.stem for path in (KIT / "cases").glob("*.json"))


def load(name: str) -> dict:
    return json.loads((KIT / "cases" / f"{name}.json").read_text())


def rows(case: dict) -> list[tuple[tuple, list]]:
    """What is asked of each sequence (`numpy_reader.rows`), and what it must give."""
    expected = case["expected"].get("logits") or case["expected"]["hidden"]
    return list(zip(numpy_reader.rows(case["request"]), expected, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_the_package_gives_the_kits_logits(name: str) -> None:
    files = read_model(KIT / "models" / name)
    definition = file_def(files.manifest.parameters)
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), files.params())

    @jax.jit
    def forward(
        params: dict,
        tokens_bt: jax.Array,
        types_bt: jax.Array | None,
        decoder_bt: jax.Array | None,
        prefix_bt: jax.Array | None,
    ) -> jax.Array:
        model, runtime = definition.bind(params), Runtime()
        more: dict = {"token_types_bt": types_bt, "prefix_bt": prefix_bt}
        if decoder_bt is not None:
            more["encoded"] = model.encode(tokens_bt, runtime=runtime)
            tokens_bt = decoder_bt
        x_btd = model.hidden(tokens_bt, runtime=runtime, **more).x_btd
        return x_btd if model.cfg.head is None else model.logits(x_btd, runtime)

    for (*asked, prefix), expected in rows(load(name)):
        given = [None if row is None else np.array([row], np.int32) for row in asked]
        is_prefix = (np.arange(len(asked[0])) < prefix)[None]
        prefix_bt = is_prefix if definition.cfg.prefix_lm else None
        found = forward(params, *given, prefix_bt)[0]
        assert check.worst(found.tolist(), expected) < 1


@pytest.mark.parametrize("name", CASES)
def test_the_numpy_reader_gives_the_kits_values(name: str) -> None:
    case = load(name)
    model = numpy_reader.Model(KIT / "models" / name)
    for asked, expected in rows(case):
        run = model.hidden if model.p["head"] is None else model.logits
        found = run(*asked)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    if "prompt" in case["request"]:
        found = model.greedy(case["request"]["prompt"], case["request"]["count"])
        assert found == case["expected"]["greedy"]


def test_the_models_are_valid() -> None:
    for folder in sorted((KIT / "models").iterdir()):
        assert validate(folder).hashes_checked


def test_the_kit_uses_every_parameter() -> None:
    """A key that every model leaves at its default would be a key that nobody checks."""
    rules = schema()["properties"]["parameters"]["properties"]
    seen: dict[str, set] = {name: set() for name in rules}
    for folder in (KIT / "models").iterdir():
        found = json.loads((folder / "model.json").read_text())["parameters"]
        for name, value in found.items():
            seen[name].add(json.dumps(value))
    unused = {
        n for n, r in rules.items() if "default" in r and seen[n] == {json.dumps(r["default"])}
    }
    assert unused == {"attention"}
    for name in (
        "position",
        "block",
        "norm_placement",
        "qk_norm",
        "norm",
        "mlp",
        "head",
        "pooling",
    ):
        known = rules[name].get("enum", rules[name].get("examples"))
        assert {json.dumps(v) for v in known} <= seen[name], name


@pytest.mark.parametrize("group", ["rope_scaling", "latent", "experts", "encoder", "classifier"])
def test_the_kit_uses_every_key_of_a_group(group: str) -> None:
    rules = schema()["properties"]["parameters"]["properties"][group]["properties"]
    models = [json.loads(p.read_text()) for p in (KIT / "models").glob("*/model.json")]
    groups = [model["parameters"].get(group, {}) for model in models]
    used = {n for n, r in rules.items() for g in groups if g.get(n, r["default"]) != r["default"]}
    assert used == set(rules)


@pytest.mark.parametrize(
    "case", json.loads((KIT / "refused.json").read_text()), ids=lambda c: c["what"]
)
def test_the_package_refuses_what_it_must(tmp_path: pathlib.Path, case: dict) -> None:
    def command(argv: list[str], model: pathlib.Path, *_: object) -> tuple[int, dict, str]:
        try:
            read_model(model)
        except FormatError as error:
            return 2, {}, str(error)
        return 0, {}, ""

    run, check.run = check.run, command
    try:
        assert check.check_refusal(["this"], case, tmp_path) == ""
    finally:
        check.run = run


def test_the_script_passes_the_numpy_reader_and_fails_a_liar(tmp_path: pathlib.Path) -> None:
    script = [sys.executable, str(KIT / "check.py")]
    good = subprocess.run(
        [*script, sys.executable, str(KIT / "numpy_reader.py")], capture_output=True, text=True
    )
    assert good.returncode == 0, good.stdout + good.stderr
    assert good.stdout.endswith("passed, 0 failed\n")
    liar = tmp_path / "liar.py"
    liar.write_text("import sys; open(sys.argv[3], 'w').write('{\"logits\": [[[0]]]}')")
    bad = subprocess.run([*script, sys.executable, str(liar)], capture_output=True, text=True)
    assert bad.returncode == 1 and "0 passed" in bad.stdout


KINDS = (
    *("llama", "gemma", "defaults", "latent", "longrope", "trunk", "sentencepiece", "tokenizers"),
    *("bert", "mlm-untied", "t5", "prefix-lm"),
)


@pytest.mark.parametrize("name", KINDS)
def test_the_public_interface_gives_the_kits_answers(tmp_path: pathlib.Path, name: str) -> None:
    case = load(name)
    (tmp_path / "request.json").write_text(json.dumps(case["request"]))
    arguments = (KIT / "models" / name, tmp_path / "request.json", tmp_path / "answer.json")
    llmasos_reader.main(*map(str, arguments))
    answer = json.loads((tmp_path / "answer.json").read_text())
    for kind in check.VALUES:
        assert check.worst(answer.get(kind, []), case["expected"].get(kind, [])) < 1
    assert answer.get("greedy") == case["expected"].get("greedy")
    assert answer.get("ids") == case["expected"].get("ids")


@pytest.mark.slow
def test_the_script_passes_the_package(tmp_path: pathlib.Path) -> None:
    """As somebody with another implementation would run it: one process for each case.

    The test above asks the same reader in one process, so a few of each kind are enough here.
    """
    kit = shutil.copytree(KIT, tmp_path / "kit", ignore=shutil.ignore_patterns("__pycache__"))
    for case in (kit / "cases").iterdir():
        if case.stem not in ("llama", "bert", "t5", "sentencepiece"):
            case.unlink()
    refusals = json.loads((kit / "refused.json").read_text())
    (kit / "refused.json").write_text(json.dumps(refusals[:3]))
    run = commands.run(kit / "check.py", sys.executable, kit / "llmasos_reader.py", home=tmp_path)
    assert run.stdout.endswith("7 passed, 0 failed\n")  # it raises if one fails


def test_check_is_short_enough_to_imitate() -> None:
    assert len((KIT / "check.py").read_text().splitlines()) < 200


def test_the_document_lists_every_key_with_its_default() -> None:
    text = (ROOT / "docs" / "format.md").read_text()
    parameters = schema()["properties"]["parameters"]
    groups = {
        name: parameters["properties"][name]
        for name in ("rope_scaling", "latent", "experts", "encoder", "classifier")
    }
    for title, group in {"## 2. `parameters`": parameters, **groups}.items():
        heading = title if title.startswith("#") else f"`{title}`:"
        table = text.split(f"\n{heading}\n")[1]
        for name, rule in group["properties"].items():
            default = f"`{json.dumps(rule['default'])}`" if "default" in rule else "required"
            row = next(line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
            cells = row.split(" | ")
            assert cells[2] == default, row
            assert rule["description"] in row
    smallest = text.split("```json\n")[1].split("```")[0]
    assert parse_manifest(smallest.encode()).parameters.num_layers == 12
