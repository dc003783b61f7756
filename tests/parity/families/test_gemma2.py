"""Gemma-2 against transformers: windows in turn, caps, centred norms.

The decoder of transformers caps its scores of words (`Gemma2ForCausalLM`), its LLaVA does not: it
puts a head of its own upon `Gemma2Model`. The cap belongs to the model, so ours has it, and the
comparison puts it upon theirs.
"""

import families
import numpy as np
import torch
from tiny_llava import assert_close
from transformers import Gemma2Config, Gemma2ForCausalLM

from astrollava_jax.models import gemma2

SHAPE = {
    "head_dim": 16, "num_hidden_layers": 4, "sliding_window": 5, "query_pre_attn_scalar": 24,
    "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
}  # fmt: skip
OURS = {
    "head_dim": 16, "num_layers": 4, "window": 5, "query_scale": 24.0, "attention_softcap": 2.0,
    "logits_softcap": 3.0, "norm_eps": 1e-6, "tie_embeddings": True,
}  # fmt: skip


def test_gemma_2_equals_that_of_transformers(tmp_path):
    model = families.torch_model(Gemma2Config(**families.DECODER | SHAPE))
    ours = families.on(gemma2.Gemma2Config(**families.OURS | OURS))
    families.assert_equal_to_transformers(model, tmp_path, ours, capped=3.0)


def test_the_cap_is_that_of_the_decoder_alone():
    torch.manual_seed(0)
    theirs = Gemma2ForCausalLM(Gemma2Config(**families.DECODER | SHAPE)).eval()
    with torch.no_grad():
        theirs.model.embed_tokens.weight.mul_(50)
        logits = theirs(torch.arange(3, 15)[None]).logits.numpy()
        raw = theirs.lm_head(theirs.model(torch.arange(3, 15)[None]).last_hidden_state).numpy()
    assert np.abs(raw).max() > 4 and np.abs(logits).max() <= 3
    assert_close(3.0 * np.tanh(raw / 3.0), logits, "capped scores", 1e-6)
