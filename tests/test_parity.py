"""`parity` names the place of each planted fault, and what it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from small_model import rope_rows, to_neighbours

from llmasos_jax import api
from llmasos_jax.cli.main import main
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.rope import RopeScaling
from llmasos_jax.evals.parity.compare import TOLERANCES
from llmasos_jax.evals.parity.weights import relation
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.format.names import expected, flatten
from llmasos_jax.format.tensorfile import stored
from llmasos_jax.format.write import write_model
from llmasos_jax.models.definition import file_def, init_params

# Everything that a fault below needs is switched on; q is as wide as the model, so it can be
# transposed without an error.
FULL = ModelConfig(
    vocab_size=80,
    embedding_dim=32,
    num_layers=3,
    context_length=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_dim=32,
    mlp="geglu_tanh",
    norm_unit_offset=True,
    norm_placement="sandwich",
    attention_windows=(None, 8, None),
    rope_scaling=RopeScaling("llama3", 8.0, original_length=32),
    tie_embeddings=False,
    embedding_scale=4.0,
    attention_soft_cap=5.0,
    logit_soft_cap=2.0,
)
Arrays = dict[str, np.ndarray]


def arrays_of(cfg: ModelConfig, seed: int = 0) -> Arrays:
    """Random weights; scales too."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, array in flatten(init_params(file_def(cfg), jax.random.key(seed))).items():
        noise = rng.standard_normal(array.shape).astype(np.float32)
        if array.ndim == 1:
            arrays[name] = np.asarray(array) + 0.2 * noise
        else:
            inner = 1.0 if name.startswith("embed") else np.prod(array.shape[:-1]) ** 0.5
            arrays[name] = noise / np.float32(inner)
    return arrays


def save(folder: Path, cfg: ModelConfig, arrays: Arrays) -> Path:
    tensors = {name: stored(arrays[name]) for name in expected(cfg)}
    return write_model(folder, Manifest(folder.name, cfg), tensors)


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("right") / "right", FULL, arrays_of(FULL))


def option(**changes: Any) -> Callable[[ModelConfig, Arrays], tuple[ModelConfig, Arrays]]:
    """A fault in the parameters; the weights stay."""
    return lambda cfg, arrays: (cfg.replace(**changes), arrays)


def weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    """A fault in one tensor; the parameters stay."""
    return lambda cfg, arrays: (cfg, {**arrays, name: change(arrays[name]).astype(np.float32)})


def exchanged(one: str, two: str) -> Any:
    return lambda cfg, arrays: (cfg, {**arrays, one: arrays[two], two: arrays[one]})


