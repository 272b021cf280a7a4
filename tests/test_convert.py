"""A training folder becomes a model: bit-identical, one layer's memory, from any place in it."""

import dataclasses
import json
import pathlib
import sys
import textwrap

import commands
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from old_checkpoint import without_manifest

import llmasos_jax
from llmasos_jax.api import convert
from llmasos_jax.checkpoint.orbax import Checkpointer
from llmasos_jax.config.build import to_dict
from llmasos_jax.config.heads import Encoder
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config, DataConfig
from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
from llmasos_jax.errors import CheckpointError, FormatError
from llmasos_jax.format import names
from llmasos_jax.format.convert import convert_files
from llmasos_jax.format.read import read_model
from llmasos_jax.format.validate import validate
from llmasos_jax.hub.open import open_model
from llmasos_jax.models.definition import ModelDef, file_def, init_params, relayout
from llmasos_jax.models.layout import Layout, scan_layout

MODEL = ModelConfig(
    vocab_size=259,
    embedding_dim=16,
    num_layers=7,
    context_length=64,
    num_heads=2,
    ffn_dim=24,
    attention_windows=(None, 8, 8),
)
CONFIG = Config(MODEL, name="tiny-run", data=DataConfig(sequence_length=32))


def make_run(folder: pathlib.Path, cfg: Config = CONFIG, **params: object) -> dict:
    """What training leaves behind, without training."""
    definition = ModelDef(cfg.model, scan_layout(cfg.model))
    params = params or init_params(definition, jax.random.key(0))
    checkpoints = Checkpointer(folder / "checkpoints")
    for step in (4, 9):
        state = {
            "step": jnp.int32(step),
            "params": jax.tree.map(lambda x, step=step: x + step, params),
            "opt_state": (params, jnp.int32(step)),
            "key": jax.random.key(1),
        }
        checkpoints.save(step, state, {"next": step}, to_dict(cfg))
    checkpoints.close()
    (folder / "tokenizer").mkdir()
    entry = ByteTokenizer().save(folder / "tokenizer")
    (folder / "tokenizer" / "entry.json").write_text(json.dumps(entry))
    unrolled = relayout(state["params"], definition.layout, file_def(cfg.model).layout)
    return {name: np.asarray(leaf) for name, leaf in names.flatten(unrolled).items()}


def assert_same(folder: pathlib.Path, expected: dict[str, np.ndarray]) -> None:
    found = read_model(folder).tensors
    assert set(found) == set(expected)
    for name, array in expected.items():
        tensor = found[name].read()
        assert tensor.dtype == array.dtype
        np.testing.assert_array_equal(tensor.view(np.uint8), array.view(np.uint8), err_msg=name)


def test_every_tensor_is_bit_identical(tmp_path: pathlib.Path) -> None:
    expected = make_run(tmp_path / "run")
    assert scan_layout(MODEL) == Layout(prefix=0, period=3, count=2, suffix=1)  # all three parts
    result = convert(tmp_path / "run", tmp_path / "model")
    assert_same(tmp_path / "model", expected)
    assert validate(tmp_path / "model").num_parameters == sum(a.size for a in expected.values())
    assert (result.step, result.name, result.num_tensors) == (9, "tiny-run", len(expected))
    manifest = read_model(tmp_path / "model").manifest
    assert manifest.parameters == MODEL
    assert manifest.tokenizer == {"kind": "bytes"} and manifest.generation.eos_ids == (257,)
    assert manifest.metadata["step"] == 9 and manifest.metadata["source"] == "run"
    assert manifest.metadata["llmasos_jax"] == llmasos_jax.__version__
    assert len(manifest.metadata["config_sha256"]) == 64


@pytest.mark.parametrize("place", ["run", "run/checkpoints", "run/checkpoints/9"])
def test_any_place_of_a_run(tmp_path: pathlib.Path, place: str) -> None:
    expected = make_run(tmp_path / "run")
    convert(tmp_path / place, tmp_path / "model")
    assert_same(tmp_path / "model", expected)
    assert open_model(tmp_path / place).manifest.tokenizer == {"kind": "bytes"}


def test_both_stacks_of_an_encoder_decoder(tmp_path: pathlib.Path) -> None:
    model = MODEL.replace(encoder=Encoder(3), attention_windows=(None,), position="relative")
    cfg = dataclasses.replace(CONFIG, model=model)
    expected = make_run(tmp_path / "run", cfg)
    assert scan_layout(model).encoder == Layout(prefix=0, period=1, count=3, suffix=0)
    convert(tmp_path / "run", tmp_path / "model")
    assert_same(tmp_path / "model", expected)
    assert "encoder.layers.2.attn.q" in expected and "encoder.relative.buckets" in expected
    generation = read_model(tmp_path / "model").manifest.generation
    assert generation.decoder_start_id == ByteTokenizer().pad_id


def test_an_older_step(tmp_path: pathlib.Path) -> None:
    expected = make_run(tmp_path / "run")
    assert convert(tmp_path / "run", tmp_path / "model", step=4).step == 4
    assert convert(tmp_path / "run/checkpoints/4", tmp_path / "model").step == 4
    table = read_model(tmp_path / "model").tensors["embed.table"].read()
    np.testing.assert_allclose(table + 5, expected["embed.table"], rtol=1e-6)
    with pytest.raises(CheckpointError, match="no checkpoint of step 5"):
        convert(tmp_path / "run", tmp_path / "other", step=5)


def test_a_run_opens_as_a_model_without_converting(tmp_path: pathlib.Path) -> None:
    expected = make_run(tmp_path / "run")
    files = open_model(tmp_path / "run")
    flat = names.flatten(files.params())
    for name, array in expected.items():
        np.testing.assert_array_equal(flat[name], array)
    assert set(flat) == set(expected)


