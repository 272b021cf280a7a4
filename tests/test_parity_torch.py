"""Logits against transformers + torch, one tiny random twin per family: implementations not ours.

Every weight is random, norms and biases included, and sequences are longer than every window.
"""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity_families import FAMILIES, OURS, Family
from tolerances import SIMPLE

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.models.count import count_parameters
from llmasos_jax.models.definition import ModelDef, file_def, relayout
from llmasos_jax.models.layout import scan_layout
from llmasos_jax.nn.runtime import Runtime

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:::(torch|transformers)")]
torch = pytest.importorskip("torch", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")

LENGTH = 24


def build_theirs(family: Family) -> Any:
    """Their model with random weights: products keep the size of what they read, scales near 1."""
    name, options = family.theirs
    config = getattr(transformers, name)(**options)
    auto = transformers.AutoModel if name == "BertConfig" else transformers.AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager").float().eval()
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = rng.standard_normal(weight.shape).astype(np.float32)
            if weight.ndim == 2:
                noise *= 1.5 / (1 if "embed" in name or "wte" in name else weight.shape[1] ** 0.5)
            elif name.endswith("weight"):
                noise = 1.0 + 0.3 * noise
            weight.copy_(torch.from_numpy(noise * (name not in family.zeroed)))
    return model


def convert(family: Family, cfg: ModelConfig, model: Any) -> dict[str, Any]:
    """Our weights from theirs, every one of theirs used."""
    theirs = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    used = set(family.zeroed)

    def take(path: tuple, shape: jax.ShapeDtypeStruct, num_in: int) -> jax.Array:
        ours = ".".join(str(key.key) for key in path)
        layer = re.match(r"prefix\.(\d+)", ours)
        ours = re.sub(r"^prefix\.\d+", "L", ours)
        stem = re.sub(r"\.scale$|\.bias$|_bias$", "", ours)
        entry = family.names[stem]
        name, pick = entry if isinstance(entry, tuple) else (entry, lambda w: w)
        if layer:
            name = name.replace("L.", family.layers.format(layer[1]) + ".", 1)
        name += ".bias" if ours.endswith("bias") else ".weight"
        used.add(name)
        weight = pick(theirs[name])
        return jnp.asarray(
            (weight.T if num_in and not family.is_in_first else weight).reshape(shape.shape)
        )

    definition = file_def(cfg)
    params = jax.tree_util.tree_map_with_path(take, definition.shapes, definition.contractions)
    assert used == set(theirs), "weights of theirs that have no place in ours"
    ignored = sum(theirs[name].size for name in family.zeroed)
    assert family.theirs[0] == "OPTConfig" or count_parameters(cfg) == (
        sum(weight.size for weight in theirs.values()) - ignored
    )
    return params


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_those_of_transformers(name: str) -> None:
    family = FAMILIES[name]
    cfg = dataclasses.replace(OURS, **family.ours)
    tokens = np.random.default_rng(0).integers(0, cfg.vocab_size, (2, LENGTH))
    model = build_theirs(family)
    with torch.no_grad():
        out = model(torch.from_numpy(tokens))
    expected = (out.last_hidden_state if name == "bert" else out.logits).numpy()
    definition = ModelDef(cfg, scan_layout(cfg))
    params = relayout(convert(family, cfg, model), file_def(cfg).layout, definition.layout)

    def run(params: Any, tokens_bt: jax.Array) -> jax.Array:
        transformer = definition.bind(params)
        x_btd = transformer.hidden(tokens_bt, runtime=Runtime()).x_btd
        return x_btd if name == "bert" else transformer.logits(x_btd, Runtime())

    actual = np.asarray(jax.jit(run)(params, jnp.asarray(tokens, jnp.int32)))
    assert expected.std() > 1
    # A whole model is allowed WHOLE_MODEL, but exact and tanh GELU differ by 6e-5 here.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=SIMPLE * np.abs(expected).max())
