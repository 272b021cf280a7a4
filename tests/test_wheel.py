"""A wheel, installed elsewhere, does the main job: its configs and its schema are inside."""

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from commands import ROOT, llmasos, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that pip builds of this checkout."""
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(out), str(ROOT)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (made,) = out.glob("llmasos_jax-*.whl")
    return made


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of a new environment that has the wheel, and borrows what it depends on."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, str(wheel)],
        check=True,
    )
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    # A path file is read line by line: folders only, so no editable install comes along with them.
    (Path(site) / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return str(python)


def test_the_wheel_has_configs_and_schema_and_nothing_of_ours(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "llmasos/__init__.py",
        "llmasos_jax/configs/quickstart.py",
        "llmasos_jax/format/schema-1.json",
        "llmasos_jax/cli/main.py",
    ):
        assert wanted in names
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"llmasos", "llmasos_jax"}
    for config in (ROOT / "configs").glob("*.py"):
        assert f"llmasos_jax/configs/{config.name}" in names


def test_an_installed_wheel_trains_converts_and_generates(python, tmp_path):
    code = "import llmasos_jax; print(llmasos_jax.__file__)"
    where = run("-c", code, home=tmp_path, python=python).stdout
    assert str(ROOT) not in where and "/venv/" in where
    small = (
        "--config.train.steps=3 --config.train.batch_size=2 --config.train.eval_batches=1 "
        "--config.data.max_documents=60 --config.model.num_layers=1 --config.sample.prompt=none "
        "--config.model.vocab_size=512 --config.checkpoint.every_steps=none"
    )
    done = llmasos(
        "train",
        "--config=quickstart",
        "--workdir=run",
        "--json",
        *small.split(),
        home=tmp_path,
        python=python,
    )
    assert json.loads(done.stdout)["step"] == 3
    llmasos("convert", "run", "model", home=tmp_path, python=python)
    written = llmasos(
        *("generate", "model", "def ", "--max-length=5", "--seed=0", "--echo"),
        home=tmp_path,
        python=python,
    )
    assert written.stdout.startswith("def ")


def test_the_installed_command_is_there(python):
    script = Path(python).parent.parent / "lib"
    entry = next(script.rglob("llmasos_jax-*.dist-info/entry_points.txt")).read_text()
    assert "llmasos = llmasos_jax.cli.main:main" in entry
