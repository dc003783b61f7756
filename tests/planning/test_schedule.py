"""The modelled time of programs whose times can be added up by hand."""

import re
from random import Random

import pytest
from planning_programs import CHIP, FSDP, KB, SPLASH, US, computation, program, work

from astrollava_jax.planning.instructions import computations
from astrollava_jax.planning.schedule import Modelled, modelled
from astrollava_jax.planning.topologies import CHIPS

RING = 1e9
"""Bytes per second: a kB takes a microsecond."""

GATHER = f"%begin = ({KB}, s8[4000]{{0}}) all-gather-start(%a), replica_groups={{}}"
GATHERED = "%end = s8[4000]{0} all-gather-done(%begin)"
NOTHING = Modelled(0.0, 0.0, {}, 0.0, {})

GATHER_US = 3 + 3
"""4 kB of which a chip lacks three quarters, and three hops."""

MATMUL = (
    "%fusion = bf16[8192,8192]{1,0} fusion(%a, %a), kind=kOutput, calls=%fused, "
    'backend_config={"window_config":{"estimated_cycles":"CYCLES","iteration_bounds":["8"]}}'
)


def replay(*lines: str, before: str = "") -> Modelled:
    return modelled(program(*lines, before=before), CHIP, RING)


@pytest.mark.parametrize(
    ("chip", "cycles", "share"), [("v5e", 9557312, 0.876), ("v6e", 2977840, 0.704)]
)
def test_one_large_product_reaches_the_share_of_the_peak_that_the_compiler_gives_it(
    chip, cycles, share
):
    text = program(MATMUL.replace("CYCLES", str(cycles)))
    step = modelled(text, CHIPS[chip])
    assert 2 * 8192**3 / CHIPS[chip].bf16_flops / step.seconds == pytest.approx(share, abs=5e-4)
    assert step == Modelled(step.seconds, 0.0, {}, 0.0, {})


def test_what_is_computed_in_turn_adds_up_and_a_loop_as_often_as_it_turns():
    body = computation("%body", work(5), work(2, "ROOT %more"))
    turn = 'condition=%c, body=%body, backend_config={"known_trip_count":{"n":"10"}}'
    step = replay(work(30), f"%loop = {KB} while(%a), {turn}", before=body)
    assert step.compute_seconds == pytest.approx((30 + 10 * 7) * US)
    assert step.seconds == step.compute_seconds


def test_a_gather_costs_only_what_the_work_beside_it_does_not_hide():
    step = replay(GATHER, work(2), GATHERED)
    assert step.exposed_seconds == pytest.approx({"all-gather": (GATHER_US - 2) * US})
    assert step.seconds == pytest.approx(GATHER_US * US)
    hidden = replay(GATHER, work(20), GATHERED)
    assert (hidden.seconds, hidden.exposed_seconds) == (pytest.approx(20 * US), {})


def test_a_collective_that_nothing_hides_is_waited_for_to_its_end():
    whole = replay(
        "%g = s8[4000]{0} all-gather(%a), replica_groups={}",
        "%r = s8[4000]{0} all-reduce(%g), replica_groups={{0,1},{2,3}}",
        f"%s = {KB} reduce-scatter(%r), replica_groups=[1,4]<=[4]",
        "%t = s8[4000]{0} all-to-all(%r), replica_groups=mesh['x'=2,'y'=2] {'x','y'}",
    )
    assert whole.exposed_seconds == pytest.approx(
        {
            "all-gather": GATHER_US * US,
            "all-reduce": 2 * (4 / 2 + 1) * US,
            "reduce-scatter": GATHER_US * US,
            "all-to-all": GATHER_US * US,
        }
    )
    assert whole.busy_seconds == 0


def test_collectives_queue_up_and_permutes_that_go_different_ways_do_not():
    def permute(number: int, route: str) -> list[str]:
        start = f"%p{number} = ({KB}, {KB}, u32[], u32[]) collective-permute-start(%a)"
        return [
            f"{start}, channel_id=1, source_target_pairs={{{route}}}",
            f"%q{number} = {KB} collective-permute-done(%p{number})",
        ]

    (one, one_end), (two, two_end) = permute(1, "{0,1},{1,0}"), permute(2, "{1,2},{2,1}")
    again, again_end = permute(3, "{0,1},{1,0}")
    queued = replay(GATHER, GATHER.replace("%begin", "%next"), GATHERED.replace("begin", "next"))
    assert queued.seconds == pytest.approx(2 * GATHER_US * US)
    assert replay(one, two, one_end, two_end).seconds == pytest.approx(2 * US)
    assert replay(one, again, one_end, again_end).seconds == pytest.approx(4 * US)


