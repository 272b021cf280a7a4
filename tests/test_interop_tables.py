"""Weight-name tables: every kind of row there and back, and every way a file can be wrong."""

import numpy as np
import pytest

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import FormatError
from llmasos_jax.format.names import expected
from llmasos_jax.format.tensorfile import StoredTensor, stored
from llmasos_jax.interop.rows import (
    ALL_EXPERTS,
    OUT_OF_HEADS,
    PER_EXPERT,
    PRODUCT,
    SAME,
    VECTOR,
    Product,
    Same,
)
from llmasos_jax.interop.tables import Ignored, Table, bind, row, unbind

CFG = ModelConfig(16, 8, 2, 10, num_heads=4, num_kv_heads=2, head_dim=6, ffn_dim=12, qkv_bias=True)
ENDS = (row("embed.table", "wte", SAME), row("final_norm.scale", "norm", VECTOR))
NORMS = (
    row("layers.{i}.attn_norm.scale", "h.{i}.n1", VECTOR),
    row("layers.{i}.mlp_norm.scale", "h.{i}.n2", VECTOR),
)
A, M = "layers.{i}.attn.", "layers.{i}.mlp."
FUSED = Table(
    (
        *ENDS,
        *NORMS,
        row(f"{A}q {A}k {A}v", "h.{i}.qkv", PRODUCT),
        row(f"{A}q_bias {A}k_bias {A}v_bias", "h.{i}.qkv_bias", VECTOR),
        row(f"{A}o", "h.{i}.o", OUT_OF_HEADS),
        row(f"{M}gate {M}up", "h.{i}.gate_up", Product(is_in_first=True)),
        row(f"{M}down", "h.{i}.down", PRODUCT),
        row("head.w", "head", PRODUCT),
    ),
    (
        Ignored(r"h\.\d+\.inv_freq", "computed from the config"),
        Ignored("head", "the config ties it to the embedding", equals="wte"),
        Ignored("head_bias", "the model has none", is_zero=True),
    ),
)


def random_tensors(cfg: ModelConfig) -> dict[str, StoredTensor]:
    rng = np.random.default_rng(0)
    return {n: stored(rng.random(s.shape, np.float32)) for n, s in expected(cfg).items()}


def theirs_of(ours: dict[str, StoredTensor], table: Table = FUSED) -> dict[str, StoredTensor]:
    made = unbind(table, CFG, ours)
    for tensor in made.values():
        assert tensor.read().shape == tensor.shape
    return {name: stored(np.ascontiguousarray(tensor.read())) for name, tensor in made.items()}


@pytest.mark.parametrize(
    ("arrangement", "shapes"),
    [
        (SAME, [(5, 3)]),
        (PRODUCT, [(5, 3)]),
        (PRODUCT, [(5, 2, 4)]),
        (VECTOR, [(7,)]),
        (VECTOR, [(4, 3), (2, 3)]),
        (OUT_OF_HEADS, [(4, 3, 5)]),
        (PRODUCT, [(5, 4, 3), (5, 2, 3), (5, 2, 3)]),
        (Product(groups=4), [(5, 4, 3), (5, 4, 2)]),
        (Product(groups=2), [(5, 4, 3), (5, 2, 3), (5, 2, 3)]),
        (Product(num_in=0, groups=2), [(4, 3), (2, 3), (2, 3)]),
        (Product(is_in_first=True), [(5, 4, 3), (5, 4, 3), (5, 4, 3)]),
        (Product(is_in_first=True, groups=2), [(5, 2, 3), (5, 2, 3)]),
        (Product(is_paired=True), [(5, 4, 6)]),
        (Product(num_in=0, is_paired=True), [(4, 6)]),
        (Product(is_paired=True, num_in=2), [(2, 3, 8)]),
        (ALL_EXPERTS, [(3, 5, 4), (3, 5, 4)]),
        (PER_EXPERT, [(3, 5, 4)]),
    ],
)
def test_arrangement_there_and_back(arrangement, shapes) -> None:
    rng = np.random.default_rng(0)
    ours = [rng.random(shape).astype(np.float32) for shape in shapes]
    sources = [stored(array) for array in ours]
    wanted = arrangement.shapes(shapes)
    theirs = [arrangement.give(i, sources) for i in range(len(wanted))]
    assert [array.shape for array in theirs] == wanted
    assert sum(array.size for array in theirs) == sum(array.size for array in ours)
    for index, array in enumerate(ours):
        back = arrangement.take(index, [stored(t) for t in theirs], shapes)
        np.testing.assert_array_equal(back, array, strict=True)


def test_bind_gives_every_tensor_in_order() -> None:
    ours = random_tensors(CFG)
    back = bind(FUSED, CFG, theirs_of(ours), "test")
    assert list(back) == list(expected(CFG))
    for name, tensor in ours.items():
        assert back[name].shape == tensor.shape
        np.testing.assert_array_equal(back[name].read(), tensor.read(), strict=True)


