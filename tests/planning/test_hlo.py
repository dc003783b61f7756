"""What a compiled program's text says of its collectives."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from astrollava_jax.planning.hlo import collectives

TPU = """\
HloModule jit_step, is_scheduled=true

%begin (p.0: bf16[8,4]) -> bf16[32,4] {
  %p.0 = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.2 = bf16[32,4]{1,0:T(8,128)(2,1)} all-gather(%p.0), channel_id=3, dimensions={0}
  ROOT %s = (bf16[32,4]{1,0}, u32[]) custom-call(%all-gather.2), \
custom_call_target="AsyncCollectiveStart"
}

%end (p.1: bf16[8,4]) -> bf16[32,4] {
  %p.1 = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.3 = bf16[32,4]{1,0:T(8,128)(2,1)} all-gather(%p.1), channel_id=3, dimensions={0}
  ROOT %d = bf16[32,4]{1,0} custom-call(%all-gather.3), custom_call_target="AsyncCollectiveDone"
}

%beside (p.2: bf16[8,4]) -> bf16[32,4] {
  %p.2 = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.4 = bf16[32,4]{1,0:T(8,128)(2,1)} all-gather(%p.2), channel_id=3, \
backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
}

%all-reduce-scatter.1 (p.3: bf16[8,4]) -> bf16[2,4] {
  %p.3 = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.5 = bf16[8,4]{1,0:T(8,128)(2,1)} all-reduce(%p.3), channel_id=6
  ROOT %slice = bf16[2,4]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.5)
}

%body (t: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %t = (s32[], bf16[8,4]{1,0}) parameter(0)
  %x = bf16[8,4]{1,0} get-tuple-element(%t), index=1
  %start.1 = (bf16[32,4]{1,0}, /*index=1*/u32[]{:S(2)}) fusion(%x), kind=kCustom, calls=%begin
  %fusion.1 = bf16[32,4]{1,0} fusion(%x), kind=kOutput, calls=%beside
  %done.1 = bf16[32,4]{1,0} fusion(%x), kind=kCustom, calls=%end
  ROOT %fusion.2 = bf16[2,4]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}

%condition (t.1: (s32[], bf16[8,4])) -> pred[] {
  ROOT %less = pred[] parameter(0)
}

ENTRY %main (a: bf16[8,4]) -> f32[] {
  %a = bf16[8,4]{1,0} parameter(0)
  %loop = (s32[], bf16[8,4]{1,0}) while(%a), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"32"}}
  %start = (bf16[8,4]{1,0}, bf16[8,4]{1,0}, u32[], u32[]) collective-permute-start(%a), channel_id=4
  %await = bf16[8,4]{1,0} collective-permute-done(%start)
  %other = (bf16[2,4]{1,0}, bf16[2,4]{1,0}, u32[], u32[]) collective-permute-start(%a), channel_id=4
  %again = bf16[2,4]{1,0} collective-permute-done(%other)
  %both = (bf16[8,4]{1,0}, f32[16]{0}, f32[]) all-reduce-start(%a, %b, %c), channel_id=7
  %reduced = (bf16[8,4]{1,0}, f32[16]{0}, f32[]) all-reduce-done(%both)
  ROOT %sum = f32[] all-reduce(%a), channel_id=5, frontend_attributes={its_own={
"words": "{}"
}}, metadata={op_name="jit(step)/reduce_sum"}
}
"""


def test_a_gather_in_a_loop_counts_its_rounds_and_stands_once_however_it_is_hidden():
    found = {(one.kind, one.count, one.num_bytes, one.source) for one in collectives(TPU)}
    assert found == {
        ("all-gather", 32, 32 * 4 * 2, ""),
        ("reduce-scatter", 32, 2 * 4 * 2, ""),
        ("collective-permute", 1, 8 * 4 * 2, ""),
        ("collective-permute", 1, 2 * 4 * 2, ""),
        ("all-reduce", 1, 8 * 4 * 2 + 16 * 4 + 4, ""),
        ("all-reduce", 1, 4, "jit(step)/reduce_sum"),
    }
    assert len(collectives(TPU)) == 6


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
