"""Loading: what is read, in which type, onto which devices; what is refused, in which words."""

import json
import logging

import jax
import numpy as np
import pytest
from small_model import SMALL, ids_of, small_model
from tolerances import SIMPLE, WHOLE_MODEL

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import MeshConfig
from llmasos_jax.errors import ConfigError, FormatError, GenerationError
from llmasos_jax.generate.load import init_model, load_model
from llmasos_jax.parallel.mesh import make_mesh

TOKENS = np.arange(12).reshape(2, 6)


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return model.save(tmp_path_factory.mktemp("load") / "model")


def tensors(model):
    return {name: tensor.read() for name, tensor in model._weights.stored().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
        assert one[name].dtype == other[name].dtype


def test_saved_and_loaded_is_the_same_to_the_bit(model, folder):
    for source in (folder, folder / "model.json", str(folder)):
        loaded = load_model(source)
        assert_same(tensors(loaded), tensors(model))
        assert loaded.config == model.config
        np.testing.assert_array_equal(loaded.logits(TOKENS), model.logits(TOKENS))


def test_a_narrow_type_runs_as_float32_on_cpu_and_is_saved_as_it_was(model, tmp_path, caplog):
    narrow = init_model(model.manifest, dtype="bfloat16").save(tmp_path / "narrow")
    with caplog.at_level(logging.INFO, logger="llmasos_jax"):
        loaded = load_model(narrow)
    assert len(caplog.records) == 1 and "bfloat16, runs as float32" in caplog.text
    assert {a.dtype.name for a in jax.tree.leaves(loaded._weights.params)} == {"float32"}
    again = load_model(loaded.save(tmp_path / "again"), dtype="bfloat16")
    kept = load_model(narrow, dtype="bfloat16")
    assert_same(tensors(again), tensors(kept))
    assert {t.dtype.name for t in tensors(kept).values()} == {"bfloat16"}
    caplog.clear()
    assert "float32" in repr(load_model(narrow, dtype="float32")) and not caplog.records


def test_memory_that_is_short_keeps_the_type(model, tmp_path, monkeypatch, caplog):
    from llmasos_jax.generate import weights

    narrow = init_model(model.manifest, dtype="bfloat16").save(tmp_path / "narrow")
    monkeypatch.setattr(weights, "free_bytes", lambda: 1000)
    loaded = load_model(narrow)
    assert "float32 would take" in caplog.text
    assert loaded.logits(TOKENS).dtype == np.float32


def test_random_weights_depend_on_the_seed_alone(model):
    one = init_model(model.manifest, seed=3)
    assert_same(tensors(one), tensors(init_model(model.manifest, seed=3)))
    other = tensors(init_model(model.manifest, seed=4))
    assert not np.array_equal(tensors(one)["embed.table"], other["embed.table"])


@pytest.mark.parametrize("mesh_config", [MeshConfig(tensor=2), MeshConfig(fsdp=(2,), tensor=2)])
def test_a_mesh_changes_nothing_but_the_place(model, folder, mesh_config):
    mesh = make_mesh(mesh_config)
    sharded = load_model(folder, mesh=mesh)
    q = sharded._weights.params["prefix"]["0"]["attn"]["q"]
    assert q.addressable_shards[0].data.shape[1] == SMALL.query_heads // 2
    assert_same(tensors(sharded), tensors(model))
    np.testing.assert_allclose(sharded.logits(TOKENS), model.logits(TOKENS), atol=WHOLE_MODEL)
    assert_same(tensors(init_model(model.manifest, seed=1, mesh=mesh)),
                tensors(init_model(model.manifest, seed=1)))  # fmt: skip
    prompts = ["Hello", "ab"]
    assert ids_of(sharded, prompts, 8, temperature=0.0) == ids_of(
        model, prompts, 8, temperature=0.0
    )


@pytest.mark.parametrize("num_kv_heads", [1, 2])
def test_key_heads_that_are_fewer_than_devices_are_on_each(num_kv_heads, tmp_path):
    model = small_model(SMALL.replace(num_kv_heads=num_kv_heads))
    mesh = make_mesh(MeshConfig(data=1, tensor=4), jax.devices()[:4])
    sharded = load_model(model.save(tmp_path / "model"), mesh=mesh)
    weights = sharded._weights
    attention = weights.params["prefix"]["0"]["attn"]
    heads = {name: attention[name].addressable_shards[0].data.shape[1] for name in "qkv"}
    assert heads == {"q": 1, "k": num_kv_heads, "v": num_kv_heads}
    assert weights.cache_sharding.is_fully_replicated
    np.testing.assert_allclose(sharded.logits(TOKENS), model.logits(TOKENS), atol=SIMPLE)
    prompts, options = ["Hello", "ab", "a long one"], {"temperature": 0.0}
    found = ids_of(sharded, prompts, 12, **options)
    assert found == ids_of(model, prompts, 12, **options)
    assert len(set(map(tuple, found))) == 3


def test_a_mesh_that_does_not_divide_is_refused(folder):
    with pytest.raises(ConfigError, match="equal parts"):
        load_model(folder, mesh=make_mesh(MeshConfig(tensor=8)))


def test_code_runs_only_when_it_is_allowed(tmp_path):
    cfg = SMALL.replace(mlp="jax.numpy:tanh")
    folder = init_model(cfg).save(tmp_path / "m")
    for open_it in (load_model, init_model):
        with pytest.raises(FormatError, match="names code, and opening a model runs none"):
            open_it(folder)
        assert open_it(folder, allow_code=True).config == cfg


def test_random_weights_that_do_not_fit_are_refused_at_once():
    large = ModelConfig(vocab_size=2**24, embedding_dim=2**18, num_layers=4096)
    with pytest.raises(GenerationError, match="drawing the weights takes .* GB .* a smaller"):
        init_model(large)


def test_init_from_a_model_json_without_weights(folder, tmp_path):
    text = {"name": "seed", "version": "1.0", "architecture": "Transformer",
            "parameters": {"vocab_size": 100, "embedding_dim": 64, "num_layers": 2}}  # fmt: skip
    path = tmp_path / "model.json"
    path.write_text(json.dumps(text))
    with pytest.raises(FormatError, match="no weights; init_model"):
        load_model(path)
    model = init_model(path)
    assert model.logits([[1, 2]]).shape == (1, 2, 100)
    with pytest.raises(GenerationError, match="no tokenizer"):
        model.generate_text("a")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (dict(quantize="int3"), GenerationError, "quantize='int3' is not possible"),
        (dict(dtype="float64"), GenerationError, "dtype='float64'"),
        (dict(dtype="int8"), GenerationError, "dtype='int8'"),
        (dict(mesh=3), GenerationError, "mesh is a int"),
    ],
    ids=str,
)
def test_arguments_out_of_range(folder, options, error, words):
    with pytest.raises(error, match=words):
        load_model(folder, **options)


def test_what_is_no_model_says_what_is(tmp_path):
    with pytest.raises(FormatError, match='"./llama-7b" is not there; give a model.json'):
        load_model("./llama-7b")
    with pytest.raises(FormatError, match="holds no model"):
        load_model(tmp_path)
    with pytest.raises(GenerationError, match="give a path"):
        load_model(3)
    with pytest.raises(GenerationError, match="seed=-1"):
        init_model(SMALL, seed=-1)


def test_a_mesh_made_by_jax_itself_will_do(model, folder):
    mesh = jax.make_mesh((1, 2), ("data", "tensor"), devices=jax.devices()[:2])
    sharded = load_model(folder, mesh=mesh)
    np.testing.assert_allclose(sharded.logits(TOKENS), model.logits(TOKENS), atol=WHOLE_MODEL)
    assert ids_of(sharded, ["Hello"], 4, temperature=0.0) == ids_of(
        model, ["Hello"], 4, temperature=0.0
    )
    with pytest.raises(GenerationError, match="tensor"):
        load_model(folder, mesh=jax.make_mesh((2,), ("data",), devices=jax.devices()[:2]))
