"""Phi-3 against transformers: queries, keys and values come in one tensor, gate and up too."""

import families
from transformers import Phi3Config

from astrollava_jax.models import phi3


def test_phi_3_equals_that_of_transformers(tmp_path):
    model = families.torch_model(Phi3Config(**families.DECODER, sliding_window=6))
    ours = families.on(phi3.Phi3Config(**families.OURS, window=6))
    families.assert_equal_to_transformers(model, tmp_path, ours)
