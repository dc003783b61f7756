"""Ids equal sentencepiece's, in our hands and in those of stock transformers."""

import json
import pickle

import llava_words
import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Rust
from transformers import AutoTokenizer

from astrollava_jax.data.sentencepiece_json import tokenizer_json
from astrollava_jax.data.tokenizer import Tokenizer

PROBES = [
    "The  galaxy",
    "  two spaces first, one last ",
    "ends with a literal </s>",
    "<s><image> <unk> </s></s>",
    "\nWhat is this?",
    "NGC 4321 = M100, 1.5e7 pc; e\u0301 \u00e9 \u65e5\u672c \U0001f30c\U0001f468\u200d\U0001f680",
    "▁literally▁ \t\x00<0x0A>\u00a0\u200b",
    " " * 37 + "=" * 20 + "\n\n\n" + "_" * 9,
    "",
    " ",
]
PROMPTS = [
    "USER: <image>\nWhat is shown in this image? ASSISTANT:",
    "USER: <image>\nWhat? ASSISTANT: A ring.</s>USER: Sure?  Look</s>\n again</s>",
    "</s>begins special",
    " begins with a space",
    "",
]


def write(folder, content, **config):
    (folder / "tokenizer.model").write_bytes(content)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(
    scope="module",
    params=[
        ("small", True),
        ("small", False),
        pytest.param(("llama2.model", True), marks=llava_words.needs_tokenizers),
        pytest.param(("llama2.model", False), marks=llava_words.needs_tokenizers),
        pytest.param(("mistral-v1.model", True), marks=llava_words.needs_tokenizers),
        pytest.param(("mistral-v3.model", False), marks=llava_words.needs_tokenizers),
    ],
    ids=lambda param: f"{param[0]}-{'legacy' if param[1] else 'new'}",
)
def both(request, tmp_path_factory):
    """Our tokenizer, and the slow one of LLaVA's time."""
    name, legacy = request.param
    content = llava_words.model_bytes(name)
    folder = write(tmp_path_factory.mktemp("model"), content, legacy=legacy)
    return Tokenizer.from_folder(folder), llava_words.SlowLlama(content, legacy)


def test_text_gets_the_ids_of_sentencepiece(both):
    tokenizer, slow = both
    for probe in PROBES:
        assert tokenizer.encode(probe)[0] == slow.first_stretch(probe), probe
        assert tokenizer.encode(probe, first=False)[0] == slow.stretch(probe), probe


def test_spans_cover_the_text(both):
    tokenizer, _ = both
    for probe in PROBES:
        ids, spans = tokenizer.encode(probe)
        assert len(ids) == len(spans)
        assert all(start < end for start, end in spans)
        assert set().union(*(range(*span) for span in spans)) >= set(range(len(probe)))
        assert spans == sorted(spans)


def test_bytes_of_one_character_share_its_span(tmp_path):
    tokenizer = Tokenizer.from_folder(write(tmp_path, llava_words.small_model()))
    ids, spans = tokenizer.encode("a \U0001f30c", first=False)
    assert [spans[-4:], tokenizer.decode(ids)] == [[(2, 3)] * 4, "a \U0001f30c"]


def test_stock_transformers_gives_llavas_ids_from_the_written_files(both, tmp_path):
    tokenizer, slow = both
    for name, file in tokenizer.files().items():
        (tmp_path / name).write_bytes(file)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for prompt in PROMPTS:
        expected = [tokenizer.image_id if i == -200 else i for i in slow.with_images(prompt)]
        assert theirs(prompt).input_ids == expected, prompt
        assert tokenizer.encode_prompt(prompt) == expected, prompt
    assert (theirs.pad_token_id, theirs.eos_token_id) == (tokenizer.pad_id, tokenizer.eos_id)
    assert theirs.image_token == "<image>"
    again = Tokenizer.from_folder(tmp_path)
    assert again.fingerprint() == tokenizer.fingerprint()
    assert again.files() == tokenizer.files()
    assert (tokenizer.extended, again.extended) == (True, False)


@llava_words.needs_tokenizers
def test_image_and_pad_take_the_next_ids_as_in_llava_hf(tmp_path):
    vicuna = {"legacy": False, "add_bos_token": True, "pad_token": None}
    write(tmp_path, llava_words.model_bytes("llama2.model"), **vicuna)
    llama = Tokenizer.from_folder(tmp_path)
    assert (llama.image_id, llama.pad_id, llama.vocab_size) == (32000, 32001, 32002)
    assert (llama.bos_id, llama.eos_id, llama.adds_bos) == (1, 2, True)
    assert [llama.special_id("</s>"), llama.special_id("<pad>")] == [2, 32001]
    assert llama.encode_prompt("USER: <image>\nWhat is shown in this image? ASSISTANT:") == [
        *(1, 3148, 1001, 29901, 29871, 32000, 29871, 13, 5618, 338, 4318, 297, 445, 1967),
        *(29973, 319, 1799, 9047, 13566, 29901),
    ]


