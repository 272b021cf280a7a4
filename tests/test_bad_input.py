"""Bad input through the command line: one clear line, status 2, and the disk as it was."""

import fcntl
import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from llmasos_jax.checkpoint.orbax import Checkpointer
from llmasos_jax.cli.main import main
from llmasos_jax.config.build import load_config, read_config, to_dict
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.format.names import expected
from llmasos_jax.format.tensorfile import stored
from llmasos_jax.format.write import write_model

CFG = ModelConfig(vocab_size=259, embedding_dim=8, num_layers=2, num_heads=2, ffn_dim=12)


@pytest.fixture
def refuse(tmp_path, monkeypatch, capsys):
    """Runs a command in `tmp_path` that has to be refused with these words."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(command, said):
        before = contents(home)
        assert main(command.split()) == 2
        captured = capsys.readouterr()
        first, *more = captured.err.splitlines()
        assert first.startswith("llmasos: error: ") and said in captured.err
        assert all(line.startswith("  ") for line in more), "more lines than a list has"
        assert captured.out == ""
        assert contents(home) == before

    return run


def contents(folder):
    return {str(p): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def write(path="model"):
    tensors = {n: stored(np.ones(s.shape, np.float32)) for n, s in expected(CFG).items()}
    return write_model(path, Manifest("tiny", CFG), tensors, ByteTokenizer())


def edited(change):
    """Writes a model, then changes what its model.json says."""

    def make():
        path = write() / "model.json"
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))

    return make


def weights(change, *, listed=False):
    """Writes a model, then changes its weights; unless `listed`, model.json names no sizes."""

    def make():
        edited(lambda m: None if listed else m.pop("weights"))()
        path = Path("model/model.safetensors")
        path.write_bytes(change(path.read_bytes()))

    return make


def parameter(name, value):
    return edited(lambda m: m["parameters"].update({name: value}))


MODELS = {
    "truncated": (weights(lambda raw: raw[:-9], listed=True), "it is cut off"),
    "truncated, sizes not listed": (weights(lambda raw: raw[:-9]), "it is cut off"),
    "truncated header": (weights(lambda raw: raw[:99]), "It is cut off"),
    "lying length": (weights(lambda raw: b"\xff" * 8 + raw[8:]), "claims a header of 1844674407"),
    "lying shape": (
        weights(lambda raw: raw.replace(b'"shape":[259,8]', b'"shape":[259,9]')),
        "embed.table takes 8288 bytes, F32 of shape [259, 9] takes 9324",
    ),
    "lying offset": (
        weights(lambda raw: raw.replace(b'"data_offsets":[0,8288]', b'"data_offsets":[9,8297]')),
        "leaves a gap",
    ),
    "a path that leaves": (
        edited(lambda m: m["weights"]["files"][0].update(file="../model/model.safetensors")),
        'weights.files[0].file = "../model/model.safetensors" must match',
    ),
    "a tokenizer's path that leaves": (
        edited(lambda m: m.update(tokenizer={"kind": "sentencepiece", "file": "/etc/passwd"})),
        'tokenizer.file = "/etc/passwd" must match',
    ),
    "a missing key": (
        edited(lambda m: m["parameters"].pop("embedding_dim")),
        '"parameters.embedding_dim" is missing; add it',
    ),
    "a newer major": (edited(lambda m: m.update(format_version="2.1")), "is of format 2.1"),
    "negative": (parameter("num_layers", -2), "parameters.num_layers = -2 must be at least 1"),
    "huge": (parameter("vocab_size", 10**30), "and at most 16777216"),
    "large, within bounds": (
        parameter("embedding_dim", 2**18),
        "embed.table: the file has [259, 8], the model [259, 262144]",
    ),
    "many layers": (parameter("num_layers", 4096), "and 36826 more"),
    "an unknown tokenizer": (
        edited(lambda m: m["tokenizer"].update(kind="byte")),
        'tokenizer.kind = "byte" is not known; did you mean "bytes"?',
    ),
    "code": (parameter("mlp", "jax.numpy:tanh"), "names code, and opening a model runs none"),
    "no weights": (
        edited(lambda m: m.pop("weights") and Path("model/model.safetensors").unlink()),
        'no weights; init_model("model")',
    ),
    "not JSON": (lambda: (write() / "model.json").write_text("{"), "model.json is not JSON"),
    "nothing": (lambda: None, '"model" is n'),
}


@pytest.mark.parametrize("what", MODELS)
def test_models(what, refuse):
    make, said = MODELS[what]
    make()
    refuse("generate model hello", said)
    refuse("convert model out", said)
    if what != "no weights":  # the rest of it is worth a look
        refuse("inspect model", said)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--top-p=2", "top_p=2.0 is not possible; give a number above 0 and at most 1"),
        ("--top-p=nan", "top_p=nan is not possible"),
        ("--top-k=0", "top_k=0 is not possible"),
        ("--min-p=-1", "min_p=-1.0 is not possible"),
        ("--temperature=-1", "temperature=-1.0 is not possible"),
        ("--max-length=0", "max_length=0 is not possible"),
        ("--repetition-penalty=0", "repetition_penalty=0.0 is not possible"),
        ("--seed=-1", "seed=-1 is not possible"),
        ("--typical-p=0", "typical_p=0.0 is not possible; give a number above 0 and at most 1"),
        ("--presence-penalty=2.5", "presence_penalty=2.5 is not possible; give a number from -2"),
        ("--frequency-penalty=-3", "frequency_penalty=-3.0 is not possible"),
        ("--logit-bias=5", "'5' is not possible; give an id and a bias, 42=-100"),
        ("--logit-bias=x=5", "'x=5' is not possible"),
        ("--logit-bias=5=101", "logit_bias[5]=101.0 is not possible; give a number from -100"),
        ("--logit-bias=-5=1", "an id of logit_bias=-5 is not possible"),
        ("--logit-bias=5=1 --logit-bias=5=2", "--logit-bias names the id 5 twice"),
        ("--logit-bias=123456=1", "logit_bias has the id 123456, which cannot be drawn"),
    ],
)
def test_sampling_options(option, said, refuse):
    write()
    refuse(f"generate model hello {option}", said)


TEXT = "--config.data.source=text --config.data.path="


@pytest.mark.parametrize(
    ("raw", "options", "said"),
    [
        (b"", f"{TEXT}text", "data.path=text is an empty file; expected text in it"),
        (b" \n" * 99, f"{TEXT}text", "all are empty; expected text"),
        (b"ab\xff" * 99, f"{TEXT}text", "text is not UTF-8: byte 0xff at offset 2 (line 1)"),
        (b"ab\n" * 9, f"{TEXT}text", "has one document with text"),
        (b"", f"{TEXT}absent", "data.path=absent is not there"),
        (b"{", f"{TEXT}text --config.data.source=jsonl", "text, line 1: not JSON"),
        (b"", "--config.tokenizer.kind=byte", 'kind="byte" is not known; did you mean "bytes"?'),
        (b"", "--config.tokenizer.kind=tokenizers --config.tokenizer.path=text", "not a tokenizer"),
        (b"", "--config.mesh.data=3", "mesh data=3 x fsdp=1 x tensor=1 is 3 devices, there are 8"),
        (b"", "--config.train.batch_size=12 --config.train.accumulate_steps=4", "batch_size=12"),
        (b"", "--config.objective.name=:x", 'objective.name=":x" is not known'),
        (b"", "--config.train.hooks=no_such:Hook", 'cannot import "no_such"'),
        (b"", "--config.model.vocab_size=99999999", "model.vocab_size = 99999999 must be at least"),
        (b"", "--config.name=", "name has 0 characters"),
    ],
)
def test_training(raw, options, said, refuse):
    Path("text").write_bytes(raw)
    refuse(f"train --config=tiny --workdir=run {options}", said)


def checkpoint(workdir, config):
    """What tells whose run a folder holds, and a weight to lose."""
    keeper = Checkpointer(Path(workdir) / "checkpoints")
    keeper.save(20, {"params": {"w": jnp.ones(3)}}, {"step": 20, "corpus": ""}, to_dict(config))
    keeper.close()


@pytest.mark.parametrize("has_config", [True, False])
def test_a_checkpoint_of_another_config(has_config, refuse):
    """The checkpoint itself tells; config.json may be lost."""
    checkpoint("run", load_config("tiny"))
    if has_config:
        Path("run/config.json").write_text(json.dumps(to_dict(load_config("tiny"))))
    other = "--config.model.num_layers=3 --config.optim.beta2=0.9 --config.train.steps=90"
    refuse(f"train --config=tiny --workdir=run {other}", "model.num_layers: 2 -> 3\n  optim.beta2")


def test_a_checkpoint_of_other_leaves(refuse):
    checkpoint("run", load_config("tiny"))
    refuse("convert run out", "the checkpoint has 0 layers, its config says model.num_layers=2")
    refuse("convert run out --step=7", "no checkpoint of step 7")


@pytest.mark.parametrize("workdir", ["file", "file/run", "/proc/run"])
def test_a_workdir_that_is_none(workdir, refuse):
    Path("file").write_text("mine")
    refuse(f"train --config=tiny --workdir={workdir}", "take another --workdir")


def test_a_cache_that_cannot_be_written(refuse, monkeypatch):
    Path("file").write_text("mine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("file").absolute()))
    refuse("train --config=tiny --workdir=run", "set XDG_CACHE_HOME to another folder")


def test_a_folder_that_another_process_trains_in(refuse):
    Path("run").mkdir()
    handle = os.open("run", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    refuse("train --config=tiny --workdir=run", "another process trains in run; wait for it")
    os.close(handle)


def test_a_folder_of_another_program_is_left_alone(refuse):
    Path("theirs").mkdir()
    Path("theirs/config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    refuse("train --config=tiny --workdir=theirs", "theirs/config.json is not readable as a resolv")


def test_a_refused_config_does_not_bind_the_folder(refuse):
    """A run that came to no checkpoint leaves nothing that a corrected config could differ from."""
    config = read_config("tiny")
    config.data.path = "misspelt"
    Path("run").mkdir()
    Path("run/config.json").write_text(json.dumps(to_dict(load_config(config))))
    refuse(f"train --config=tiny --workdir=run {TEXT}still_misspelt", "still_misspelt is not there")
