"""`llmasos` and `llmasos_jax` are one: names, submodules, pickles; and neither imports JAX."""

import ast
import inspect
import pathlib
import subprocess
import sys

import pytest

import llmasos_jax

ROOT = pathlib.Path(llmasos_jax.__file__).parent


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("package", ["llmasos", "llmasos_jax", "llmasos_jax.cli.main"])
def test_import_stays_light(package):
    code = (
        f"import sys, {package}\n"
        "print([m for m in ('jax', 'numpy', 'flax', 'ml_collections') if m in sys.modules])"
    )
    assert python(code) == "[]"


def test_config_needs_no_jax():
    code = "import sys, llmasos; llmasos.load_config('tiny'); print('jax' in sys.modules)"
    assert python(code) == "False"


def test_attributes_and_submodules_are_the_same_objects():
    code = """
import llmasos.config.schema, llmasos, llmasos_jax, llmasos.errors
import llmasos_jax.config.schema as real
assert llmasos.config.schema is real
assert llmasos.errors is llmasos_jax.errors
assert llmasos.Config is real.Config is llmasos.config.schema.Config
assert real.__spec__.name == real.__name__ == 'llmasos_jax.config.schema'
assert set(llmasos_jax.__all__) <= set(dir(llmasos))
from llmasos.config import build
assert build is llmasos_jax.config.build
try:
    import llmasos.no_such_module
except ModuleNotFoundError as error:
    assert error.name == 'llmasos.no_such_module', error
else:
    raise SystemExit('found a module that is not there')
try:
    llmasos.no_such_name
except AttributeError:
    print('same')
"""
    assert python(code) == "same"


def test_a_module_first_imported_under_either_name_exists_once():
    code = """
import llmasos_jax.errors, llmasos.errors, sys
assert sys.modules['llmasos.errors'] is sys.modules['llmasos_jax.errors']
import llmasos.config.model as first, llmasos_jax.config.model as second
print(first is second)
"""
    assert python(code) == "True"


def test_pickles_cross_the_two_names():
    code = """
import pickle, llmasos
from llmasos.config.model import ModelConfig
cfg = ModelConfig(vocab_size=9, embedding_dim=8, num_layers=1, num_heads=1)
data = pickle.dumps(cfg)
assert pickle.loads(data) == cfg
renamed = pickle.dumps(cfg, 0).replace(b'llmasos_jax', b'llmasos')
print(type(pickle.loads(renamed)) is ModelConfig)
"""
    assert python(code) == "True"


def test_one_list_of_public_names():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    typed = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.If):
            for line in node.body:
                if isinstance(line, ast.ImportFrom):
                    home = line.module.removeprefix("llmasos_jax.")
                    typed |= {alias.name: home for alias in line.names}
    assert typed == llmasos_jax._HOMES
    assert sorted(llmasos_jax._HOMES) == llmasos_jax.__all__


def test_every_public_name_is_there():
    for name in llmasos_jax.__all__:
        assert callable(getattr(llmasos_jax, name)), name
    present = {p.stem for p in ROOT.iterdir() if p.is_dir() or p.suffix == ".py"}
    assert set(llmasos_jax._MODULES) <= present


def test_train_is_a_function_and_a_package():
    import llmasos_jax.train.schedules
    from llmasos_jax import api

    assert inspect.signature(llmasos_jax.train) == inspect.signature(api.train)
    assert llmasos_jax.train.schedules is sys.modules["llmasos_jax.train.schedules"]
    with pytest.raises(llmasos_jax.LLMasOSError, match="tiny"):
        llmasos_jax.train("tinny")
