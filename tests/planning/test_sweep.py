"""Settings ranked by the modelled time of what a compiler makes of them."""

import dataclasses

import pytest

from astrollava_jax.planning.schedule import Modelled
from astrollava_jax.planning.sweep import HEAD, Compiled, Row, Setting, plain, ranked, sweep

LENGTH = 1000
PLAIN = Setting((("fsdp", 4),), 2, "full")
OPTION = Setting((("fsdp", 4),), 2, "full", (("xla_flag", "1"),))
SAVING = Setting((("fsdp", 4),), 2, "dots")
LARGE = Setting((("data", 2), ("fsdp", 2)), 16, "full")
MANY = Setting((("fsdp", 4),), 16, "full")

GIB = 2**30
TIMES = {PLAIN: 2000, OPTION: 1500, MANY: 12000}
"""Setting -> microseconds of its step; the others do not fit."""


def takes(microseconds: float, **known) -> Compiled:
    """A step that waits for a third of its time."""
    busy, waiting = microseconds * 2e-6 / 3, microseconds * 1e-6 / 3
    step = Modelled(busy, 0.0, {"all-gather": waiting}, 0.0, {"fusion": 2})
    return Compiled(True, 3 * GIB, 48, step, mfu=0.25, **known)


class Compiler:
    """Knows `TIMES`, and what it was asked."""

    def __init__(self):
        self.asked: list[Setting] = []

    def __call__(self, setting: Setting) -> Compiled:
        self.asked.append(setting)
        if setting not in TIMES:
            return Compiled(False, 5 * GIB, 48)
        return takes(TIMES[setting])


def swept(*settings: Setting, compiler=None) -> list[Row]:
    return list(sweep(settings, compiler or Compiler(), length=LENGTH))


def test_the_fastest_per_token_comes_first_and_what_does_not_fit_last():
    rows = ranked(swept(SAVING, PLAIN, OPTION, LARGE, MANY))
    assert [row.setting for row in rows] == [OPTION, MANY, PLAIN, SAVING, LARGE]
    assert [row.compiled.fits for row in rows] == [True, True, True, False, False]
    speeds = [row.tokens_per_second for row in rows[:3]]
    assert speeds == pytest.approx([2000 / 1500e-6, 16000 / 12000e-6, 2000 / 2000e-6])


def test_the_plain_setting_of_as_many_rows_is_compiled_before_those_compared_with_it():
    compiler = Compiler()
    rows = swept(OPTION, SAVING, LARGE, compiler=compiler)
    assert compiler.asked == [PLAIN, OPTION, SAVING, MANY, LARGE]
    assert [row.setting for row in rows] == compiler.asked
    assert [row.is_plain for row in rows] == [True, False, False, True, False]
    ratios = [row.ratio for row in rows]
    assert ratios == [1, pytest.approx(0.75), None, 1, None]


def test_each_is_told_before_the_next_is_compiled():
    compiler = Compiler()
    for number, row in enumerate(sweep([OPTION, SAVING], compiler, length=LENGTH), 1):
        assert compiler.asked[-1] == row.setting and len(compiler.asked) == number


def test_nothing_is_compared_with_a_plain_setting_that_does_not_fit():
    four = Setting((("fsdp", 4),), 4, "dots")

    def compile(setting: Setting) -> Compiled:
        return takes(10) if setting == four else Compiled(False, why="INTERNAL: of no use")

    first, second = ranked(sweep([four], compile, length=LENGTH))
    assert (first.setting, first.ratio, first.tokens_per_second) == (four, None, pytest.approx(4e8))
    assert (second.setting, second.compiled.step) == (plain(four), None)
    assert (first.verdict, second.verdict) == ("fits", "not compiled")


def test_every_setting_is_compiled_once_however_it_is_written():
    compiler = Compiler()
    same = Setting((("data", 1), ("fsdp", 4), ("tensor", 1)), 2, "full")
    swept(OPTION, PLAIN, same, OPTION, compiler=compiler)
    assert compiler.asked == [PLAIN, OPTION]
    one_chip = Setting((("fsdp", 1),), 2, "full", frozen="replicated")
    assert one_chip == Setting((), 2, "full"), "one chip has all frozen weights anyhow"
    assert dataclasses.replace(PLAIN, frozen="replicated") != PLAIN


def test_chips_that_share_a_tensor_share_its_rows():
    shared = Setting((("fsdp", 2), ("tensor", 2)), 2, "full")
    assert (shared.chips, shared.rows_per_chip) == (4, 1)
    assert plain(shared) == Setting((("fsdp", 4),), 1, "full")
    assert plain(Setting((("tensor", 4),), 2, "full")) is None, "half a row per chip"
    row = list(sweep([shared], lambda _: takes(5), length=8))[-1]
    assert row.tokens_per_second == pytest.approx(8 / 5e-6)


def test_one_chip_is_its_own_plain_setting():
    alone = Setting((), 2, "full")
    assert (alone.chips, alone.rows_per_chip, plain(alone)) == (1, 2, alone)
    assert plain(Setting((), 2, "none")) == alone


def test_the_plain_setting_computes_attention_as_the_run_does():
    einsum = dataclasses.replace(OPTION, attention="xla")
    assert plain(einsum, "splash") == dataclasses.replace(PLAIN, attention="splash")
    rows = list(sweep([einsum], lambda _: takes(5), length=8, attention="xla"))
    assert [row.setting.attention for row in rows] == ["xla", "xla"]


def test_what_fits_comes_before_what_does_not_even_without_a_time():
    def compile(setting: Setting) -> Compiled:
        return Compiled(setting == PLAIN, 1, why="the model leaves too much out")

    rows = ranked(sweep([SAVING, PLAIN], compile, length=8))
    assert [row.setting for row in rows] == [PLAIN, SAVING]
    assert (rows[0].tokens_per_second, rows[0].ratio) == (None, None)


def test_a_row_is_read_in_words():
    plain_row, option = swept(OPTION)
    assert dict(zip(HEAD, option.cells())) == {
        "setting": "fsdp 4, remat full, options xla_flag=1",
        "rows per chip": "2",
        "samples a step": "48",
        "verdict": "fits",
        "peak GiB": "3.00",
        "modelled ms": "1.5",
        "of it waiting": "0.5",
        "tokens/s/chip": "1333333",
        "MFU": "25.0%",
        "time per token of plain": "0.750",
        "without a time": "2",
    }
    assert plain_row.cells()[0] == "fsdp 4, remat full, options none (plain)"
    short = dataclasses.replace(OPTION, told_name="table", frozen="replicated", attention="xla")
    assert str(short) == (
        "fsdp 4, frozen weights replicated, remat full, attention xla, options table"
    )
    assert str(dataclasses.replace(PLAIN, told_name="table")).endswith("options none")
    assert dataclasses.replace(OPTION, told_name="table") == OPTION
    out = swept(SAVING)[-1].cells()
    assert out[1:] == ("2", "48", "does not fit", "5.00") + 6 * ("-",)