def test_a_gather_that_goes_on_inside_fusions_ends_where_its_channel_is_awaited():
    def part(target: str) -> str:
        inner = f"%g{target} = s8[4000]{{0}} all-gather(%p), channel_id=7, replica_groups={{}}"
        marker = f'ROOT %m = {KB} custom-call(%g), custom_call_target="AsyncCollective{target}"'
        return computation(f"%{target}", inner, marker)

    beside = computation(
        "%inner",
        "%g = s8[4000]{0} all-gather(%p), channel_id=7, replica_groups={}, "
        'backend_config={"async_collective_fusion_config":{}}',
    )
    step = replay(
        f"%s = ({KB}, u32[]) fusion(%a), kind=kCustom, calls=%Start",
        work(4),
        f"%d = {KB} fusion(%a), kind=kCustom, calls=%Done",
        before=part("Start") + beside + part("Done"),
    )
    assert step.compute_seconds == pytest.approx(4 * US)
    assert step.exposed_seconds == pytest.approx({"all-gather": (GATHER_US - 4) * US})


def test_a_reduction_whose_result_is_cut_at_once_is_only_scattered():
    inner = computation(
        "%all-reduce-scatter.1",
        "%r = s8[4000]{0} all-reduce(%p), channel_id=7, replica_groups={{0,1,2,3}}",
        f"ROOT %s = {KB} dynamic-slice(%r)",
    )
    step = replay(f"%f = {KB} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1", before=inner)
    assert step.exposed_seconds == pytest.approx({"reduce-scatter": GATHER_US * US})


def test_copies_between_memories_queue_up_beside_the_work():
    lines = [
        f"%c = ({KB}, {KB}, u32[]) copy-start(%a)",
        f"%s = (({KB}), s8[500]{{0:S(1)}}, s32[]) slice-start(%a), slice={{[0:500]}}",
        work(1, "%w"),
        f"%d = {KB} copy-done(%c)",
        "%t = s8[500]{0:S(1)} slice-done(%s)",
    ]
    step = replay(*lines)
    assert (step.compute_seconds, step.copy_seconds) == pytest.approx((1 * US, 0.5 * US))


def test_a_branch_costs_as_much_as_its_longest():
    before = computation("%short", work(1)) + computation("%long", work(9))
    choice = f"%c = {KB} conditional(%a, %a, %a), branch_computations={{%short, %long}}"
    assert replay(choice, before=before).seconds == pytest.approx(9 * US)


def test_attention_kernels_cost_the_products_of_each_query_with_what_comes_before_it():
    """2 rows of 4 heads of 64, on v5e: a product is 2 x 8 x 2048 x 2049 / 2 x 64 FLOPs."""
    product = 2 * 8 * sum(range(1, 2049)) * 64
    shares = 2 / 0.47 + 4 / 0.50 + 3 / 0.50
    step = modelled(SPLASH, CHIPS["v5e"])
    assert step.kernel_seconds == pytest.approx(product * shares / 197e12)
    assert step.unknown == {}