def test_bfloat16_and_shards(tmp_path: pathlib.Path) -> None:
    definition = ModelDef(MODEL, scan_layout(MODEL))
    params = init_params(definition, jax.random.key(0))
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    expected = make_run(tmp_path / "run", **params)
    assert expected["embed.table"].dtype == ml_dtypes.bfloat16
    convert_files(open_model(tmp_path / "run"), tmp_path / "model", shard_bytes=10_000)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    assert_same(tmp_path / "model", expected)


def test_model_to_model(tmp_path: pathlib.Path) -> None:
    expected = make_run(tmp_path / "run")
    convert_files(open_model(tmp_path / "run"), tmp_path / "a", shard_bytes=10_000)
    convert(tmp_path / "a" / "model.json", tmp_path / "b")
    assert_same(tmp_path / "b", expected)
    before, after = read_model(tmp_path / "a").manifest, read_model(tmp_path / "b").manifest
    assert before.replace(weights=None) == after.replace(weights=None)
    with pytest.raises(FormatError, match="is the model to convert"):
        convert(tmp_path / "a", tmp_path / "b" / ".." / "a")
    with pytest.raises(FormatError, match="leave out step=3"):
        convert(tmp_path / "a", tmp_path / "c", step=3)


def test_weights_of_another_config_are_named(tmp_path: pathlib.Path) -> None:
    make_run(tmp_path / "run")
    config_file = tmp_path / "run" / "checkpoints" / "9" / "config" / "metadata"
    # As before there were hashes, which would tell that it is not what was written.
    without_manifest(config_file.parents[1])
    config = json.loads(config_file.read_text())
    config["model"]["ffn_dim"] = 32
    config_file.write_text(json.dumps(config))
    with pytest.raises(FormatError, match=r"layers.0.mlp.down: the file has \[24, 16\], the model"):
        convert(tmp_path / "run", tmp_path / "model")
    config["model"] |= {"num_layers": 8}
    config_file.write_text(json.dumps(config))
    with pytest.raises(FormatError, match="has 7 layers, its config says model.num_layers=8"):
        convert(tmp_path / "run", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_run_that_names_code_is_refused_unless_allowed(tmp_path: pathlib.Path) -> None:
    cfg = Config(MODEL.replace(mlp="jax.numpy:tanh"), data=DataConfig(sequence_length=32))
    make_run(tmp_path / "run", cfg)
    with pytest.raises(FormatError, match='parameters.mlp = "jax.numpy:tanh" names code'):
        convert(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    convert(tmp_path / "run", tmp_path / "out", allow_code=True)
    assert read_model(tmp_path / "out", allow_code=True).manifest.parameters == cfg.model


def test_what_is_no_source(tmp_path: pathlib.Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        convert(tmp_path, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    for source in ("empty", "nowhere"):
        with pytest.raises(FormatError, match="model"):
            convert(tmp_path / source, tmp_path / "out")


MEASURE = """
    import re, sys
    from llmasos_jax.api import convert

    def peak_mb():
        # Not getrusage: its peak is that of the parent process, carried over by exec.
        status = open("/proc/self/status").read()
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024

    # What is imported and started on the way is not what is measured.
    convert(sys.argv[1] + "/small", sys.argv[2] + "/small")
    before = peak_mb()
    convert(sys.argv[1] + "/large", sys.argv[2] + "/large")
    print(peak_mb() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_one_layers_tensor(tmp_path: pathlib.Path) -> None:
    """12 layers of two tensors of 16 MB: 400 MB of weights through the memory of a few of those."""
    runs, models = tmp_path / "runs", tmp_path / "models"
    small = Config(MODEL.replace(num_layers=2, attention_windows=(None,)), data=CONFIG.data)
    make_run(runs / "small", small)
    width, ffn = 256, 16 * 2**20 // 4 // 256
    large = small.model.replace(embedding_dim=width, ffn_dim=ffn, num_layers=12, mlp="relu")
    definition = ModelDef(large, scan_layout(large))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.random(s.shape, np.float32), definition.shapes)
    checkpoints = Checkpointer(runs / "large" / "checkpoints")
    config = Config(large, data=CONFIG.data)
    checkpoints.save(1, {"params": params}, None, to_dict(config))
    checkpoints.close()
    run = commands.run("-c", textwrap.dedent(MEASURE), runs, models, home=tmp_path)
    assert run.stderr == ""
    growth = float(run.stdout)
    # The chunk as tensorstore reads it, the array that it makes of it, and what the allocator keeps
    # (seen: 40 to 65 MB, more on a busy machine); not the stack of 192 MB.
    assert 16 < growth < 192 / 2, f"peak memory grew by {growth:.0f} MB"
    found = read_model(models / "large").tensors
    for layer in (0, 5, 11):
        expected = params["periods"]["0"]["mlp"]["up"][layer]
        np.testing.assert_array_equal(found[f"layers.{layer}.mlp.up"].read(), expected)


def test_a_bit_that_has_flipped_is_noticed_before_it_becomes_a_model(tmp_path):
    make_run(tmp_path / "run")
    state = tmp_path / "run" / "checkpoints" / "9" / "state"
    largest = max((p for p in state.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    raw = bytearray(largest.read_bytes())
    raw[len(raw) // 2] ^= 1
    largest.write_bytes(raw)
    with pytest.raises(CheckpointError, match="has changed since it was written"):
        convert(tmp_path / "run", tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(CheckpointError, match="has changed since it was written"):
        llmasos_jax.load_model(tmp_path / "run")
    # The step before is sound.
    assert convert(tmp_path / "run" / "checkpoints" / "4", tmp_path / "model")
