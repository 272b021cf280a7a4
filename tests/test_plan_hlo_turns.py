"""How often a loop of a compiled program turns."""

import pytest

from llmasos_jax.plan.hlo.program import read_program

# A product whose weights, in eighths, go around a ring of eight both ways: two of them a turn. The
# form is that of MaxText's program for v5e:2x4, the counter's copy and its place in the tuple too.
WINDOWED = """
HloModule m, is_scheduled=true, num_partitions=8
%cond (p: (bf16[16,64], bf16[8,64], u32[], u32[])) -> pred[] {
  %end = u32[]{:T(128)} constant(END)
  %p = (bf16[16,64]{1,0}, bf16[8,64]{1,0}, u32[], u32[]) parameter(0)
  %at = u32[]{:T(128)} get-tuple-element(%p), index=2
  ROOT %more = pred[] COMPARE
}
%product (x: bf16[16,8], w: bf16[8,64]) -> bf16[16,64] {
  %x = bf16[16,8]{1,0} parameter(0)
  %w = bf16[8,64]{1,0} parameter(1)
  ROOT %y = bf16[16,64]{1,0} convolution(%x, %w), dim_labels=bf_io->bf
}
%sum (a: u32[]) -> u32[] {
  %a = u32[] parameter(0)
  %b = u32[] constant(2)
  ROOT %c = u32[] add(%b, %a)
}
%body (p: (bf16[16,64], bf16[8,64], u32[], u32[])) -> (bf16[16,64], bf16[8,64], u32[], u32[]) {
  %two = u32[] constant(2)
  %p = (bf16[16,64]{1,0}, bf16[8,64]{1,0}, u32[], u32[]) parameter(0)
  %x = bf16[16,64]{1,0} get-tuple-element(%p), index=0
  %w = bf16[8,64]{1,0} get-tuple-element(%p), index=1
  %at = u32[] get-tuple-element(%p), index=2
  %kept = u32[] get-tuple-element(%p), index=3
  %here = u32[]{S(6)} copy(%at)
  %part = bf16[16,8]{1,0} dynamic-slice(%x, %kept, %here), dynamic_slice_sizes={16,8}
  %y = bf16[16,64]{1,0} fusion(%part, %w), kind=kOutput, calls=%product, EST
  %next = bf16[8,64]{1,0} collective-permute(%w), source_target_pairs={{0,1},{1,0}}
  %z = bf16[16,64]{1,0} fusion(%part, %next), kind=kOutput, calls=%product, EST
  %then = u32[] STEP
  ROOT %t = (bf16[16,64]{1,0}, bf16[8,64]{1,0}, u32[], u32[]) tuple(%z, %next, %then, %kept)
}
ENTRY %main (x: bf16[16,64], w: bf16[8,64]) -> bf16[16,64] {
  %x = bf16[16,64]{1,0} parameter(0)
  %w = bf16[8,64]{1,0} parameter(1)
  %first = u32[] constant(START)
  %zero = u32[] copy(%first)
  %init = (bf16[16,64]{1,0}, bf16[8,64]{1,0}, u32[], u32[]) tuple(%x, %w, %zero, %first)
  %loop = (bf16[16,64], bf16[8,64], u32[], u32[]) while(%init), condition=%cond, body=%body
  ROOT %out = bf16[16,64]{1,0} get-tuple-element(%loop), index=0
}
"""


def windowed(compare, step, start=0, end=8):
    text = WINDOWED.replace("COMPARE", compare).replace("STEP", step)
    text = text.replace("START", str(start)).replace("END", str(end))
    return text.replace("EST", 'backend_config={"estimated_cycles":"10"}')


