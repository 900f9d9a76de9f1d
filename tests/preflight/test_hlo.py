"""Collectives of a compiled program: their bytes, groups and number of executions."""

import pytest

from lightpaff_jax.preflight import hlo

TEXT = """\
HloModule jit_step

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%inner_body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %again = bf16[16,128]{1,0} all-gather(%p), channel_id=7, replica_groups=[4,2]<=[8], dimensions={0}
  %gathered = bf16[16,128]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=8, replica_groups=mesh['a'=4,'b'=2] {'b'}, dimensions={0}, metadata={op_name="jit(step)/scan/teacher"}
}

%outer_body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %inner = (s32[], f32[8,4]) while(%p), condition=%cond, body=%inner_body
}

%cond (p: (s32[], f32[8,4])) -> pred[] {
  %bound = s32[]{:T(128)} constant(3)
  ROOT %less = pred[] compare(%p, %bound), direction=LT
}

%called (p: f32[8]) -> f32[8] {
  %reduced = (f32[10]{0}, bf16[10]{0}) all-reduce(%p, %p), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

%all-reduce-scatter.3 (input: f32[8,16]) -> f32[2,16] {
  %input = f32[8,16]{1,0} parameter(0)
  %whole = f32[8,16]{1,0} all-reduce(%input), channel_id=9, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %part = f32[2,16]{1,0} dynamic-slice(%whole, %p), dynamic_slice_sizes={2,16}
}

ENTRY %main (a: f32[8,4]) -> f32[8,4] {
  %outer = (s32[], f32[8,4]) while(%a), condition=%cond, body=%outer_body, backend_config={"known_trip_count":{"n":"5"}}
  %first = bf16[16,128]{1,0} all-gather(%a), channel_id=7, replica_groups=[4,2]<=[8], dimensions={0}
  %one = f32[8] fusion(%a), kind=kCustom, calls=%called
  %scattered = f32[2,16] fusion(%a), kind=kCustom, calls=%all-reduce-scatter.3
  %begun = (f32[4]{0}, f32[32]{0}) all-gather-start(%a), replica_groups=[1,8]<=[8], dimensions={0}
  %done = f32[32]{0} all-gather-done(%begun)
}
"""


def test_collectives_are_counted_with_their_loops():
    collectives = {(c.kind, c.loops, c.group): c for c in hlo.collectives(TEXT)}
    assert set(collectives) == {
        ('all-gather', 0, 2),
        ('all-gather', 0, 8),
        ('all-gather', 2, 2),
        ('all-reduce', 0, 4),
        ('reduce-scatter', 0, 4),
    }
    assert collectives['reduce-scatter', 0, 4].bytes == 2 * 16 * 4
    in_loops, asynchronous = collectives['all-gather', 2, 2], collectives['all-gather', 0, 8]
    assert (in_loops.times, in_loops.bytes) == (15, 16 * 128 * 2)
    assert in_loops.name == 'jit(step)/scan/teacher'
    assert (asynchronous.times, asynchronous.bytes) == (1, 128)
    all_reduce = collectives['all-reduce', 0, 4]
    assert (all_reduce.times, all_reduce.bytes) == (1, 40 + 20)


def test_collective_continued_in_a_loop_is_counted_once():
    (collective,) = (c for c in hlo.collectives(TEXT) if (c.group, c.loops) == (2, 0))
    assert (collective.kind, collective.times) == ('all-gather', 1)


def test_cycles_are_summed_by_scope_with_their_loops():
    def instruction(cycles, name):
        config = f'backend_config={{"estimated_cycles":"{cycles}"}}'
        return f'  %x{cycles} = f32[] fusion(), metadata={{op_name="{name}"}}, {config}\n}}'

    lines = TEXT.split('\n}')
    inner = lines[1] + '\n' + instruction(7, 'jit(step)/teacher/while/body/dot')
    outer = lines[2] + '\n' + instruction(100, 'jit(step)/transpose(jvp(student))/teachers/add')
    text = ''.join([f'{lines[0]}\n}}', inner, outer, '\n}'.join(['', *lines[3:]])])
    assert hlo.cycles(text, ('teacher', 'student')) == {'teacher': 15 * 7, 'student': 5 * 100}
    assert hlo.cycles(text, ('student',)) == {'other': 15 * 7, 'student': 5 * 100}
    assert hlo.cycles(TEXT, ('teacher',)) == {}


def test_loops_are_counted():
    assert hlo.loops(TEXT) == 2


@pytest.mark.parametrize(
    ('shapes', 'operation', 'size'),
    [
        ('(f32[100]{0}, f32[50]{0})', 'all-reduce-start', 600),  # results only
        ('f32[100]{0}', 'all-reduce-start', 400),
        ('((f32[4]{0}, f32[2]{0}), (f32[32]{0}, f32[16]{0}))', 'all-gather-start', 192),
        ('(f32[8]{0}, f32[8]{0}, u32[], u32[])', 'collective-permute-start', 32),
    ],
)
def test_asynchronous_collective_counts_only_its_results(shapes, operation, size):
    text = (
        f'ENTRY %main (a: f32[8]) -> f32[8] {{\n  %x = {shapes} {operation}(%a), channel_id=1\n}}\n'
    )
    assert [collective.bytes for collective in hlo.collectives(text)] == [size]