def transposed(w: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(w.reshape(w.shape[0], -1).T).reshape(w.shape)


# The fault, the place, and a word of the hint.
FAULTS: dict[str, tuple[Any, str, str]] = {
    "rope layout, as an option": (option(rope_interleaved=True), "layer 0", "rope layout"),
    "rope layout, in the weights": (rope_rows, "layer 0", "rope layout"),
    "rope base": (option(rope_theta=500.0), "layer 0", "rope base"),
    "rope scaling": (option(rope_scaling=RopeScaling()), "layer 0", "rope scaling"),
    "norm epsilon": (option(norm_eps=1e-2), "layer 0", "eps"),
    "head order": (
        weight("layers.1.attn.k", lambda w: w[:, ::-1].copy()),
        "layer 1",
        "head order",
    ),
    "grouping of queries": (option(num_kv_heads=4), "layer 0", "head order"),
    "tied head": (option(tie_embeddings=True), "logits", "tied head"),
    "norm offset": (option(norm_unit_offset=False), "layer 0", "norm offset"),
    "norm offset, in one weight": (
        weight("layers.2.mlp_norm.scale", lambda w: w + 1),
        "layer 2",
        "norm offset",
    ),
    "window dropped": (option(attention_windows=(None,)), "layer 1", "attention window"),
    "activation": (option(mlp="geglu"), "layer 0", "activation"),
    "transposed": (weight("layers.2.attn.q", transposed), "layer 2", "layers.2.attn.q"),
    "one number": (
        weight("layers.1.mlp.down", lambda w: w + (np.arange(w.size).reshape(w.shape) == 100)),
        "layer 1",
        "layers.1.mlp.down",
    ),
    "exchanged": (exchanged("layers.0.mlp.gate", "layers.0.mlp.up"), "layer 0", "exchanged"),
    "sign": (weight("layers.0.attn.o", lambda w: -w), "layer 0", "sign"),
    "embedding scale": (option(embedding_scale=1.0), "embedding", "embedding scale"),
    "logit soft cap": (option(logit_soft_cap=None), "logits", "logit soft cap"),
    "scores' soft cap": (option(attention_soft_cap=None), "layer 0", "soft cap of the attention"),
    "attention scale": (option(attention_scale=0.5), "layer 0", "attention scale"),
}


def plant(name: str, tmp_path: Path) -> Path:
    fault = FAULTS[name][0]
    cfg, arrays = fault(FULL, arrays_of(FULL))
    if cfg.num_kv_heads == 4:  # keys and values repeated as if queries took turns: 0 1 0 1
        arrays = {
            n: np.tile(a, (1, 2, 1)) if n.endswith(("attn.k", "attn.v")) else a
            for n, a in arrays.items()
        }
    return save(tmp_path / "wrong", cfg, arrays)


@pytest.mark.parametrize("name", FAULTS)
def test_each_planted_fault_is_found_and_named(name: str, right: Path, tmp_path: Path) -> None:
    _, place, hint = FAULTS[name]
    found = api.parity(right, plant(name, tmp_path))
    assert not found.same and found.first == place, found
    assert found.hint is not None and hint in found.hint, found
    assert found.explains_all, found
    assert bool(found.options) == (not found.weights) or name in (
        "tied head",
        "grouping of queries",
    )


def test_equal_models_agree(right: Path, tmp_path: Path) -> None:
    found = api.parity(right, save(tmp_path / "copy", FULL, arrays_of(FULL)))
    assert found.same and found.first is None and not found.weights and not found.options
    assert [p.place for p in found.places] == [
        *("embedding", "layer 0", "layer 1", "layer 2", "final norm", "logits")
    ]
    assert "the same" in str(found) and "the same" in found._repr_html_()


def test_the_same_function_in_other_words_is_the_same(right: Path, tmp_path: Path) -> None:
    """Rows of q and k permuted, and the option that says so: weights differ, the model does not."""
    cfg, arrays = rope_rows(FULL, arrays_of(FULL))
    found = api.parity(right, save(tmp_path / "b", cfg.replace(rope_interleaved=True), arrays))
    assert found.same and len(found.weights) == 6 and len(found.options) == 1


def test_attention_or_mlp_is_told(right: Path, tmp_path: Path) -> None:
    for name, differs in (("scores' soft cap", "attention"), ("exchanged", "mlp")):
        found = api.parity(right, plant(name, tmp_path / differs))
        assert [p.place for p in found.parts if p.relative > found.tolerance] == [differs]


def test_an_embedding_that_no_random_id_meets(tmp_path: Path) -> None:
    cfg = FULL.replace(vocab_size=5000, num_layers=1, attention_windows=(None,))
    arrays = arrays_of(cfg)
    right = save(tmp_path / "right", cfg, arrays)
    table = arrays["embed.table"].copy()
    table[4321] += 1
    found = api.parity(right, save(tmp_path / "wrong", cfg, {**arrays, "embed.table": table}))
    assert found.first == "embedding" and "embed.table" in str(found.hint)


def test_two_faults_at_once(right: Path, tmp_path: Path) -> None:
    arrays = arrays_of(FULL)
    arrays["layers.0.attn.v"] = -arrays["layers.0.attn.v"]
    cfg = FULL.replace(attention_scale=1.0, rope_theta=300.0)
    found = api.parity(right, save(tmp_path / "wrong", cfg, arrays))
    assert found.first == "layer 0" and found.explains_all
    assert all(word in str(found.hint) for word in ("attention_scale", "rope_theta", "weights"))


def test_other_widths_and_depths(right: Path, tmp_path: Path) -> None:
    small = FULL.replace(num_layers=2, attention_windows=(None, 8))
    found = api.parity(right, save(tmp_path / "small", small, arrays_of(small)))
    assert not found.same and "number of layers (3 and 2)" in str(found.first)
    assert found.places == () and "num_layers: 3 -> 2" in found.options


def test_rows_that_pad_the_vocabulary_are_no_difference(right: Path, tmp_path: Path) -> None:
    arrays = arrays_of(FULL)
    arrays["embed.table"] = np.pad(arrays["embed.table"], ((0, 16), (0, 0)))
    arrays["head.w"] = np.pad(arrays["head.w"], ((0, 0), (0, 16)))
    found = api.parity(right, save(tmp_path / "padded", FULL.replace(vocab_size=96), arrays))
    assert found.same and {leaf.name for leaf in found.weights} == {"embed.table", "head.w"}


def test_a_final_norm_that_only_one_has(tmp_path: Path) -> None:
    """Of two trunks: the last places are compared, and the norm that is missing is named."""
    cfg = FULL.replace(head=None, causal=False, tie_embeddings=True)
    arrays = arrays_of(cfg)
    right = save(tmp_path / "right", cfg, arrays)
    wrong = save(tmp_path / "wrong", cfg.replace(final_norm=False), arrays)
    for pair in ((right, wrong), (wrong, right)):
        found = api.parity(*pair)
        assert not found.same and found.first == "final norm"
        assert "final norm" in str(found.hint) and found.explains_all
        assert 1e-2 < found.places[-1].relative < float("inf")


def test_an_output_layer_that_only_one_has(tmp_path: Path) -> None:
    cfg = FULL.replace(head=None, causal=False, tie_embeddings=True)
    arrays = arrays_of(cfg)
    trunk = save(tmp_path / "trunk", cfg, arrays)
    whole = save(tmp_path / "whole", cfg.replace(head="linear"), arrays)
    for pair, which in (((trunk, whole), "second"), ((whole, trunk), "first")):
        found = api.parity(*pair)
        assert not found.same and found.first == "logits"
        assert found.hint == f"output layer: only the {which} model has one"
        assert [p.place for p in found.places if p.relative > 0] == ["logits"]


def check_unreached(folder: Path, cfg: ModelConfig, other: ModelConfig, part: str, **new) -> None:
    """The same on what was run, and what was not reached is named; exit status 1."""
    arrays = arrays_of(cfg)
    right = save(folder / "right", cfg, arrays)
    wrong = save(folder / "wrong", other, {**arrays, **new})
    found = api.parity(right, wrong)
    assert not found.same and found.first is None
    assert len(found.unreached) == 1 and found.unreached[0].startswith(part), found
    assert found.verdict()[0].startswith("the same on what was run; these weights or options")
    assert found.notes and main(["parity", str(right), str(wrong)]) == 1


def test_a_difference_that_no_probe_reaches_is_not_the_same(tmp_path: Path) -> None:
    cfg = FULL.replace(num_layers=1, attention_windows=(None,), rope_scaling=RopeScaling())
    check_unreached(tmp_path / "context", cfg, cfg.replace(context_length=8), "context_length")
    learned = cfg.replace(position="learned", context_length=96)
    table = arrays_of(learned)["embed.positions"].copy()
    table[70:] += 50
    new = {"embed.positions": table}
    check_unreached(tmp_path / "rows", learned, learned, "embed.positions: rows from 64", **new)
    arrays = arrays_of(cfg.replace(vocab_size=90))
    head = np.concatenate([arrays_of(cfg)["head.w"], arrays["head.w"][:, 80:]], axis=1)
    rows = np.concatenate([arrays_of(cfg)["embed.table"], arrays["embed.table"][80:]])
    new = {"embed.table": rows, "head.w": head}
    check_unreached(tmp_path / "ids", cfg, cfg.replace(vocab_size=90), "vocab_size", **new)
    long = [
        RopeScaling("longrope", 4.0, 2048, 1.0, 4.0, 32.0, 1.0, None, (1.0,) * 4, (x,) * 4)
        for x in (2.0, 9.0)
    ]
    pair = [cfg.replace(rope_scaling=scaling, context_length=4096) for scaling in long]
    check_unreached(tmp_path / "long", pair[0], pair[1], "rope_scaling.long_factors")


def test_long_factors_and_token_types_are_reached(tmp_path: Path) -> None:
    long = [
        RopeScaling("longrope", 4.0, 80, 1.0, 4.0, 32.0, 1.0, None, (1.0,) * 4, (x,) * 4)
        for x in (2.0, 9.0)
    ]
    one, two = (FULL.replace(rope_scaling=scaling, context_length=96) for scaling in long)
    found = api.parity(
        save(tmp_path / "a", one, arrays_of(one)), save(tmp_path / "b", two, arrays_of(two))
    )
    assert found.first == "layer 0" and "rope scaling" in str(found.hint)
    cfg = FULL.replace(head=None, causal=False, tie_embeddings=True, token_types=2)
    arrays = arrays_of(cfg)
    types = arrays["embed.types"].copy()
    types[1:] += 5
    found = api.parity(
        save(tmp_path / "c", cfg, arrays),
        save(tmp_path / "d", cfg, {**arrays, "embed.types": types}),
    )
    assert found.first == "embedding" and "embed.types" in str(found.hint)


def test_another_stored_type_has_its_own_tolerance(right: Path, tmp_path: Path) -> None:
    import ml_dtypes

    arrays = {n: a.astype(ml_dtypes.bfloat16) for n, a in arrays_of(FULL).items()}
    found = api.parity(right, save(tmp_path / "narrow", FULL, arrays))
    assert found.tolerance == TOLERANCES["bfloat16"]
    assert all("rounded to bfloat16" in leaf.how for leaf in found.weights)
    assert 1e-4 < max(p.relative for p in found.places)


RNG = np.random.default_rng(3)
W = RNG.standard_normal((8, 4, 6)).astype(np.float32)
AXES = ("embed", "heads", None)


@pytest.mark.parametrize(
    ("y", "how"),
    [
        (-W, "other sign"),
        (3 * W, "is 3 times"),
        (W + 0.5, "0.5 higher"),
        (W - 1, "1 lower"),
        (W[:, [1, 0, 2, 3]], "heads in another order (1 0 2 3)"),
        (W[::-1], "permuted along the model's width"),
        (to_neighbours(W), "halves -> neighbours"),
        (W.astype(np.float16).astype(np.float32), "rounded to float16"),
        (W * (np.arange(6) != 2), "differs in 32 of 192 numbers, first [0, 0, 2]"),
        (W + 0.05 * RNG.standard_normal(W.shape).astype(np.float32), "is near"),
        (RNG.standard_normal(W.shape).astype(np.float32), "other numbers"),
        (W.reshape(8, 24).T.reshape(8, 4, 6).copy(), "transposed"),
        (np.where(W == W.max(), np.nan, W), "no number"),
        (W[:4], "is [4, 4, 6], the first [8, 4, 6]"),
        (
            W.reshape(8, 6, 4).swapaxes(1, 2).copy(),
            "numbers of its heads in another order",
        ),
    ],
)
def test_relations_of_weights(y: np.ndarray, how: str) -> None:
    found = relation(W, y.astype(np.float32), AXES)
    assert found is not None and how in found[0]


def test_equal_weights_have_no_relation() -> None:
    assert relation(W, W.copy(), AXES) is None
    assert relation(W, W * np.float32(1 + 1e-7), AXES) is None


def test_command_line(
    right: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    wrong = plant("logit soft cap", tmp_path)
    assert main(["parity", str(right), str(wrong)]) == 1
    out = capsys.readouterr().out
    assert "they part at logits" in out and "hint: logit soft cap" in out
    assert main(["parity", str(right), str(wrong), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["first"] == "logits" and found["places"][0]["place"] == "embedding"
    assert main(["parity", str(right), str(right), "--tokens=5"]) == 0
    assert "the same" in capsys.readouterr().out
    assert main(["parity", str(right), str(wrong), "--tolerance=0.999"]) == 0


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--tokens=1"], "tokens=1 is not possible; give 2 to 64"),
        (["--tolerance=0"], "tolerance=0.0 is not possible"),
        (["--seed=-1"], "seed=-1 is not possible; give 0 or more"),
    ],
)
def test_wrong_arguments(
    words: list[str], part: str, right: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["parity", str(right), str(right), *words]) == 2
    assert part in capsys.readouterr().err


def test_wrong_input(right: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", str(right), str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