@pytest.mark.parametrize(
    ("known", "other"),
    [
        ("splash_mha_dq", "my_own_dq"),
        (
            "%splash_mha_dkv_segmented_no_residuals.1 = (",
            "%splash_mha_dkv.1 = (bf16[2,4,2048,64], ",
        ),
        ("%copy.41 = bf16[2,2,2048,64]", "%copy.41 = bf16[2,2,1024,64]"),
    ],
    ids=["another name", "one kernel for all gradients", "fewer keys than queries"],
)
def test_kernels_that_nobody_has_counted_are_unknown_and_not_free(known, other):
    assert known in SPLASH
    step = modelled(SPLASH.replace(known, other), CHIPS["v5e"])
    assert set(step.unknown) == {"custom-call"}
    assert step.kernel_seconds < modelled(SPLASH, CHIPS["v5e"]).kernel_seconds


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f"%x = {KB} concatenate(%a, %a)", "concatenate"),
        (f'%x = {KB} custom-call(%a), custom_call_target="Whatever"', "custom-call"),
        (f"%x = {KB} fusion(%a), kind=kCustom, calls=%nowhere", "fusion"),
        (f"%x = {KB} while(%a), condition=%nowhere, body=%nowhere", "while"),
        (f"%x = {KB} copy-done(%nowhere)", "copy-done"),
        (f"%x = {KB} all-gather-done(%nowhere)", "all-gather-done"),
        (GATHER, "all-gather-start"),
        (f"%x = {KB} all-gather(%a), replica_groups=anew", "all-gather"),
        (f"%x = {KB} ragged-all-to-all(%a), replica_groups={{}}", "ragged-all-to-all"),
        (work(4 * 3600 * 10**6), "fusion"),
        (f"%x = {KB} send(%a)", "send"),
    ],
)
def test_what_has_no_time_is_counted_and_never_guessed(line, told):
    step = replay(work(3), line)
    assert step.unknown == {told: 1}
    assert step.seconds == pytest.approx(3 * US)


def test_what_goes_to_the_hosts_memory_is_unknown():
    step = replay(
        "%c = (s8[1000]{0:T(8)S(5)}, s8[1000]{0:T(8)}, u32[]) copy-start(%a)",
        "%d = s8[1000]{0:T(8)S(5)} copy-done(%c)",
    )
    assert (step.seconds, step.unknown) == (0, {"copy with the host": 1})


def test_scalars_and_names_for_what_is_there_take_no_time():
    step = replay(
        "%n = s32[] constant(3)", "%m = s32[] add(%n, %n)", f"%b = {KB} bitcast(%a)",
        f'%v = {KB} custom-call(), custom_call_target="AllocateBuffer"',
        f"ROOT %t = ({KB}, s32[]) tuple(%b, %m)",
    )  # fmt: skip
    assert step == NOTHING


@pytest.mark.parametrize("text", ["", "no program at all", "ENTRY %main (a: s8[1]) -> s8[1] {\n"])
def test_a_text_that_is_no_program_has_no_time(text):
    assert modelled(text, CHIP, RING) == NOTHING


def test_a_real_program_takes_the_cycles_of_its_lines_and_its_loops_four_times():
    chip = CHIPS["v5e"]
    step = modelled(FSDP, chip)
    fused = [name for name in computations(FSDP) if "region" not in name and name != "ENTRY"]
    assert all(f"\n{name} (" in FSDP for name in fused)
    cycles = 0
    for part in FSDP.split("\n\n")[1:]:
        turns = 4 if part.startswith("%wide.region") else 1
        cycles += turns * sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', part)))
    assert step.compute_seconds == pytest.approx(cycles / 1.5e9)
    # Forward, again, and backward twice, of three products for each of 1024 positions.
    products = 4 * 3 * 4 * 2 * 1024 * 2048 * 4096
    assert 0.5 < products / chip.bf16_flops / step.compute_seconds < 1


def test_a_real_programs_reductions_are_scattered_and_take_what_the_ring_says():
    """Those of two kernels of each layer, which the compiler makes a little larger."""
    step = modelled(FSDP, CHIPS["v5e"])
    padded = (4 * 520 * 4096 + 4 * 1040 * 2048) * 2
    each = padded * 3 / 4 / 93e9 + 2 * 3e-6
    assert step.exposed_seconds["reduce-scatter"] == pytest.approx(4 * each)
    assert step.unknown == {"concatenate": 2}
    assert step.seconds == pytest.approx(
        step.compute_seconds + sum(step.exposed_seconds.values()) + step.copy_seconds
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_program_in_words_that_nobody_knows_is_no_error(seed):
    """Each of five times with some 60 lines that lack a piece of up to 40 characters."""
    random = Random(seed)
    lines = (FSDP + SPLASH).splitlines()
    for number in random.sample(range(len(lines)), 60):
        start = random.randrange(len(lines[number]) + 1)
        lines[number] = lines[number][:start] + lines[number][start + random.randint(1, 40) :]
    step = modelled("\n".join(lines), CHIPS["v5e"])
    assert step.seconds >= 0
