"""Readers of a compiled program's text, on a few lines of it each."""

import math

import pytest

from llmasos_jax.plan.hlo.groups import Devices, members, routes
from llmasos_jax.plan.hlo.live import live_at_peak
from llmasos_jax.plan.hlo.program import read_program
from llmasos_jax.plan.hlo.text import arrays
from llmasos_jax.plan.memory_report import read_out_of_memory

LOOP = """
HloModule m, is_scheduled=true, num_partitions=8
%cond (p: (s32[], f32[8,16], f32[5,16,16])) -> pred[] {
  %p = (s32[], f32[8,16]{1,0}, f32[5,16,16]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(5)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}
%slice (a: f32[5,16,16], i: s32[]) -> f32[1,16,16] {
  %a = f32[5,16,16]{2,1,0} parameter(0)
  %i2 = s32[] parameter(1)
  %z = s32[] constant(0)
  ROOT %s = f32[1,16,16]{2,1,0} dynamic-slice(%a, %i2, %z, %z), dynamic_slice_sizes={1,16,16}
}
%body (p: (s32[], f32[8,16], f32[5,16,16])) -> (s32[], f32[8,16], f32[5,16,16]) {
  %p = (s32[], f32[8,16]{1,0}, f32[5,16,16]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%p), index=1
  %w = f32[5,16,16]{2,1,0} get-tuple-element(%p), index=2
  %one = s32[] constant(1)
  %w1 = f32[1,16,16]{2,1,0} fusion(%w, %i), kind=kLoop, calls=%slice
  %w2 = f32[16,16]{1,0} bitcast(%w1)
  %y = f32[8,16]{1,0} dot(%x, %w2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %next = s32[] add(%i, %one)
  ROOT %t = (s32[], f32[8,16]{1,0}, f32[5,16,16]{2,1,0}) tuple(%next, %y, %w)
}
ENTRY %main (x: f32[8,16], w: f32[5,16,16]) -> f32[8,16] {
  %x = f32[8,16]{1,0} parameter(0)
  %w = f32[5,16,16]{2,1,0} parameter(1)
  %zero = s32[] constant(0)
  %init = (s32[], f32[8,16]{1,0}, f32[5,16,16]{2,1,0}) tuple(%zero, %x, %w)
  %loop = (s32[], f32[8,16]{1,0}, f32[5,16,16]{2,1,0}) while(%init), condition=%cond, body=%body
  %out = f32[8,16]{1,0} get-tuple-element(%loop), index=1
  ROOT %r = f32[8,16]{1,0} all-reduce(%out), channel_id=1, GROUPS, to_apply=%add
}
"""


def entry(*lines, others=""):
    body = [f"  {'ROOT ' if i == len(lines) - 1 else ''}{line}" for i, line in enumerate(lines)]
    return "\n".join([others, "ENTRY %main (a: f32[1]) -> f32[1] {", *body, "}"])


def test_a_loop_multiplies_what_is_in_it():
    program = read_program(LOOP.replace("GROUPS", "replica_groups={{0,1,2,3},{4,5,6,7}}"))
    assert program.flops == 5 * 2 * 8 * 16 * 16
    assert program.endless == program.branches == program.unread == ()
    # A turn reads and writes a layer's weights (1 KB of the 5), reads them again with its rows for
    # the product, writes rows, and counts; then the rows are reduced.
    turn = 2 * 1024 + 4 + (512 + 1024 + 512) + 3 * 4
    assert program.hbm_bytes == 5 * turn + 2 * 512


@pytest.mark.parametrize(
    ("groups", "axes", "ways"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", ("fsdp",), 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ("data",), 2),
        ("replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}", ("fsdp",), 4),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", ("data",), 2),
        ("replica_groups={}", ("data", "fsdp"), 8),
    ],
)
def test_collectives_know_their_mesh_axes(groups, axes, ways):
    devices = Devices({"data": 2, "fsdp": 4}, slices=(0,) * 4 + (1,) * 4)
    (found,) = read_program(LOOP.replace("GROUPS", groups), devices).collectives
    assert (found.axes, found.ways) == (axes, ways)
    assert found.slices == (2 if "data" in axes else 1)
    assert found.link_bytes == 2 * 512 * (ways - 1) / ways
    # A half of the array is in the other slice; a sum sends it twice, its members share that.
    assert found.network_bytes == (2 * 512 * 1 / ways if "data" in axes else 0)


def test_groups_that_cannot_be_read_are_said_and_not_dropped():
    program = read_program(LOOP.replace("GROUPS", "replica_groups=<new>"))
    assert [c.ways for c in program.collectives] == [8]
    assert len(program.unread) == 1 and "<new>" in program.unread[0]


def test_group_forms():
    assert members("replica_groups=[2,4]<=[8]", 8) == (0, 1, 2, 3)
    assert members("replica_groups=mesh['a'=2,'b'=2] {'zz'}", 8) is None
    assert routes("source_target_pairs={{0,4},{4,0}}, channel_id=2") == ((0, 4), (4, 0))


def test_what_has_no_estimate_of_cycles_is_said_and_not_added():
    config = 'backend_config={"estimated_cycles":"%d"}'
    program = read_program(
        f"""ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8] parameter(0)
  %a = f32[8] negate(%x), {config % 7}
  ROOT %b = f32[8] negate(%a), {config % (2**64 - 1)}
}}"""
    )
    assert (program.cycles, program.uncosted) == (7, ("b",))


