"""Models whose matrices are kept in eight or four bits when they are loaded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmasos_jax.cli.main import main
from llmasos_jax.config.experts import Experts
from llmasos_jax.config.latent import LatentAttention
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.engine import Ask, Engine, EngineOptions
from llmasos_jax.engine.bench import held_bytes
from llmasos_jax.errors import GenerationError
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.generate.load import init_model, load_model
from llmasos_jax.generate.sampling import Sampling
from llmasos_jax.nn.codes import dot_codes

pytest.importorskip("qwix", reason="needs the extra `finetune`")

BASE = {"vocab_size": 264, "embedding_dim": 64, "num_layers": 2, "context_length": 128}
KINDS = {
    "grouped heads": ModelConfig(**BASE, num_heads=4, num_kv_heads=2),
    "biases, plain MLP": ModelConfig(**BASE, num_heads=4, qkv_bias=True, mlp="gelu"),
    "latent": ModelConfig(
        **BASE, num_heads=2, head_dim=24, latent=LatentAttention(kv_rank=16, rope_dim=8)
    ),
    "experts": ModelConfig(**BASE, num_heads=4, experts=Experts(4, 2, 64)),
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    cfg = KINDS[request.param]
    model = init_model(Manifest("tiny", cfg, tokenizer={"kind": "bytes"}), seed=1)
    return model.save(tmp_path_factory.mktemp("quantize") / "tiny")


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_logits_are_those_of_the_numbers_that_the_codes_stand_for(folder, tmp_path, kind):
    model = load_model(folder, quantize=kind)
    plain = load_model(folder)
    rounded = load_model(model.save(tmp_path / "rounded"))
    assert rounded.num_parameters == model.num_parameters == plain.num_parameters
    held = {n: np.asarray(t.read()) for n, t in rounded.weights.stored().items()}
    numbers = {n: np.asarray(t.read()) for n, t in plain.weights.stored().items()}
    coded = [n for n in held if np.abs(held[n] - numbers[n]).max() > 0]
    assert len(coded) >= 2 * 4  # q, k, v, o and the MLP's of each layer, at least
    assert not any("embed" in n or "norm" in n or "router" in n or "head" in n for n in coded)
    levels = 127 if kind == "int8" else 7
    for name in coded:
        step = np.abs(numbers[name]).max() / levels
        assert np.abs(held[name] - numbers[name]).max() <= 0.51 * step
    tokens = np.random.default_rng(0).integers(0, 256, (2, 100))
    wanted, found = rounded.logits(tokens), model.logits(tokens)
    scale = np.abs(wanted).max()
    assert np.abs(found - wanted).max() < 1e-5 * scale
    few = model.logits(tokens[:1, :6])  # rows of activations that become codes too
    assert np.abs(few - rounded.logits(tokens[:1, :6])).max() < 1e-4 * scale
    assert np.abs(found - plain.logits(tokens)).max() > 1e-4 * scale


def test_a_product_of_codes_is_that_of_their_numbers():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 60, 4, 8)).astype(np.float32)
    x[0, 0] = 0
    codes = rng.integers(-127, 128, (6, 4, 8)).astype(np.int8)
    scales = rng.uniform(0.01, 0.1, (1, 6)).astype(np.float32)
    numbers = codes.reshape(6, 32).astype(np.float64) * scales.T
    for num, most_steps in ((1, 0.5), (3, 0.0)):  # few rows become codes too, many do not
        given = x[:num]
        found = dot_codes("btnh,nhd->btd", jnp.asarray(given), codes, scales, out_dtype=jnp.float32)
        rows = given.reshape(-1, 32).astype(np.float64)
        step = np.abs(rows).max(1, keepdims=True) / 127 / 254
        most = most_steps * step * np.abs(numbers).sum(1) + 1e-4
        assert (np.abs(found.reshape(-1, 6) - rows @ numbers.T) <= most).all()
    one = dot_codes("btnh,nhd->btd", x[:1, :1], codes, scales, out_dtype=jnp.float32)
    np.testing.assert_array_equal(one, np.zeros((1, 1, 6)))
    four = rng.integers(-7, 8, (6, 4, 64)).astype(np.int8)
    groups = rng.uniform(0.01, 0.1, (4, 6)).astype(np.float32)
    x = rng.standard_normal((2, 4, 64)).astype(np.float32)
    found = dot_codes(
        "bnh,nhd->bd",
        jnp.asarray(x),
        jnp.asarray(four).astype(jnp.int4),
        groups,
        out_dtype=jnp.float32,
    )
    wanted = np.einsum("bnh,dnh,nd->bd", x.astype(np.float64), four.astype(np.float64), groups)
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_every_part_of_the_program_takes_such_a_model(folder):
    model = load_model(folder, quantize="int8")
    assert "int8 in float32" in repr(model)
    wanted = model.generate_text("abc", 12, 0.0)
    with Engine(model, EngineOptions((2,), 16, num_pages=20)) as engine:
        asks = [Ask(tuple(model.encode("abc")), 12, Sampling(temperature=0.0))] * 2
        assert [t.text() for t in map(engine.submit, asks)] == [wanted] * 2
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    tokens = np.arange(24).reshape(1, 24)
    split = load_model(folder, quantize="int4", mesh=mesh)
    np.testing.assert_allclose(
        split.logits(tokens), load_model(folder, quantize="int4").logits(tokens), atol=2e-4
    )


def test_memory_is_that_of_the_bits(tmp_path):
    cfg = ModelConfig(264, 256, 4, num_heads=4)
    folder = init_model(Manifest("m", cfg, tokenizer={"kind": "bytes"})).save(tmp_path / "m")
    sizes = {}
    for kind in (None, "int8", "int4"):
        weights = load_model(folder, quantize=kind).weights
        sizes[kind] = held_bytes(weights) - weights.params["embed"]["table"].nbytes
    assert sizes["int8"] < 0.27 * sizes[None]
    assert sizes["int4"] < 0.20 * sizes[None]


def test_what_cannot_be_is_said(folder, capsys):
    with pytest.raises(GenerationError, match="'int8' or 'int4'"):
        load_model(folder, quantize="int3")
    with pytest.raises(GenerationError, match="without adapters"):
        load_model(folder, quantize="int8", adapters={"a": str(folder)})
    assert (
        main(["generate", str(folder), "abc", "--quantize=int8", "--max-length=3", "--seed=1"]) == 0
    )
    wanted = load_model(folder, quantize="int8").generate_text("abc", 3, seed=1)
    assert capsys.readouterr().out.rstrip("\n") == wanted.rstrip("\n")
