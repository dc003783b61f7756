"""What several files of tests of `data` start from: a record set, and tokenizers."""

import json

import llava_words
import pytest
from small_set import numbered

from astrollava_jax.data import tfrecord
from astrollava_jax.data.tokenizer import Tokenizer


@pytest.fixture
def folder(tmp_path):
    """A set of seven examples in three shards."""
    tfrecord.write_set(
        tmp_path / "train", numbered(7), name="sky", split="train", records_per_shard=3
    )
    return tmp_path / "train"


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes (and keeps) our tokenizer and the slow one of a SentencePiece model."""
    made = {}

    def make_both(name, legacy, *added):
        key = (name, legacy, added)
        if key not in made:
            content = llava_words.model_bytes(name)
            start = llava_words.SlowLlama(content, legacy).model.vocab_size()
            ids = {literal: start + number for number, literal in enumerate(added)}
            folder = tmp_path_factory.mktemp("model")
            (folder / "tokenizer.model").write_bytes(content)
            config = {
                "legacy": legacy,
                "added_tokens_decoder": {str(i): {"content": text} for text, i in ids.items()},
            }
            (folder / "tokenizer_config.json").write_text(json.dumps(config))
            slow = llava_words.SlowLlama(content, legacy, ids)
            made[key] = (Tokenizer.from_folder(folder), slow)
        return made[key]

    return make_both
