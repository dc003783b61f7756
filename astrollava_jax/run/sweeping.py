"""`plan --sweep`: compiles several settings of a run, and ranks them by a model of their time."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from astrollava_jax.planning.program import BREAKDOWN, first_line
from astrollava_jax.planning.roofline import reliance
from astrollava_jax.planning.sweep import HEAD, Compiled, Row, Setting, ranked, sweep, with_plain
from astrollava_jax.planning.topologies import GIB
from astrollava_jax.run import estimate
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.plan import Machine, plan
from astrollava_jax.run.sweep_settings import settings, with_setting
from astrollava_jax.weights.outline import Outline


def show_sweep(
    run: RunConfig, where: Machine, outline: Outline, words: Sequence[str], *,
    rows_per_chip: int | None, as_json: bool,
) -> bool:  # fmt: skip
    """Compiles the settings, tells each on stderr as it is done, and prints them ranked.

    Args:
        run: the run.
        where: the machine.
        outline: what it trains.
        words: the values of some axes, `remat=full,dots`; the others have a few that are likely.
        rows_per_chip: that a chip computes in a step; None = as `words` say, or the batch has.
        as_json: print a line of JSON for each setting as it is done, in place of the table.

    Returns:
        Whether any of them fits.

    Raises:
        ValueError: if an axis or a value is not known, or the machine has no model.
    """
    topology = estimate.check(where, "--sweep")
    tried = with_plain(settings(run, where, outline, words, rows_per_chip), run.attention)
    print(f"{len(tried)} settings; {reliance(topology.chip)}", file=sys.stderr)
    rows: list[Row] = []
    compile_step = _Compile(run, where, outline)
    for row in sweep(tried, compile_step, length=run.batch.length, attention=run.attention):
        rows.append(row)
        print(f"[{len(rows)}/{len(tried)}] {_line(row)}", file=sys.stderr, flush=True)
        if as_json:
            print(json.dumps(facts(row) | {"reliance": reliance(topology.chip)}), flush=True)
    if not as_json:
        _show(ranked(rows), where.name, reliance(topology.chip))
    return any(row.compiled.fits for row in rows)


@dataclasses.dataclass(frozen=True)
class _Compile:
    """What the compiler makes of a setting, by the code of `plan`."""

    run: RunConfig
    where: Machine
    outline: Outline

    def __call__(self, setting: Setting) -> Compiled:
        try:
            run = with_setting(self.run, setting)
            made = plan(run, self.where, self.outline, throughput=True, told=setting.options)
        except (ValueError, *BREAKDOWN) as error:  # axes that divide nothing, or the compiler's own
            return Compiled(False, why=first_line(error))
        known = Compiled(made.fits, made.needed, made.rows.samples)
        try:
            modelled = estimate.estimated(made)
        except ValueError as error:  # the model leaves too much out
            return dataclasses.replace(known, why=str(error))
        if modelled is None:
            return known
        return dataclasses.replace(known, step=modelled[0], mfu=modelled[1].mfu)


def facts(row: Row) -> dict[str, Any]:
    """A line as plain values: bytes of one chip, seconds by the model."""
    setting, made, step = row.setting, row.compiled, row.compiled.step
    return {
        "mesh": dict(setting.mesh),
        "frozen": setting.frozen,
        "remat": setting.remat,
        "attention": setting.attention,
        "options": setting.options,
        "rows_per_chip": setting.rows_per_chip,
        "samples_per_step": made.samples,
        "plain": row.is_plain,
        "verdict": row.verdict,
        "why": made.why,
        "needed_bytes": made.peak_bytes,
        "modelled": None
        if step is None
        else estimate.parts(step)
        | {
            "mfu": made.mfu,
            "tokens_per_second_per_chip": row.tokens_per_second,
            "time_per_token_of_plain": row.ratio,
        },
    }


def _line(row: Row) -> str:
    """A setting as it is told when it is done."""
    made, step = row.compiled, row.compiled.step
    words = [f"{row.setting}, {row.setting.rows_per_chip:g} row(s) per chip: {row.verdict}"]
    if made.peak_bytes is not None:
        words.append(f"{made.peak_bytes / GIB:.2f} GiB")
    if step is not None:
        words.append(f"modelled {step.seconds * 1e3:.1f} ms")
    if row.is_plain:
        words.append("plain")
    elif row.ratio is not None:
        words.append(f"{row.ratio:.3f} of plain's time per token")
    return ", ".join(words) + (f": {made.why}" if made.why else "")


def _show(rows: Sequence[Row], machine: str, reliance: str) -> None:
    """Prints the settings in their order, as a table that Markdown takes too.

    Lines are as wide as they must be: a terminal breaks them, a file keeps them whole.
    """
    print(f"settings on {machine}, ranked by the model; times are {reliance}\n")
    lines = [HEAD, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    rule = [width * "-" for width in widths]
    for cells in (lines[0], rule, *lines[1:]):
        print("|", " | ".join(cell.ljust(width) for cell, width in zip(cells, widths)), "|")
    for row in rows:
        if row.compiled.why:
            print(f"{row.verdict}: {row.setting}: {row.compiled.why}")
