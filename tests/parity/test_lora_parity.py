"""Adapters against PEFT's, on the tiny LLaVA: logits, the gradients of all of them, the merge."""

import families
import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import tiny_directories as tiny
import tiny_llava
import torch
from flax import nnx
from tiny_llava import assert_close

from astrollava_jax.models.lora import LoraConfig, attach
from astrollava_jax.params import merge, split
from astrollava_jax.training.step import loss_weights, weighted_nll
from astrollava_jax.weights.adapted import Adapted, Lora
from astrollava_jax.weights.directory import open_model

# PEFT asks transformers by a name that will go.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

RANK, ALPHA = 4, 12.0
MODULES = {
    **{f"attn/{name}_proj": f"self_attn.{name}_proj" for name in "qkvo"},
    **{f"mlp/{name}_proj": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
"""Our linear maps of a layer, and transformers'."""


@pytest.fixture(scope="module")
def theirs() -> peft.PeftModel:
    """PEFT's model, with numbers in both halves of every adapter."""
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=int(ALPHA),
        target_modules=r".*language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj",
    )
    model = peft.get_peft_model(tiny_llava.torch_model(), config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.normal_(0, 0.2)
    return model


def adapters(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """PEFT's tensors (weights or gradients) under our addresses, copied by hand."""
    config, found = tiny_llava.our_config().llm, {}
    heads = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
    for ours, their_name in MODULES.items():
        halves = []
        for half in "AB":
            name = "base_model.model.model.language_model.layers.{}.{}.lora_{}.default.weight"
            layers = [tensors[name.format(number, their_name, half)] for number in range(2)]
            halves.append(np.stack([layer.detach().numpy().T for layer in layers]))
        a, b = halves
        part = ours.removeprefix("attn/")[0] if ours.startswith("attn/") else ""
        if part in heads:
            b = b.reshape(2, RANK, heads[part], config.head_dim)
        if part == "o":
            a = a.reshape(2, config.num_heads, config.head_dim, RANK)
        found[f"llm/layers/{ours}/lora_a"], found[f"llm/layers/{ours}/lora_b"] = a, b
    return found


def base() -> dict[str, np.ndarray]:
    return tiny_llava.by_address(dict(tiny_llava.torch_model().named_parameters()))


def test_logits_and_gradients_are_pefts(theirs):
    config = LoraConfig(rank=RANK, alpha=ALPHA, targets=("llm/layers/.*_proj",))

    def fresh():
        return attach(tiny_llava.our_config().build(nnx.Rngs(0)), config, jax.random.key(0))

    graphdef, shapes = split(nnx.eval_shape(fresh))
    frozen = {address: jnp.asarray(array) for address, array in base().items()}
    trainable = adapters(dict(theirs.named_parameters()))
    assert {a: x.shape for a, x in shapes.items()} == {
        a: x.shape for a, x in {**frozen, **trainable}.items()
    }
    batch = families.sample(prefix=0, size=28)
    micro = batch.map(jnp.asarray)

    @jax.jit
    def loss(trainable):
        model = merge(graphdef, {**frozen, **trainable})
        hidden = model(micro, dtype=jnp.float32, remat="full")
        weights = loss_weights(micro.learned_sample, "tokens", 2)
        total = weighted_nll(model, hidden, micro, weights, 2)
        return total / weights.sum(), model.logits(hidden)

    with jax.default_matmul_precision("highest"):
        (value, logits), gradients = jax.value_and_grad(loss, has_aux=True)(trainable)
    output = theirs(**families.asked(batch, tiny_llava.our_config().vision))
    output.loss.backward()
    assert_close(logits, output.logits.detach().numpy(), "logits")
    assert_close(value, output.loss.item(), "loss")
    expected = adapters({n: p.grad for n, p in theirs.named_parameters() if p.grad is not None})
    assert expected.keys() == gradients.keys()
    for address, gradient in expected.items():
        assert_close(gradients[address], gradient, address)


def test_merged_kernels_are_pefts(theirs, tmp_path):
    tiny.write_hf(tmp_path / "hf", tiny_llava.torch_model(), dtype=torch.float32)
    lora = Lora(RANK, ALPHA, adapters(dict(theirs.named_parameters())))
    ours = Adapted(open_model(tmp_path / "hf"), lora, "here")
    expected = tiny_llava.by_address(dict(theirs.merge_and_unload().named_parameters()))
    assert set(ours.kernels) == {f"llm/layers/{name}/kernel" for name in MODULES}
    for address, array in base().items():
        read = ours.read(address)
        if address in ours.kernels:
            assert not np.allclose(read, array, atol=1e-3)
            assert_close(read, expected[address], address, 1e-6)
        else:
            assert np.array_equal(read, array) and np.array_equal(read, expected[address])