def test_of_a_conditional_the_heaviest_branch_counts():
    branch = """
%{0} (a: f32[4,4]) -> f32[4,{1}] {{
  %a = f32[4,4]{{1,0}} parameter(0)
  %b = f32[4,{1}]{{1,0}} constant(0)
  ROOT %d = f32[4,{1}]{{1,0}} dot(%a, %b), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
}}
"""
    text = entry(
        "%a = f32[4,4]{1,0} parameter(0)",
        "%c = f32[4,4]{1,0} conditional(%p, %a, %a), branch_computations={%few, %many}",
        others=branch.format("few", 2) + branch.format("many", 64),
    )
    program = read_program(text)
    assert program.flops == 2 * 4 * 4 * 64
    assert program.branches == ("c",)
    two_ways = text.replace(
        "branch_computations={%few, %many}", "true_computation=%many, false_computation=%few"
    )
    assert read_program(two_ways).flops == program.flops


def test_convolutions_do_not_multiply_padding():
    text = entry(
        "%x = bf16[2,8,16]{2,1,0} parameter(0)",
        "%k = bf16[3,16,32]{2,1,0} parameter(1)",
        "%y = bf16[2,8,32]{2,1,0} convolution(%x, %k), window={size=3 pad=1_1}, "
        "dim_labels=b0f_0io->b0f",
    )
    # Of 8 places the two at the ends see two numbers, the others three.
    assert read_program(text).flops == 2 * 2 * 16 * 32 * (6 * 3 + 2 * 2)


def test_dilated_convolutions():
    text = entry(
        "%x = bf16[1,4,8]{2,1,0} parameter(0)",
        "%k = bf16[2,8,8]{2,1,0} parameter(1)",
        "%y = bf16[1,6,8]{2,1,0} convolution(%x, %k), window={size=2 lhs_dilate=2}, "
        "dim_labels=b0f_0io->b0f",
    )
    pairs = sum(1 for o in range(6) for k in range(2) if (o + k) <= 6 and (o + k) % 2 == 0)
    assert read_program(text).flops == 2 * 8 * 8 * pairs


def test_products_of_eight_bits_are_told_apart():
    text = entry(
        "%x = s8[4,4]{1,0} parameter(0)",
        "%y = s32[4,4]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
    )
    program = read_program(text)
    assert program.narrow_flops == program.flops == 2 * 4**3


def test_memory_on_the_chip_is_not_hbm_traffic():
    text = entry(
        "%x = f32[256]{0:T(256)} parameter(0)",
        "%c = (f32[256]{0:T(256)S(1)}, f32[256]{0:T(256)}, u32[]{:S(2)}) copy-start(%x)",
        "%d = f32[256]{0:T(256)S(1)} copy-done(%c)",
        "%y = f32[256]{0:T(256)} negate(%d)",
    )
    read, written = 1024, 1024
    assert read_program(text).hbm_bytes == read + written


def test_sizes_with_and_without_padding():
    padded, plain, narrow = arrays("(f32[3,100]{1,0:T(8,128)}, bf16[2,3]{1,0}, s4[3]{0})")
    assert (padded.num_bytes, padded.padded_bytes) == (1200, 4 * 8 * 128)
    assert plain.padded_bytes == 12 and narrow.num_bytes == 2


def test_a_slot_written_in_place_is_no_new_array():
    big, small = 1 << 20, 1 << 16
    text = entry(
        f"%x = f32[{big}]{{0}} parameter(0)",
        "%i = s32[] parameter(1)",
        f"%row = f32[{small}]{{0}} broadcast(%i), dimensions={{}}",
        f"%y = f32[{big}]{{0}} dynamic-update-slice(%x, %row, %i)",
    )
    found = live_at_peak(text)
    assert sum(buffer.num_bytes for buffer in found) == 4 * (big + small)
    assert [buffer.kind for buffer in found] == ["argument", "temporary"]


def test_what_a_loop_needs_inside_is_alive_during_it():
    wide = LOOP.replace("f32[8,16]", "f32[65536,16]").replace("GROUPS", "replica_groups={{0,1}}")
    found = live_at_peak(wide)
    row = 4 * 65536 * 16
    # What the loop is given, and the rows that a turn makes beside them.
    assert [b.num_bytes for b in found] == [row, row]
    assert math.isclose(found[0].num_bytes / 2**20, 4)


EARLY = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
    "(32.39G) exceeds available HBM (15.75G)."
)
LATE = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory \
space hbm. Used 36.00G of 31.24G hbm. Exceeded hbm capacity by 4.76G.

Total hbm usage >= 36.26G:
    reserved        258.00M
    program          36.00G

  Largest program allocations in hbm:

  1. Size: 4.00G
     Operator: op_name="jit(_step)/while/body/mul" source_file="x.py" source_line=1
     Shape: bf16[32,8,8192,1024]{3,2,1,0:T(8,128)(2,1)}
     Unpadded size: 4.00G
     XLA label: fusion.1 = fusion(param.1)
     Allocation type: HLO temp
     ==========================

  2. Size: 512.00M
     Shape: f32[128,1024,1024]{2,1,0}
     Unpadded size: 512.00M
     XLA label: copy.7
     Allocation type: HLO temp
"""


def test_out_of_memory_is_read():
    early, late = read_out_of_memory(EARLY), read_out_of_memory(LATE)
    assert early is not None and late is not None
    assert early.needed == round(32.39 * 2**30) and early.what == "temporaries"
    assert late.available == round(31.24 * 2**30) and late.what == "the program"
    assert [b.num_bytes for b in late.buffers] == [4 << 30, 512 << 20]
    assert late.buffers[0].source == "jit(_step)/while/body/mul"
    assert late.buffers[0].shape == "bf16[32,8,8192,1024]"
    assert read_out_of_memory("INVALID_ARGUMENT: no") is None
