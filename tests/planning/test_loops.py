"""How often a loop turns, where only its counter tells."""

import pytest
from planning_programs import FSDP

from astrollava_jax.planning.instructions import ENTRY, computations, rounds

LOOP = """\
HloModule jit_step

%body (t: (s32[], s32[])) -> (s32[], s32[]) {
  %t = (s32[], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %copy.1 = s32[] copy(%i)
  %step = s32[] constant(STEP)
  %next = s32[] add(%copy.1, %step)
  %n = s32[] get-tuple-element(%t), index=1
  ROOT %result = (s32[], s32[]) tuple(%next, %n)
}

%condition (u: (s32[], s32[])) -> pred[] {
  %u = (s32[], s32[]) parameter(0)
  %j = s32[] get-tuple-element(%u), index=0
  %limit = s32[] constant(LIMIT)
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (n: s32[]) -> (s32[], s32[]) {
  %n = s32[] parameter(0)
  %zero = s32[] constant(START)
  %begin = s32[] copy(%zero)
  %tuple.1 = (s32[], s32[]) tuple(%begin, %n)
  ROOT %loop = (s32[], s32[]) while(%tuple.1), condition=%condition, body=%body
}
"""


def turns(text: str) -> int | None:
    bodies = computations(text)
    return rounds(bodies[ENTRY][-1], bodies[ENTRY], bodies)


def loop(start: int, limit: int, step: int) -> str:
    counted = LOOP.replace("START", str(start)).replace("LIMIT", str(limit))
    return counted.replace("STEP", str(step))


@pytest.mark.parametrize(
    ("start", "limit", "step"), [(0, 32, 1), (0, 8, 2), (1, 8, 2), (0, 7, 2), (5, 5, 1), (9, 5, 1)]
)
def test_a_loop_turns_as_often_as_the_same_range_of_python(start, limit, step):
    assert turns(loop(start, limit, step)) == len(range(start, limit, step))


def test_what_the_compiler_says_goes_before_what_the_counter_does():
    said = loop(0, 32, 1).replace(
        "body=%body\n", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}\n'
    )
    assert turns(said) == 7


@pytest.mark.parametrize(
    ("known", "unknown"),
    [
        ("%limit = s32[] constant(9)", "%limit = s32[] get-tuple-element(%u), index=1"),
        ("%zero = s32[] constant(0)", "%zero = s32[] add(%n, %n)"),
        ("%step = s32[] constant(1)", "%step = s32[] get-tuple-element(%t), index=1"),
        ("add(%copy.1, %step)", "multiply(%copy.1, %step)"),
        ("add(%copy.1, %step)", "add(%copy.1, %i)"),
        ("add(%copy.1, %step)", "add(%step, %step)"),
        ("direction=LT", "direction=NE"),
        ("tuple(%next, %n)", "tuple(%n, %next)"),
        ("body=%body", "body=%nowhere"),
        ("condition=%condition", "condition=%nowhere"),
    ],
)
def test_a_loop_whose_end_does_not_stand_there_has_no_count(known, unknown):
    assert known in loop(0, 9, 1)
    assert turns(loop(0, 9, 1).replace(known, unknown)) is None


def test_a_real_program_walks_its_layers_forth_and_back():
    bodies = computations(FSDP)
    loops = [one for one in bodies[ENTRY] if one.opcode == "while"]
    assert [rounds(one, bodies[ENTRY], bodies) for one in loops] == [4, 4]
