"""Bytes that instructions of a compiled program read from HBM and write to it."""

import jax
import jax.numpy as jnp
import pytest

from llmasos_jax.plan.hlo.program import read_program


def entry(*lines, others=""):
    body = [f"  {'ROOT ' if i == len(lines) - 1 else ''}{line}" for i, line in enumerate(lines)]
    return "\n".join([others, "ENTRY %main (a: f32[1]) -> f32[1] {", *body, "}"])


def computation(name, *lines):
    return entry(*lines).replace("ENTRY %main", f"%{name}")


STACK = "%a = f32[16,64,32]{2,1,0} parameter(0)"
LAYER = 4 * 64 * 32


def test_a_product_added_to_one_matrix_of_a_stack_reads_and_writes_that_matrix():
    # The gradient of experts' weights, tile by tile: the form of Mixtral's program.
    tile = computation(
        "tile",
        "%rows = bf16[82,8,64]{2,1,0} parameter(0)",
        "%n = s32[] parameter(1)",
        "%one = bf16[1,8,64]{2,1,0} dynamic-slice(%rows, %n), dynamic_slice_sizes={1,8,64}",
        "%two = bf16[8,64]{1,0} bitcast(%one)",
    )
    fused = computation(
        "fused",
        STACK,
        "%i = s32[] parameter(1)",
        "%ok = pred[] parameter(2)",
        "%x = bf16[82,8,64]{2,1,0} parameter(3)",
        "%y = bf16[8,32]{1,0} parameter(4)",
        "%n = s32[] parameter(5)",
        "%oks = pred[1,64,32]{2,1,0} broadcast(%ok), dimensions={}",
        "%was = f32[1,64,32]{2,1,0} dynamic-slice(%a, %i), dynamic_slice_sizes={1,64,32}",
        "%part = bf16[8,64]{1,0} fusion(%x, %n), kind=kLoop, calls=%tile",
        "%p = f32[64,32]{1,0} convolution(%part, %y), dim_labels=fb_io->bf",
        "%q = f32[1,64,32]{2,1,0} bitcast(%p)",
        "%sum = f32[1,64,32]{2,1,0} add(%was, %q)",
        "%is = f32[1,64,32]{2,1,0} select(%oks, %sum, %was)",
        "%out = f32[16,64,32]{2,1,0} dynamic-update-slice(%a, %is, %i)",
    )
    text = entry(
        STACK,
        "%i = s32[] parameter(1)",
        "%ok = pred[] parameter(2)",
        "%x = bf16[82,8,64]{2,1,0} parameter(3)",
        "%y = bf16[8,32]{1,0} parameter(4)",
        "%n = s32[] parameter(5)",
        "%f = f32[16,64,32]{2,1,0} fusion(%a, %i, %ok, %x, %y, %n), kind=kOutput, calls=%fused",
        others=tile + fused,
    )
    scalars = 4 + 1 + 4
    assert read_program(text).hbm_bytes == 2 * LAYER + 2 * 8 * 64 + 2 * 8 * 32 + scalars


