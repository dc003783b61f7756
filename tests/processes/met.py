"""One process that meets the others as `train` does, and says who it is and which rows it got."""

import json
import os

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from astrollava_jax.run import processes
from astrollava_jax.sharding import gather, share_of_rows, whole

AXES = ("data", "fsdp", "tensor")
LAID = {(2, 2, 1): (0, 2, 1, 3), (1, 4, 1): (3, 0, 1, 2), (1, 2, 2): (0, 2, 1, 3)}
"""Meshes of four devices: their shape, and the order of the devices, mixed over the processes."""

if "GCE_METADATA_IP" in os.environ:  # JAX saw no TPU, and would not ask there
    del os.environ["TPU_SKIP_MDS_QUERY"]


processes._tpu_wanted = lambda: True  # what JAX is told here is to use the CPU


def rows_are_in_place() -> bool:
    """Whether an array made of what each process takes is the whole array, on every mesh."""
    rows = np.arange(2 * 8 * 3).reshape(2, 8, 3)  # micro-batches, rows, something
    found = []
    for shape, order in LAID.items():
        mesh = Mesh(np.array(jax.devices())[list(order)].reshape(shape), AXES)
        parts, of = share_of_rows(mesh)
        own = rows.reshape(2, of, -1, 3)[:, parts].reshape(2, -1, 3)
        placed = NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))
        array = jax.make_array_from_process_local_data(placed, own)
        found.append(np.array_equal(whole(array), rows))
    return all(found)


if __name__ == "__main__":
    with processes.joined(20.0):
        said = {"process": jax.process_index(), "of": jax.process_count()}
        if jax.device_count() == 4:
            said["rows in place"] = rows_are_in_place()
        said["all"] = gather(said["process"])
        print(json.dumps(said), flush=True)
