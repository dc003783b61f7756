"""Settings ranked by the modelled time of what a compiler makes of them."""

import dataclasses

import pytest
from planning_programs import CHIP, program, work

from astrollava_jax.planning.sweep import HEAD, Compiled, Row, Setting, plain, sweep

LENGTH = 1000
PLAIN = Setting((("fsdp", 4),), 2, "full")
OPTION = Setting((("fsdp", 4),), 2, "full", (("xla_flag", "1"),))
SAVING = Setting((("fsdp", 4),), 2, "dots")
LARGE = Setting((("data", 2), ("fsdp", 2)), 16, "full")

GIB = 2**30
TIMES = {PLAIN: 2000, OPTION: 1500, Setting((("fsdp", 4),), 16, "full"): 12000}
"""Setting -> microseconds of its step; the others do not fit."""


class Compiler:
    """Knows `TIMES`, and what it was asked."""

    def __init__(self):
        self.asked: list[Setting] = []

    def __call__(self, setting: Setting) -> Compiled:
        self.asked.append(setting)
        if setting not in TIMES:
            return Compiled(fits=False, why="Ran out of memory on HBM")
        return Compiled(True, 3 * GIB, program(work(TIMES[setting])))


def ranked(*settings: Setting, compiler=None) -> list[Row]:
    return sweep(settings, compiler or Compiler(), length=LENGTH, chip=CHIP)


def test_the_fastest_per_token_comes_first_and_what_does_not_fit_last():
    many = Setting((("fsdp", 4),), 16, "full")
    rows = ranked(SAVING, PLAIN, OPTION, LARGE, many)
    assert [row.setting for row in rows] == [OPTION, many, PLAIN, SAVING, LARGE]
    assert [row.compiled.fits for row in rows] == [True, True, True, False, False]
    speeds = [row.tokens_per_second for row in rows[:3]]
    assert speeds == pytest.approx([2000 / 1500e-6, 16000 / 12000e-6, 2000 / 2000e-6])


def test_no_time_is_spent_on_a_plain_setting_that_nothing_is_compared_with():
    compiler = Compiler()
    assert [row.setting for row in ranked(SAVING, compiler=compiler)] == [SAVING]
    assert compiler.asked == [SAVING]


def test_each_is_compared_with_plain_fsdp_of_as_many_rows_in_the_same_sweep():
    rows = {row.setting: row for row in ranked(OPTION)}
    assert set(rows) == {OPTION, PLAIN}, "the plain one is compiled too"
    assert rows[OPTION].ratio == pytest.approx(0.75)
    assert (rows[PLAIN].ratio, rows[PLAIN].is_plain, rows[OPTION].is_plain) == (1, True, False)


def test_nothing_is_compared_with_a_plain_setting_that_does_not_fit():
    four = Setting((("fsdp", 4),), 4, "dots")

    def compile(setting: Setting) -> Compiled:
        return Compiled(setting == four, GIB, program(work(10)) if setting == four else None)

    first, second = sweep([four], compile, length=LENGTH, chip=CHIP)
    assert (first.setting, first.ratio, first.tokens_per_second) == (four, None, pytest.approx(4e8))
    assert (second.setting, second.step) == (plain(four), None)


def test_every_setting_is_compiled_once_however_it_is_written():
    compiler = Compiler()
    same = Setting((("data", 1), ("fsdp", 4), ("tensor", 1)), 2, "full")
    ranked(OPTION, PLAIN, same, OPTION, compiler=compiler)
    assert sorted(map(str, compiler.asked)) == sorted(map(str, {OPTION, PLAIN}))


def test_chips_that_share_a_tensor_share_its_rows():
    shared = Setting((("fsdp", 2), ("tensor", 2)), 2, "full")
    assert (shared.chips, shared.rows_per_chip) == (4, 1)
    assert plain(shared) == Setting((("fsdp", 4),), 1, "full")
    assert plain(Setting((("tensor", 4),), 2, "full")) is None, "half a row per chip"
    row = sweep([shared], lambda _: Compiled(True, 0, program(work(5))), length=8, chip=CHIP)[0]
    assert row.tokens_per_second == pytest.approx(8 / 5e-6)


def test_one_chip_is_its_own_plain_setting():
    alone = Setting((), 2, "full")
    assert (alone.chips, alone.rows_per_chip, plain(alone)) == (1, 2, alone)
    assert plain(Setting((), 2, "none")) == alone


def test_a_program_whose_work_has_no_time_fits_and_has_no_speed():
    waits = program("%g = s8[4000]{0} all-gather(%a), replica_groups={}")
    row = sweep([PLAIN], lambda _: Compiled(True, GIB, waits), length=8, chip=CHIP)[0]
    assert (row.compiled.fits, row.step, row.tokens_per_second, row.ratio) == (True,) + (None,) * 3


def test_what_fits_comes_before_what_does_not_even_without_a_time():
    def compile(setting: Setting) -> Compiled:
        return Compiled(setting == PLAIN, text=program())

    rows = sweep([SAVING, PLAIN], compile, length=8, chip=CHIP)
    assert [row.setting for row in rows] == [PLAIN, SAVING]


def test_a_row_is_read_in_words():
    option, plain_row = ranked(OPTION)
    assert dict(zip(HEAD, option.cells())) == {
        "setting": "fsdp 4, 2 rows per chip, remat full, xla_flag=1",
        "peak GiB": "3.00",
        "fits": "yes",
        "modelled ms": "1.5",
        "tokens/s/chip": "1333333",
        "of plain": "0.750",
        "no time": "0",
    }
    assert plain_row.cells()[0] == "fsdp 4, 2 rows per chip, remat full (plain)"
    short = dataclasses.replace(OPTION, options_name="as trained")
    assert str(short) == "fsdp 4, 2 rows per chip, remat full, as trained"
    assert short == OPTION
    out = ranked(SAVING)[-1].cells()
    assert out == ("fsdp 4, 2 rows per chip, remat dots", "-", "no", "-", "-", "-", "-")