@pytest.mark.parametrize(
    ("lines", "num_bytes"),
    [
        # A slice is read, changed and written.
        (
            (
                "%b = f32[1,64,32]{2,1,0} dynamic-slice(%a, %i), dynamic_slice_sizes={1,64,32}",
                "%c = f32[64,32]{1,0} bitcast(%b)",
                "%d = f32[64,32]{1,0} multiply(%c, %c)",
            ),
            2 * LAYER,
        ),
        # What is sliced is worked out for the slice alone.
        (
            (
                "%b = bf16[16,64,32]{2,1,0} convert(%a)",
                "%c = bf16[1,64,32]{2,1,0} slice(%b), slice={[0:1],[0:64],[0:32]}",
            ),
            LAYER + LAYER // 2,
        ),
        # Two slices of it are two; all of it is all.
        (
            (
                "%b = f32[1,64,32]{2,1,0} slice(%a), slice={[0:1],[0:64],[0:32]}",
                "%c = f32[1,64,32]{2,1,0} slice(%a), slice={[1:2],[0:64],[0:32]}",
                "%d = f32[1,64,32]{2,1,0} add(%b, %c)",
            ),
            3 * LAYER,
        ),
        (("%b = f32[64,32]{1,0} reduce(%a, %i), dimensions={0}, to_apply=%add",), 17 * LAYER),
        # A slot in its own place is written; in another array all is.
        (
            (
                "%b = f32[1,64,32]{2,1,0} broadcast(%i), dimensions={}",
                "%c = f32[16,64,32]{2,1,0} dynamic-update-slice(%a, %b, %i)",
            ),
            LAYER,
        ),
        (
            (
                "%b = f32[1,64,32]{2,1,0} broadcast(%i), dimensions={}",
                "%z = f32[16,64,32]{2,1,0} negate(%a)",
                "%c = f32[16,64,32]{2,1,0} dynamic-update-slice(%z, %b, %i)",
            ),
            16 * LAYER + 15 * LAYER,
        ),
        # The same where it has another name on the way.
        (
            (
                "%b = f32[1,64,32]{2,1,0} broadcast(%i), dimensions={}",
                "%n = f32[16,64,32]{2,1,0} fusion(%a), calls=%copy, "
                "output_to_operand_aliasing={{}: (0, {})}",
                "%c = f32[16,64,32]{2,1,0} dynamic-update-slice(%n, %b, %i)",
            ),
            LAYER,
        ),
        # Only given on, as an asynchronous collective's buffer is: neither read nor written.
        (
            (
                "%b = f32[64,32]{1,0} broadcast(%i), dimensions={}",
                "%c = (f32[64,32]{1,0}, f32[16,64,32]{2,1,0}) tuple(%b, %a)",
            ),
            LAYER,
        ),
    ],
)
def test_a_fusion_reads_what_it_wants_and_writes_what_is_new(lines, num_bytes):
    last = lines[-1].split(" = ")[1].split(" ")
    kind = lines[-1].split(" = ")[1].split(") tuple")[0] + ")" if "tuple" in lines[-1] else last[0]
    text = entry(
        STACK,
        "%i = f32[] parameter(1)",
        f"%f = {kind} fusion(%a, %i), kind=kLoop, calls=%fused",
        others=computation("fused", STACK, "%i = f32[] parameter(1)", *lines),
    )
    wants_the_scalar = any("%i" in line for line in lines)
    assert read_program(text).hbm_bytes == num_bytes + 4 * wants_the_scalar


def test_a_gather_reads_its_rows_as_often_as_they_are_named():
    table, ids = "%t = f32[100,32] parameter(0)", "%n = s32[500] parameter(1)"
    gather = "%g = f32[500,32] gather(%t, %n), offset_dims={1}, slice_sizes={1,32}"
    rows, told = 500 * 32 * 4, 500 * 4
    assert read_program(entry(table, ids, gather)).hbm_bytes == 2 * rows + told
    text = entry(
        table,
        ids,
        "%f = f32[500,32] fusion(%t, %n), kind=kCustom, calls=%fused",
        others=computation("fused", table, ids, gather),
    )
    assert read_program(text).hbm_bytes == 2 * rows + told


def test_a_scatter_writes_its_rows_and_reads_them_where_it_adds():
    table = "%t = f32[1000,32] parameter(0)"
    given = (table, "%n = s32[50] parameter(1)", "%u = f32[50,32] parameter(2)")
    scatter = "%s = f32[1000,32] scatter(%t, %n, %u), to_apply=%how"
    fusion = "%f = f32[1000,32] fusion(%t, %n, %u), kind=kCustom, calls=%fused"
    plus = "%c = f32[] add(%a, %b)"
    rows, told = 50 * 32 * 4, 50 * 4
    for root, times in ((plus, 3), ("%b = f32[] parameter(1)", 2)):
        first = ["%a = f32[] parameter(0)", *(["%b = f32[] parameter(1)"] * (root == plus))]
        others = computation("how", *first, root) + computation("fused", *given, scatter)
        assert read_program(entry(*given, fusion, others=others)).hbm_bytes == times * rows + told
        assert read_program(entry(*given, scatter, others=others)).hbm_bytes == times * rows + told


