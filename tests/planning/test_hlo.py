"""What a compiled program's text says of its collectives."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from astrollava_jax.planning.hlo import collectives

TPU = """\
HloModule jit_step, is_scheduled=true

%fused (p.0: bf16[8,4]) -> bf16[32,4] {
  %p.0 = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[32,4]{1,0:T(8,128)(2,1)} all-gather(%p.0), channel_id=3, dimensions={0}
}

%body (t: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %t = (s32[], bf16[8,4]{1,0}) parameter(0)
  %x = bf16[8,4]{1,0} get-tuple-element(%t), index=1
  %hidden.1 = (bf16[32,4]{1,0}, /*index=1*/u32[]{:S(2)}) fusion(%x), kind=kCustom, calls=%fused
  ROOT %again.1 = bf16[32,4]{1,0} fusion(%x), kind=kCustom, calls=%fused
}

%condition (t.1: (s32[], bf16[8,4])) -> pred[] {
  ROOT %less = pred[] parameter(0)
}

ENTRY %main (a: bf16[8,4]) -> f32[] {
  %a = bf16[8,4]{1,0} parameter(0)
  %loop = (s32[], bf16[8,4]{1,0}) while(%a), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"32"}}
  %start = (bf16[8,4]{1,0}, bf16[8,4]{1,0}, u32[], u32[]) collective-permute-start(%a), channel_id=4
  ROOT %sum = f32[] all-reduce(%a), channel_id=5, metadata={op_name="jit(step)/reduce_sum"}
}
"""


def test_a_gather_in_a_loop_counts_its_rounds_and_stands_once_however_it_is_hidden():
    gather, permute, reduce = collectives(TPU)
    assert (gather.kind, gather.count, gather.num_bytes) == ("all-gather", 32, 32 * 4 * 2)
    assert (permute.kind, permute.count, permute.num_bytes) == ("collective-permute", 1, 8 * 4 * 2)
    assert (reduce.kind, reduce.num_bytes, reduce.source) == (
        "all-reduce",
        4,
        "jit(step)/reduce_sum",
    )


def test_a_program_of_xla():
    """Five layers over eight devices: each gathers its kernel in every round."""
    mesh = Mesh(np.array(jax.devices()), ("fsdp",), axis_types=(AxisType.Auto,))

    def spec(shape, *axes):
        placed = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=placed)

    def walk(kernels, x):
        def layer(x, kernel):
            x = jax.lax.with_sharding_constraint(x @ kernel, PartitionSpec("fsdp"))
            return jnp.sin(x), None

        return jax.lax.scan(layer, x, kernels)[0].sum()

    with jax.set_mesh(mesh):
        arguments = spec((5, 16, 16), None, "fsdp"), spec((1024, 16), "fsdp")
        text = jax.jit(walk).lower(*arguments).compile().as_text()
    found = {(one.kind, one.count, one.num_bytes) for one in collectives(text)}
    assert found == {("all-gather", 5, 16 * 16 * 4), ("all-reduce", 1, 4)}
