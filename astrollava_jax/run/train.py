"""`train`: one stage from its config to its last checkpoint; it resumes by itself."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

import jax
from rich.console import Console

from astrollava_jax import files
from astrollava_jax.config import plain
from astrollava_jax.params import Params
from astrollava_jax.run import directory, dry_run, held, opening, processes
from astrollava_jax.run.compiled import keep_compiled
from astrollava_jax.run.config import RunConfig, with_absolute_paths
from astrollava_jax.run.initial import initial, read
from astrollava_jax.run.ready import Ready, begin, get_ready, goes_on
from astrollava_jax.run.records import all_told, deliveries
from astrollava_jax.run.stage import abstract_state
from astrollava_jax.run.surroundings import Job
from astrollava_jax.training import storage
from astrollava_jax.training.checkpoint import Checkpoints
from astrollava_jax.training.loop import train as run_loop
from astrollava_jax.training.preemption import Stop
from astrollava_jax.training.prefetch import Prefetch
from astrollava_jax.training.state import Progress, TrainState
from astrollava_jax.training.trace import Trace
from astrollava_jax.training.watchdog import Heart


def train(
    run: RunConfig,
    *,
    bases: opening.Bases = (),
    dry: bool = False,
    since: float | None = None,
    profile: tuple[int, int] | None = None,
) -> None:
    """Trains one stage, or goes on with it where its run directory ends.

    Args:
        run: the run.
        bases: where the base of `run.out` stands now, if it moved.
        dry: print the plan and one batch instead; nothing is written.
        since: when the command began, in seconds since 1970: a notice file that is there already
            asks the run to end if it is not older. None = it does not, and the time of the run is
            counted from here.
        profile: the first and the last step of which JAX's profiler writes a trace into `run.out`.

    Raises:
        ValueError, FileNotFoundError: the user's mistakes, each with what to do.
        Resumable: if it ended early, and goes on when it is started again.
    """
    logging.getLogger("absl").setLevel(logging.WARNING)  # orbax tells of every file it writes
    storage.tell_once()
    run = with_absolute_paths(run)
    stop, began = Stop(run.preemption, since), since or time.time()
    with contextlib.ExitStack() as open_until_the_end:
        enter = open_until_the_end.enter_context
        heart = enter(contextlib.closing(Heart(run.watchdog)))
        enter(processes.joined(run.watchdog.floor_seconds))
        heart.join(jax.process_count(), processes.count_together)
        if not dry:
            keep_compiled()
        console = Console(soft_wrap=True, markup=False, quiet=jax.process_index() > 0)
        trace = None if profile is None else Trace(*profile, run.out, heart, console.print)
        with processes.failing_together():
            processes.alike({"config": plain(run), **processes.machine()})
            # What is found in the run directory stays so only as long as no other start can write.
            displaced = (lambda: None) if dry else enter(_alone(run))
            ready = get_ready(console, run, bases, keep=not dry)
            if dry:
                dry_run.show(console, run, ready.stage, ready.data, ready.held_out, ready.fresh)
                return
            params = _params(run, ready)
        _run(Job(run, ready, console, heart, stop, displaced, began, trace), params)


@contextlib.contextmanager
def _alone(run: RunConfig) -> Iterator[Callable[[], str | None]]:
    """Process 0 holds the run directory for all, and gives what `held.alone` does."""
    if jax.process_index() > 0:
        yield lambda: None
        return
    goes_on(run)  # no lock is left in a folder that is something else
    with held.alone(run.out) as displaced:
        files.remove_unfinished(run.out)
        yield displaced


def _params(run: RunConfig, ready: Ready) -> Params:
    """The parameters with which a run goes on, or begins: then its directory begins too."""
    if ready.going_on:
        directory.check_data(run.out, ready.data.facts)
        return read(run, ready.opened, ready.stage, ready.stage.model.frozen)
    params = initial(run, ready.opened, ready.stage, ready.fresh)
    begin(run, ready, params)
    return params


def _run(job: Job, params: Params) -> None:
    """Trains from the newest checkpoint, or from the beginning, to the end."""
    out, stage, data = job.run.out, job.ready.stage, job.ready.data
    total = data.plan.total_steps
    checkpoints = job.checkpoints()
    with stage.active(), job.stop, contextlib.ExitStack() as ending:
        # What is entered later ends earlier: the log hears of the last save, too.
        log_open = ending.enter_context(contextlib.ExitStack())
        ending.enter_context(_closing(job, checkpoints))
        state, progress = _begin_or_go_on(job, params, checkpoints)
        if job.trace is not None:
            job.trace.expect(progress.step, total)
            ending.callback(job.trace.close)
        if progress.position >= total:
            job.console.print(f"{out}: complete, all {total} steps are done")
            return
        log = job.log(checkpoints, progress.step)
        if log is not None:
            log_open.callback(log.close)
        evaluate = job.evaluation(params, log)
        source = Prefetch(deliveries(data, stage, progress.position))
        ending.callback(source.close)
        if evaluate is not None:
            evaluate.make_up(progress.step, state, job.evaluated(progress.step))
        _, progress = run_loop(
            stage.step, state, params, all_told(source, stage), progress, total,
            job.surroundings(checkpoints, log, evaluate),
        )  # fmt: skip
    bad = f", {progress.bad} of them bad" if progress.bad else ""
    last = checkpoints.last_good
    job.console.print(f"{out}: complete, {total} steps{bad}; checkpoint {last}")


def _begin_or_go_on(
    job: Job, params: Params, checkpoints: Checkpoints
) -> tuple[TrainState, Progress]:
    """The state of the newest good checkpoint, or the first; `params` keeps what is frozen."""
    stage = job.ready.stage
    restored = checkpoints.restore_newest(abstract_state(stage, job.run))
    if restored is not None:
        total = job.ready.data.plan.total_steps
        job.console.print(f"going on after step {restored.step} of {total}")
        return restored.state, restored.progress
    if job.ready.going_on:
        raise ValueError(
            f"{checkpoints.folder}: no good checkpoint is left, all are set aside there under "
            "names that say why; start again to train from the beginning"
        )
    state = stage.begin({address: params.pop(address) for address in stage.model.trainable})
    checkpoints.prepare(state)
    return state, Progress()


@contextlib.contextmanager
def _closing(job: Job, checkpoints: Checkpoints) -> Iterator[None]:
    """Waits for the last save, however the run ends.

    A log that cannot be written any more may be the first to notice that the directory is lost.
    """
    try:
        yield
    except OSError as error:
        if (lost := checkpoints.lost()) is not None:
            raise lost from error
        raise
    finally:
        job.heart.beat("checkpoint", "the last one")
        checkpoints.close()