def test_an_asynchronous_collective_is_read_and_written_once():
    start = computation(
        "start",
        "%x = bf16[4,64]{1,0} parameter(0)",
        "%g = bf16[8,64]{1,0} all-gather(%x), replica_groups={{0,1}}, dimensions={0}",
        "%c = (bf16[4,64]{1,0}, bf16[8,64]{1,0}, u32[]{:S(2)}) custom-call(%g), "
        'custom_call_target="AsyncCollectiveStart"',
    )
    beside = computation(
        "async_collective_fusion.1",
        "%x = bf16[4,64]{1,0} parameter(0)",
        "%y = bf16[8,64]{1,0} parameter(1)",
        "%g = bf16[8,64]{1,0} all-gather(%x), replica_groups={{0,1}}, dimensions={0}",
        "%a = f32[128]{0} parameter(2)",
        "%n = f32[128]{0} negate(%a)",
        "%c = (f32[128]{0}, bf16[4,64]{1,0}, bf16[8,64]{1,0}, bf16[8,64]{1,0}) "
        "tuple(%n, %x, %g, %y)",
    )
    end = computation(
        "end",
        "%x = bf16[4,64]{1,0} parameter(0)",
        "%y = bf16[8,64]{1,0} parameter(1)",
        "%g = bf16[8,64]{1,0} all-gather(%x), replica_groups={{0,1}}, dimensions={0}",
        '%c = bf16[8,64]{1,0} custom-call(%x, %y, %g), custom_call_target="AsyncCollectiveDone"',
    )
    text = entry(
        "%x = bf16[4,64]{1,0} parameter(0)",
        "%a = f32[128]{0} parameter(1)",
        "%s = (bf16[4,64]{1,0}, bf16[8,64]{1,0}, u32[]{:S(2)}) fusion(%x), calls=%start",
        "%y = bf16[8,64]{1,0} get-tuple-element(%s), index=1",
        "%b = (f32[128]{0}, bf16[4,64]{1,0}, bf16[8,64]{1,0}, bf16[8,64]{1,0}) "
        "fusion(%x, %y, %a), calls=%async_collective_fusion.1",
        "%z = bf16[8,64]{1,0} get-tuple-element(%b), index=3",
        "%e = bf16[8,64]{1,0} fusion(%x, %z), calls=%end",
        others=start + beside + end,
    )
    program = read_program(text)
    gather, beside_it = 4 * 64 * 2 + 8 * 64 * 2, 2 * 128 * 4
    assert program.hbm_bytes == gather + beside_it
    assert [c.runs for c in program.collectives] == [1]


def test_a_slice_fetched_onto_the_chip_reads_itself_alone():
    text = entry(
        "%x = bf16[4096,64]{1,0:T(8,128)} parameter(0)",
        "%s = ((bf16[4096,64]{1,0:T(8,128)}), bf16[1024,64]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) "
        "slice-start(%x), slice={[0:1024], [0:64]}",
        "%d = bf16[1024,64]{1,0:T(8,128)S(1)} slice-done(%s)",
        '%c = bf16[1024,64]{1,0:T(8,128)S(1)} custom-call(%d), custom_call_target="ConcatBitcast"',
        '%b = bf16[4096,64]{1,0} custom-call(), custom_call_target="AllocateBuffer"',
    )
    assert read_program(text).hbm_bytes == 1024 * 64 * 2


def test_work_that_another_core_is_called_for_is_counted_where_it_is():
    inner = computation("called", "%a = f32[128]{0} parameter(0)", "%b = f32[128]{0} negate(%a)")
    text = entry(
        "%a = f32[128]{0} parameter(0)",
        "%s = ((f32[128]{0}), f32[128]{0}, u32[]{:S(8)}) call-start(%a), to_apply=%called",
        "%d = f32[128]{0} call-done(%s)",
        others=inner,
    )
    assert read_program(text).hbm_bytes == 2 * 512


@pytest.mark.parametrize("sentinel", [2**63 - 1, 2**64 - 1])
def test_both_words_for_no_estimate_are_known(sentinel):
    text = entry(
        "%a = f32[8] parameter(0)",
        f'%b = f32[8] negate(%a), backend_config={{"estimated_cycles":"{sentinel}"}}',
    )
    program = read_program(text)
    assert (program.cycles, program.uncosted) == (0, ("b",))


def _mlp(x, w, v):
    return jax.nn.gelu(x @ w) @ v


def _softmax_of_logits(x, w):
    return jax.nn.log_softmax(x @ w).mean()


def _write_slot(a, new, i):
    return jax.lax.dynamic_update_slice(a, new * 2, (i, 0, 0))


def _read_slot(a, i):
    return jax.lax.dynamic_index_in_dim(a, i, 0, keepdims=False) * 3


def _add_product_to_slot(a, x, y, i):
    return a.at[i].add(x.T @ y)


def _floats(*shapes):
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


INDEX = jax.ShapeDtypeStruct((), jnp.int32)


@pytest.mark.parametrize(
    ("fn", "args", "donated"),
    [
        (_mlp, _floats((256, 64), (64, 512), (512, 64)), ()),
        (_softmax_of_logits, _floats((64, 128), (128, 1024)), ()),
        (_write_slot, [*_floats((16, 64, 128), (1, 64, 128)), INDEX], (0,)),
        (_read_slot, [*_floats((16, 64, 128)), INDEX], ()),
        (_add_product_to_slot, [*_floats((8, 64, 128), (32, 64), (32, 128)), INDEX], (0,)),
    ],
)
def test_without_loops_and_gathers_it_is_what_xla_itself_says(fn, args, donated):
    compiled = jax.jit(fn, donate_argnums=donated).lower(*args).compile()
    said, text = compiled.cost_analysis(), compiled.as_text()
    assert said is not None and text is not None
    said = said["bytes accessed"]
    assert read_program(text).hbm_bytes == pytest.approx(said, rel=1e-4)
    # A slot of the array is far from all of it.
    if donated:
        assert said < 4 * args[0].size
