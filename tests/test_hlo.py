"""Collectives of a program: their size, their groups, and how often they run."""

from lightpaff_jax import hlo

TEXT = """\
HloModule jit_step

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%inner_body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %gathered = bf16[16,128]{1,0:T(8,128)(2,1)} all-gather(%p), replica_groups=[4,2]<=[8], dimensions={0}, metadata={op_name="jit(step)/scan/teacher"}
}

%outer_body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %inner = (s32[], f32[8,4]) while(%p), condition=%cond, body=%inner_body, backend_config={"known_trip_count":{"n":"3"}}
}

%cond (p: (s32[], f32[8,4])) -> pred[] {
  ROOT %less = pred[] compare(%p, %p), direction=LT
}

%called (p: f32[8]) -> f32[8] {
  %reduced = (f32[10]{0}, bf16[10]{0}) all-reduce(%p, %p), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

ENTRY %main (a: f32[8,4]) -> f32[8,4] {
  %outer = (s32[], f32[8,4]) while(%a), condition=%cond, body=%outer_body, backend_config={"known_trip_count":{"n":"5"}}
  %one = f32[8] fusion(%a), kind=kCustom, calls=%called
  %begun = (f32[4]{0}, f32[32]{0}) all-gather-start(%a), replica_groups=[1,8]<=[8], dimensions={0}
  %done = f32[32]{0} all-gather-done(%begun)
}
"""


def test_collectives_are_counted_with_the_loops_around_them():
    found = {one.kind + str(one.loops): one for one in hlo.collectives(TEXT)}
    assert set(found) == {'all-gather2', 'all-reduce0', 'all-gather0'}
    looped, begun = found['all-gather2'], found['all-gather0']
    assert (looped.times, looped.bytes, looped.group) == (15, 16 * 128 * 2, 2)
    assert looped.name == 'jit(step)/scan/teacher'
    assert (begun.times, begun.bytes, begun.group) == (1, 128, 8)
    reduced = found['all-reduce0']
    assert (reduced.times, reduced.bytes, reduced.group) == (1, 40 + 20, 4)


def test_loops_are_counted():
    assert hlo.loops(TEXT) == 2