@llava_words.needs_tokenizers
@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("llama2.model", [15043, 3186]),
        ("mistral-v1.model", [22557, 1526]),
        ("mistral-v3.model", [23325, 2294]),
    ],
)
def test_hello_world(name, ids, tmp_path):
    tokenizer = Tokenizer.from_folder(write(tmp_path, llava_words.model_bytes(name)))
    assert tokenizer.encode("Hello world") == (ids, [(0, 5), (5, 11)])


def test_a_pad_that_the_folder_names_is_kept(tmp_path):
    write(tmp_path, llava_words.small_model())
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"pad_token": {"content": "<unk>"}, "eos_token": "</s>"})
    )
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.pad_id, tokenizer.image_id, tokenizer.vocab_size) == (0, 430, 431)


def test_a_pad_that_repeats_another_token_by_its_id_is_none(tmp_path):
    write(tmp_path, llava_words.small_model())
    (tmp_path / "config.json").write_text(json.dumps({"pad_token_id": 0, "eos_token_id": 2}))
    assert Tokenizer.from_folder(tmp_path).pad_id == 431


def test_older_additions_are_read(tmp_path):
    write(tmp_path, llava_words.small_model())
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": 431, "<image>": 430}))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.image_id, tokenizer.pad_id, tokenizer.vocab_size) == (430, 431, 432)


def test_it_travels_to_a_worker(tmp_path):
    tokenizer = Tokenizer.from_folder(write(tmp_path, llava_words.small_model(), legacy=False))
    copied = pickle.loads(pickle.dumps(tokenizer))
    for first in (True, False):
        assert copied.encode("a galaxy", first=first) == tokenizer.encode("a galaxy", first=first)
    assert copied.fingerprint() == tokenizer.fingerprint()


def words(vocabulary, **pre_tokenizer):
    """A vocabulary of whole words, where even a special token is a word."""
    rust = Rust(models.WordLevel(vocabulary, unk_token="<unk>"))
    rust.pre_tokenizer = pre_tokenizers.Metaspace(**pre_tokenizer)
    rust.decoder = decoders.Metaspace()
    return rust.to_str()


def test_a_special_word_in_a_text_is_an_unknown_word(tmp_path):
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 3, "▁a": 4, "▁</s>": 5, "b": 6}
    (tmp_path / "tokenizer.json").write_text(words(vocabulary, prepend_scheme="never"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    )
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("</s> a") == ([0, 4], [(0, 4), (4, 6)])
    assert (tokenizer.image_id, tokenizer.pad_id, tokenizer.adds_bos) == (3, 7, False)


def test_only_the_first_stretch_gets_a_space_from_metaspace(tmp_path):
    vocabulary = {"<unk>": 0, "</s>": 1, "▁a": 2, "a": 3}
    (tmp_path / "tokenizer.json").write_text(words(vocabulary, prepend_scheme="first"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("a a")[0] == [2, 2]
    assert tokenizer.encode("a a", first=False)[0] == [3, 2]
    assert tokenizer.bos_id is None


def test_a_vocabulary_that_cannot_write_a_text_says_so(tmp_path):
    rust = Rust(models.BPE(vocab={"<": 0, ">": 1, "<>": 2}, merges=[("<", ">")]))
    rust.normalizer = normalizers.NFC()
    rust.add_special_tokens([AddedToken("<>", special=True)])
    (tmp_path / "tokenizer.json").write_text(rust.to_str())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<>"}))
    with pytest.raises(ValueError, match="holds <>, which this vocabulary can write only as"):
        Tokenizer.from_folder(tmp_path).encode("><>")


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected tokenizer.json or tokenizer.model"):
        Tokenizer.from_folder(tmp_path)


def test_a_missing_eos_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text(words({"<unk>": 0}))
    with pytest.raises(ValueError, match="no eos_token None"):
        Tokenizer.from_folder(tmp_path)


def test_added_tokens_with_a_gap_are_refused(tmp_path):
    write(tmp_path, llava_words.small_model())
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": 500}))
    with pytest.raises(ValueError, match=r"without a gap, found .*500.*would become .*430"):
        Tokenizer.from_folder(tmp_path)


def test_an_unknown_special_token_is_named(tmp_path):
    tokenizer = Tokenizer.from_folder(write(tmp_path, llava_words.small_model()))
    with pytest.raises(ValueError, match=r"expected the token <\|eot_id\|> .* found <unk>, <s>"):
        tokenizer.special_id("<|eot_id|>")


def test_a_tiktoken_file_is_no_sentencepiece_model():
    with pytest.raises(ValueError, match="expected a SentencePiece model"):
        tokenizer_json(b"IQ== 0\nIg== 1\nIw== 2\n", {})


def test_a_model_of_another_kind_is_refused_with_all_reasons():
    model = llava_words.sentencepiece_model_pb2.ModelProto.FromString(llava_words.small_model())
    model.trainer_spec.byte_fallback = False
    model.normalizer_spec.remove_extra_whitespaces = True
    with pytest.raises(ValueError, match="it has no byte fallback; it removes extra spaces"):
        tokenizer_json(model.SerializeToString(), {})
