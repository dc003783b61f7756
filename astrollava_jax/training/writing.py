"""Begins to write a step with Orbax, which does the rest in the background."""

from typing import Any

from orbax.checkpoint import v1 as ocp

from astrollava_jax.training.manifest import PEER_SECONDS

CHUNK_BYTES = 1 << 27
"""Of an array: so much of it is in memory at once, beside the array, when it is read back."""


def begin(path: str, items: dict[str, Any], config: dict[str, Any]) -> Any:
    """Copies items to the host and starts to write them to `path`; returns Orbax's response."""
    context = ocp.Context()
    context.array.saving.storage_options.chunk_byte_size = CHUNK_BYTES
    # Or every device cuts out its part of a replicated array: programs for which a step waits.
    context.array.saving.use_replica_parallel = False
    # Or a disk that only reads is told after five minutes, by threads that outlive the program.
    context.async_options.create_directories_asynchronously = False
    context.async_options.timeout_secs = PEER_SECONDS  # or a save ends after 20 minutes
    metadata: Any = {"config": config}
    with context:
        return ocp.save_checkpointables_async(path, items, custom_metadata=metadata)
