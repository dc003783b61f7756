"""Which mesh is chosen and why, and where each device stands in it: no device is touched."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from astrollava_jax import meshing
from astrollava_jax.meshing import Needs
from astrollava_jax.sharding import MeshConfig, share_of_rows

GB = 10**9
STAGE_1 = {"frozen": int(14.1 * GB), "trained": int(0.34 * GB)}
"""LLaVA-1.5-7B: decoder and tower in bfloat16; of the projector 16 bytes a parameter."""
STAGE_2 = {"frozen": int(0.6 * GB), "trained": 108 * GB}
LORA = {"frozen": int(14.1 * GB), "trained": int(5.1 * GB)}

CHOSEN = {
    "stage 1, one H100": (STAGE_1, 1, 1, 80, (1, 1), "sharded", "one device holds everything"),
    "stage 1, v6e-8": (STAGE_1, 8, 1, 32, (8, 1), "replicated", "only gradients are exchanged"),
    "stage 1, two v6e-8": (STAGE_1, 16, 2, 32, (16, 1), "replicated", "only gradients"),
    "stage 1, v5e-8": (STAGE_1, 8, 1, 16, (1, 8), "sharded", "exceeds the 8.94 GiB that a device"),
    "stage 1, two v5e-8": (STAGE_1, 16, 2, 16, (2, 8), "sharded", "share of a slice or node's"),
    "stage 2, v6e-16": (
        STAGE_2,
        16,
        1,
        32,
        (1, 16),
        "replicated",
        "572.2 MiB, fits beside",
    ),
    "stage 2, two v5e-8": (STAGE_2, 16, 2, 16, (1, 16), "replicated", "the slower network"),
    "stage 2, v5e-4": (STAGE_2, 4, 1, 16, (1, 4), "sharded", "take more devices"),
    "LoRA, v6e-4": (LORA, 4, 1, 32, (4, 1), "replicated", "a whole copy, 17.88 GiB, fits"),
    "LoRA, 24 GB": (LORA, 4, 1, 24.9, (1, 4), "sharded", "a whole copy, 17.88 GiB, exceeds"),
    "not told": (STAGE_2, 8, 2, None, (2, 4), "sharded", "do not tell how much memory"),
}
"""Case -> needs, devices, slices, memory in GB; data and fsdp, frozen weights, words of why."""


@pytest.mark.parametrize("case", CHOSEN)
def test_the_mesh_follows_from_what_fits(case):
    needs, devices, islands, memory, axes, frozen, words = CHOSEN[case]
    room = None if memory is None else int(memory * GB)
    found = meshing.choose(devices, islands, 1, Needs(**needs, memory=room))
    assert (found.data, found.fsdp, found.tensor) == (*axes, 1)
    assert found.frozen == frozen and words in found.why
    assert "{" not in found.why


def test_a_tensor_axis_is_kept_as_it_was_asked_for():
    needs = Needs(**STAGE_1, memory=16 * GB)
    found = meshing.choose(16, 2, 4, needs)
    assert (found.data, found.fsdp, found.tensor) == (4, 1, 4), "a quarter of a copy fits"
    found = meshing.choose(8, 8, 2, Needs(**STAGE_2, memory=80 * GB))
    assert (found.data, found.fsdp, found.tensor) == (1, 4, 2), "tensor spans nodes of one device"


def test_where_frozen_weights_go_may_be_told():
    needs = Needs(**STAGE_1, memory=32 * GB)
    found = meshing.choose(8, 1, 1, needs, "sharded")
    assert (found.data, found.fsdp, found.frozen) == (1, 8, "sharded")
    assert found.why == "as the config says", "a whole copy would fit"
    found = meshing.choose(8, 1, 1, Needs(**STAGE_1, memory=16 * GB), "sharded")
    assert "a whole copy, 13.45 GiB, exceeds the 8.94 GiB" in found.why
    found = meshing.choose(8, 1, 1, Needs(**STAGE_1, memory=16 * GB), "replicated")
    assert (found.fsdp, found.frozen) == (8, "replicated") and "take more devices" in found.why


def test_axes_that_the_config_names_win():
    needs = Needs(**STAGE_1, memory=80 * GB)
    mesh, choice = MeshConfig(data=2, fsdp=4).layout(jax.devices(), needs)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert (choice.frozen, choice.why) == ("replicated", "as the config says")
    _, choice = MeshConfig(data=2, frozen="sharded").layout(jax.devices(), needs)
    assert (choice.fsdp, choice.frozen) == (4, "sharded")
    mesh, choice = MeshConfig().layout(jax.devices(), needs)
    assert (choice.data, choice.fsdp) == (8, 1) and "only gradients" in choice.why


@dataclasses.dataclass(frozen=True)
class Device:
    """What is asked of a device."""

    id: int
    platform: str
    process_index: int
    slice_index: int | None
    coords: tuple[int, int, int] = (0, 0, 0)
    core_on_chip: int = 0
    device_kind: str = "TPU v5p"  # no kind whose slices JAX lays out by a table of its own


def gpus(nodes: int, of_each: int, told: bool = True) -> list[Device]:
    """One process on each GPU if they tell their node, else one on each node."""
    return [
        Device(i, "gpu", i if told else i // of_each, i // of_each if told else None)
        for i in range(nodes * of_each)
    ]


def tpus(slices: int = 1) -> list[Device]:
    """Slices of 4 x 4 chips, four to a host in a square, in the order of hosts."""
    found = []
    for i in range(16 * slices):
        part, host, chip = i // 16, i % 16 // 4, i % 4
        coords = (host % 2 * 2 + chip % 2, host // 2 * 2 + chip // 2, 0)
        found.append(Device(i, "tpu", i // 4, part if slices > 1 else None, coords))
    return found


def steps_between(chips: np.ndarray) -> list[int]:
    """How many wires lead from each chip of a line to the next."""
    at = np.array([chip.coords for chip in chips])
    return np.abs(at[1:] - at[:-1]).sum(axis=1).tolist()


@pytest.mark.parametrize("told", [True, False])
def test_data_goes_over_nodes_and_fsdp_stays_in_one(told):
    mesh = meshing.arrange(gpus(4, 8, told), (4, 8, 1))
    for node, row in enumerate(mesh[:, :, 0]):
        assert {device.id // 8 for device in row} == {node}


def test_the_first_axes_are_split_over_slices_first():
    mesh = meshing.arrange(gpus(4, 8), (2, 4, 4))  # data takes two of the four, fsdp two
    for row in mesh.reshape(8, 4):
        assert len({device.id // 8 for device in row}) == 1, "tensor stays within a node"
    assert {device.id // 8 for device in mesh[0].flat} == {0, 1}
    apart = meshing.arrange(gpus(2, 1), (1, 1, 2))  # nothing else is left to split
    assert [device.id for device in apart.flat] == [0, 1]


@pytest.mark.parametrize("slices", [1, 2])
def test_neighbours_in_a_mesh_of_tpus_are_joined_by_a_wire(slices):
    chips = tpus(slices)
    assert len(meshing.islands(chips)) == slices
    mesh = meshing.arrange(chips, (slices * 4, 4, 1))
    for row in mesh[:, :, 0]:
        assert len({chip.slice_index for chip in row}) == 1
        assert steps_between(row) == [1, 1, 1]
    assert steps_between(np.array(chips[:4])) == [1, 2, 1], "which their own order does not give"


def test_slices_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="in every slice or node, found 8 in 0, 3 in 1"):
        meshing.arrange(gpus(2, 8)[:11], (1, 11, 1))


def test_simulated_devices_keep_their_order():
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).build()
    assert [device.id for device in mesh.devices.flat] == [d.id for d in jax.devices()]


def shares(devices: list[Device], shape: tuple[int, ...], monkeypatch) -> dict[int, Any]:
    """The parts of the rows that each process takes."""
    mesh = Mesh(meshing.arrange(devices, shape), ("data", "fsdp", "tensor"))
    found = {}
    for process in sorted({device.process_index for device in devices}):
        monkeypatch.setattr(jax, "process_index", lambda at=process: at)
        found[process] = share_of_rows(mesh)
    return found


@pytest.mark.parametrize("shape", [(1, 16, 1), (4, 4, 1), (8, 2, 1), (1, 4, 4), (2, 2, 4)])
def test_the_processes_of_a_slice_share_all_rows(shape, monkeypatch):
    found = shares(tpus(), shape, monkeypatch)
    ways = shape[0] * shape[1]
    assert {of for _, of in found.values()} == {ways}
    taken = {tuple(parts) for parts, _ in found.values()}
    assert sorted(part for parts in taken for part in parts) == list(range(ways))
    assert len({len(parts) for parts in taken}) == 1
    mesh = meshing.arrange(tpus(), shape).reshape(ways, -1)
    for process, (parts, _) in found.items():
        own = [i for i in range(ways) if any(d.process_index == process for d in mesh[i])]
        assert parts == own, "a process takes what its own devices hold"


def test_a_share_that_cannot_be_is_refused(monkeypatch):
    devices = [Device(i, "cpu", i // 4, None) for i in range(12)]
    with pytest.raises(ValueError, match="which are not one equal share: make tensor a divisor"):
        shares(devices, (1, 2, 6), monkeypatch)
