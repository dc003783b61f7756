"""How many positions a decoder tells apart, as its config says it."""

import pytest

from astrollava_jax.weights.rotary import most_positions

LINEAR = {"type": "linear", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": None}, 4096),
        # Vicuna 16k states the positions of the Llama that it was made from.
        ({"max_position_embeddings": 4096, "rope_scaling": LINEAR}, 16384),
        # Llama 3.1 states its own, and those before it beside the factor.
        ({"max_position_embeddings": 131072, "rope_scaling": LLAMA3}, 131072),
        ({}, None),
    ],
)
def test_positions_are_those_that_the_config_means(config, positions):
    assert most_positions(config) == positions
