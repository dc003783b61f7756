import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava
from tiny_llava import assert_close

from astrollava_jax.inference.cache import empty_cache, read_on
from astrollava_jax.params import merge, split


@pytest.fixture(scope="module")
def llm():
    numbers = tiny_llava.by_address(dict(tiny_llava.torch_model().named_parameters()))
    return merge(split(tiny_llava.our_config().abstract())[0], numbers).llm


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.fixture(autouse=True)
def precise():
    with jax.default_matmul_precision("highest"):
        yield


def test_reading_piece_by_piece_equals_reading_at_once(llm):
    x, places = noise(2, 9, 48), np.tile(np.arange(9), (2, 1))

    @jax.jit
    def piece_by_piece(x):
        cache, pieces = empty_cache(llm, 2, 12, x.dtype), []
        for here in (slice(0, 5), slice(5, 6), slice(6, 9)):
            piece, cache = read_on(llm, x[:, here], jnp.asarray(places[:, here]), cache)
            pieces.append(piece)
        return jnp.concatenate(pieces, axis=1)

    whole = jax.jit(llm)(x, np.ones((2, 9), np.int32), places)
    assert_close(piece_by_piece(x), whole, "hidden states", 1e-5)


def test_padding_is_overwritten_before_it_is_seen(llm):
    x, places = noise(1, 6, 48), jnp.arange(6)[None]

    @jax.jit
    def fourth(prompt, answer):
        """What the first word of an answer becomes behind three words of a padded prompt."""
        _, cache = read_on(llm, prompt, places, empty_cache(llm, 1, 8, prompt.dtype))
        return read_on(llm, answer, places[:, 3:4], cache)[0]

    padded = x.copy()
    padded[:, 3:] = 100
    assert_close(fourth(padded, x[:, 3:4]), fourth(x, x[:, 3:4]), "hidden states", 1e-6)