def test_fused_rows_are_views_of_the_file() -> None:
    theirs = theirs_of(random_tensors(CFG))
    back = bind(FUSED, CFG, theirs, "test")
    for name, source in (("attn.k", "h.1.qkv"), ("attn.o", "h.1.o"), ("mlp.up", "h.1.gate_up")):
        assert np.shares_memory(back[f"layers.1.{name}"].read(), theirs[source].read())
    # Turned as products on a CPU read it, it is one block of the file again.
    assert back["layers.1.attn.k"].read().transpose(1, 2, 0).flags.c_contiguous


def problems_of(theirs: dict[str, StoredTensor], cfg: ModelConfig = CFG, **options) -> str:
    with pytest.raises(FormatError) as caught:
        bind(FUSED, cfg, theirs, "folder", **options)
    return str(caught.value)


def test_every_problem_is_listed_with_the_nearest_name() -> None:
    theirs = theirs_of(random_tensors(CFG))
    theirs["h.0.downs"] = theirs.pop("h.0.down")
    theirs["h.1.qkv"] = stored(np.zeros((3, 8), np.float32))
    theirs["h.1.n1"] = StoredTensor((8,), "int64", lambda: np.zeros(8, np.int64))
    theirs["h.2.n1"] = theirs["h.0.n1"]
    text = problems_of(theirs)
    assert "(5 problems)" in text
    assert 'h.0.down: missing, it holds layers.0.mlp.down; did you mean "h.0.downs"?' in text
    assert "h.0.downs: float32[8,12] has no place in the model" in text
    assert "h.1.qkv: the file has [3, 8], the config [48, 8]" in text
    assert "h.1.n1: it is int64; weights are read from float32" in text
    assert "h.2.n1: float32[8] has no place" in text


def test_many_problems_are_cut_and_counted() -> None:
    theirs = theirs_of(random_tensors(CFG))
    theirs |= {f"junk.{i}": theirs["norm"] for i in range(5000)}
    text = problems_of(theirs)
    assert "(5000 problems)" in text and "and 4980 more" in text and len(text.splitlines()) == 22


def test_what_is_ignored_has_to_be_what_the_reason_says() -> None:
    theirs = theirs_of(random_tensors(CFG))
    theirs["h.1.inv_freq"] = StoredTensor((3,), "int64", lambda: np.zeros(3, np.int64))
    theirs["head"] = theirs["wte"]
    theirs["head_bias"] = stored(np.zeros(16, np.float32))
    assert bind(FUSED, CFG, theirs, "test").keys() == expected(CFG).keys()
    theirs["head"] = stored(theirs["wte"].read() + 1)
    theirs["head_bias"] = stored(np.ones(16, np.float32))
    text = problems_of(theirs)
    assert "head: differs from wte, the config ties it to the embedding; ignore='head'" in text
    assert "head_bias: not zero" in text
    bound = bind(FUSED, CFG, theirs, "test", ignore=("head*",))
    assert bound.keys() == expected(CFG).keys()


def test_untied_head_is_read_and_must_be_there() -> None:
    untied = CFG.replace(tie_embeddings=False)
    theirs = theirs_of(random_tensors(CFG))
    assert "head: missing, it holds head.w" in problems_of(theirs, untied)
    theirs["head"] = stored(np.arange(128, dtype=np.float32).reshape(16, 8))
    bound = bind(FUSED, untied, theirs, "test")
    np.testing.assert_array_equal(bound["head.w"].read(), theirs["head"].read().T)


def test_alternatives_take_the_row_whose_tensors_are_there() -> None:
    ours = random_tensors(CFG)
    apart = Table(
        tuple(row(f"{A}{p}", f"h.{{i}}.{p}", PRODUCT) for p in "qkv") + FUSED.rows, FUSED.ignored
    )
    fused, single = theirs_of(ours), theirs_of(ours, apart)
    assert "h.0.qkv" in fused and "h.0.qkv" not in single and "h.0.q" in single
    for theirs in (fused, single):
        bound = bind(apart, CFG, theirs, "test")
        np.testing.assert_array_equal(
            bound["layers.1.attn.v"].read(), ours["layers.1.attn.v"].read()
        )


def test_a_tensor_that_no_row_names_is_an_error() -> None:
    table = Table(FUSED.rows[1:], FUSED.ignored)
    theirs = theirs_of(random_tensors(CFG))
    with pytest.raises(FormatError, match="wte: .* has no place") as caught:
        bind(table, CFG, theirs, "test")
    assert "embed.table: no row of the table says where it is" in str(caught.value)


def test_dropped_rows_come_back_as_zeros() -> None:
    theirs = Same(dropped=2).give(0, [stored(np.ones((3, 2), np.float32))])
    np.testing.assert_array_equal(theirs[:, 0], [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(
        Same(dropped=2).take(0, [stored(theirs)], [(3, 2)]), np.ones((3, 2), np.float32)
    )


def test_pairs_of_neighbours_become_two_halves() -> None:
    theirs = np.arange(8, dtype=np.float32)[:, None]  # two heads of four rows
    ours = Product(is_paired=True).take(0, [stored(theirs)], [(1, 2, 4)])
    np.testing.assert_array_equal(ours[0], [[0, 2, 1, 3], [4, 6, 5, 7]])
