"""One of two processes that save, are damaged, and go on: started by test_checkpoint_processes."""

import sys

import jax
import numpy as np

folder, port, process = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(
    f"127.0.0.1:{port}", num_processes=2, process_id=process, heartbeat_timeout_seconds=10,
    shutdown_timeout_seconds=10, initialization_timeout=60,
)  # fmt: skip

from jax.experimental import multihost_utils  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from astrollava_jax import files  # noqa: E402
from astrollava_jax.sharding import MeshConfig  # noqa: E402
from astrollava_jax.training import manifest  # noqa: E402
from astrollava_jax.training.checkpoint import Checkpoints, NotFinite  # noqa: E402
from astrollava_jax.training.optimizer import AdamState  # noqa: E402
from astrollava_jax.training.state import Progress, TrainState  # noqa: E402
from astrollava_jax.training.steps import steps  # noqa: E402

MESH = MeshConfig(fsdp=4).build()


def placed(numbers: np.ndarray, *axes: str) -> jax.Array:
    sharding = NamedSharding(MESH, PartitionSpec(*axes))
    return jax.make_array_from_callback(numbers.shape, sharding, lambda index: numbers[index])


def state(step: int, bad: float = 0.0) -> TrainState:
    numbers = np.arange(64, dtype=np.float32).reshape(8, 8) + step
    numbers[7, 7] += bad  # on the second process
    kernel = placed(numbers, "fsdp")
    return TrainState(
        {"a": kernel}, AdamState(placed(np.asarray(step, np.int32)), {"a": kernel}, {"a": kernel})
    )


told: list[str] = []
checkpoints = Checkpoints(folder, keep=2, tell=told.append)
for step in (1, 3, 7):
    checkpoints.save(state(step), Progress(step=step), {})
checkpoints.wait()
assert checkpoints.last_good == 7
try:
    checkpoints.save(state(8, bad=np.nan), Progress(step=8), {})
    raise AssertionError("it was saved")
except NotFinite:
    pass
multihost_utils.sync_global_devices("saved")
assert steps(folder) == [3, 7], steps(folder)
parts = manifest.parts(f"{folder}/7")
assert parts == ["manifest.0-of-2.json", "manifest.1-of-2.json"], parts
if process == 0:  # a file that the second process verifies
    sizes = {name: entry["bytes"] for name, entry in manifest.read(f"{folder}/7").files.items()}
    name = manifest.share(sizes, 1, 2)[0]
    content = bytearray(files.read_bytes(f"{folder}/7/{name}"))
    content[len(content) // 2] ^= 8
    files.write_bytes(f"{folder}/7/{name}", bytes(content))
multihost_utils.sync_global_devices("damaged")
restored = checkpoints.restore_newest(state(0))
assert restored is not None and restored.step == 3 == int(restored.state.optimizer.count)
assert len(told) == 1 and "expected crc32c" in told[0], told  # both know what one has found
assert files.names(folder) == ["3", "7.damaged-checksum"]
checkpoints.close()
print("good", flush=True)
jax.distributed.shutdown()