@pytest.mark.parametrize(
    ("compare", "step", "start", "turns"),
    [
        ("compare(%at, %end), direction=LT", "add(%here, %two)", 0, 4),
        ("compare(%at, %end), direction=LT", "add(%two, %at)", 1, 4),
        ("compare(%at, %end), direction=LE", "add(%at, %two)", 0, 5),
        ("compare(%end, %at), direction=GT", "add(%at, %two)", 4, 2),
        ("compare(%at, %end), direction=NE", "add(%at, %two)", 2, 3),
        ("compare(%at, %end), direction=GT", "subtract(%at, %two)", 13, 3),
        ("compare(%at, %end), direction=LT", "fusion(%at), kind=kLoop, calls=%sum", 0, 4),
        ("compare(%at, %end), direction=LT", "add(%at, %two)", 8, 0),
    ],
)
def test_a_loop_turns_as_its_counter_says(compare, step, start, turns):
    program = read_program(windowed(compare, step, start))
    # In each turn two products with an eighth of the weights, and a permutation of an eighth.
    assert program.flops == turns * 2 * (2 * 16 * 8 * 64)
    assert program.cycles == turns * 2 * 10
    assert program.link_bytes("collective-permute") == turns * 2 * 8 * 64
    assert program.endless == ()


@pytest.mark.parametrize(
    ("compare", "step"),
    [
        ("compare(%at, %end), direction=LT", "multiply(%at, %two)"),
        ("compare(%at, %end), direction=LT", "subtract(%at, %two)"),
        ("compare(%at, %end), direction=LT", "add(%at, %at)"),
        ("compare(%at, %at), direction=LT", "add(%at, %two)"),
        ("not(%at)", "add(%at, %two)"),
    ],
)
def test_a_loop_that_cannot_be_told_counts_once_and_is_said(compare, step):
    program = read_program(windowed(compare, step))
    assert program.endless == ("loop",)
    assert program.flops == 2 * (2 * 16 * 8 * 64)


def test_a_loop_in_a_loop_starts_and_ends_where_the_outer_tuple_says():
    text = """
%in_cond (p: (s32[], s32[])) -> pred[] {
  %p = (s32[], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] get-tuple-element(%p), index=1
  ROOT %r = pred[] compare(%i, %n), direction=LT
}
%in_body (p: (s32[], s32[])) -> (s32[], s32[]) {
  %p = (s32[], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] get-tuple-element(%p), index=1
  %a = f32[4,4]{1,0} constant(0)
  %d = f32[4,4]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %one = s32[] constant(1)
  %j = s32[] add(%i, %one)
  ROOT %t = (s32[], s32[]) tuple(%j, %n)
}
%out_cond (p: (s32[], s32[], s32[])) -> pred[] {
  %p = (s32[], s32[], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %three = s32[] constant(3)
  ROOT %r = pred[] compare(%i, %three), direction=LT
}
%out_body (p: (s32[], s32[], s32[])) -> (s32[], s32[], s32[]) {
  %p = (s32[], s32[], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %from = s32[] get-tuple-element(%p), index=1
  %to = s32[] get-tuple-element(%p), index=2
  %one = s32[] constant(1)
  %j = s32[] add(%i, %one)
  %init = (s32[], s32[]) tuple(%from, %to)
  %inner = (s32[], s32[]) while(%init), condition=%in_cond, body=%in_body
  ROOT %t = (s32[], s32[], s32[]) tuple(%j, %from, KEPT)
}
ENTRY %main (x: s32[]) -> s32[] {
  %zero = s32[] constant(0)
  %two = s32[] constant(2)
  %seven = s32[] constant(7)
  %init = (s32[], s32[], s32[]) tuple(%zero, %two, %seven)
  ROOT %outer = (s32[], s32[], s32[]) while(%init), condition=%out_cond, body=%out_body
}
"""
    program = read_program(text.replace("KEPT", "%to"))
    assert (program.flops, program.endless) == (3 * 5 * 2 * 4**3, ())
    # Where a turn of the outer loop changes the end of the inner one, nobody knows.
    program = read_program(text.replace("KEPT", "%j"))
    assert (program.flops, program.endless) == (3 * 2 * 4**3, ("inner",))


def test_the_compilers_own_word_comes_first():
    text = windowed("compare(%at, %end), direction=LT", "add(%at, %two)").replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'
    )
    assert read_program(text).flops == 7 * 2 * (2 * 16 * 8 * 64)
