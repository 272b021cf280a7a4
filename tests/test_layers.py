"""The house's rules, read from the imports: what stands left of what, and who may import whom."""

import ast
import pathlib

import pytest

import llmasos_jax

ROOT = pathlib.Path(llmasos_jax.__file__).parent

# A package imports only what stands before it; names on one line may not import each other.
LINE = """
types errors callable progress
config
parallel
data
nn
models
checkpoint
train
format
interop
hub
generate
engine
evals
finetune
serve
plan
launch
sweep
verify
api
cli
""".strip().splitlines()
RANK = {name: rank for rank, names in enumerate(LINE) for name in names.split()}

# Only these files (or folders) may import these packages.
ONLY = {
    "ml_collections": ("config/", "cli/"),
    "orbax": ("checkpoint/",),
    "flax": ("nn/", "models/", "train/state.py"),
    "argparse": ("cli/",),
    "fastapi": ("serve/",),
    "uvicorn": ("serve/",),
    "grain": ("data/",),
    "datasets": ("data/",),
    "torch": ("interop/", "evals/"),
    "transformers": ("interop/", "evals/"),
    "tensorflow": (),
    "chex": (),
    "pytest": (),
}

FILES = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py"))


def imports(path):
    """Yields (module, line) of every import in a file, wherever it stands, but for types."""
    tree = ast.parse((ROOT / path).read_text(), path)
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            skipped |= {id(child) for child in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def room(dotted):
    """`llmasos_jax.train.loop` stands in `train`."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "llmasos_jax" and len(parts) > 1 else None


@pytest.mark.parametrize("path", FILES)
def test_a_file_imports_only_what_stands_before_it(path):
    here = pathlib.PurePosixPath(path).parts[0].removesuffix(".py")
    if here in ("__init__", "__main__", "configs"):
        return
    assert here in RANK, f"{here} has no place in the line of tests/test_layers.py"
    for module, line in imports(path):
        there = room(module)
        if there is None or there == here or there not in RANK:
            continue
        assert RANK[there] < RANK[here], (
            f"{path}:{line} imports {module}, but {there} does not stand before {here}"
        )


@pytest.mark.parametrize("path", FILES)
def test_a_file_imports_only_the_libraries_it_may(path):
    if path.startswith("configs/"):
        return
    for module, line in imports(path):
        homes = ONLY.get(module.partition(".")[0])
        assert homes is None or path.startswith(homes), (
            f"{path}:{line} imports {module}; only {', '.join(homes) or 'tests'} may"
        )


def test_no_bare_assert_outside_tests():
    found = [
        f"{path}:{node.lineno}"
        for path in FILES
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert found == []


def test_the_rules_bite():
    assert "flax" in ONLY and not "train/step.py".startswith(ONLY["flax"])
    assert RANK["train"] < RANK["format"] < RANK["generate"] < RANK["cli"]
    assert room("llmasos_jax.train.loop") == "train" and room("jax.numpy") is None
    assert ("llmasos_jax.config.build.load_config", 12) in set(
        (module, 12) for module, _ in imports("api.py")
    )


def test_no_test_file_imports_another():
    """What several share stands in a module of its own: a file of tests runs alone, and once."""
    here = pathlib.Path(__file__).parent
    found = {
        f"{path.name}: {name}"
        for path in here.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None), *(alias.name for alias in node.names)]
        if name is not None and name.startswith("test_")
    }
    assert not found
