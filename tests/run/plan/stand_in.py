"""What the compiler might have said of another setting than the one it compiled."""

import dataclasses

from astrollava_jax.planning.program import DoesNotFit
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.plan import Planned


def changed(planned: Planned, run: RunConfig, fits: bool) -> Planned:
    refused = None if fits else DoesNotFit(2 << 30, 1 << 30)
    memory = planned.memory if fits else None
    return dataclasses.replace(planned, asked=run, run=run, refused=refused, memory=memory)
