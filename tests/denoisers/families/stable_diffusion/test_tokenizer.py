"""A tokenizer that cannot be used, and one that is not the text encoder's: told when it is loaded, in one line."""

from __future__ import annotations

import json

import pytest

from sharpaudit.denoisers.families.stable_diffusion.model import DiffusionTokenizer
from sharpaudit.denoisers.load import load_tokenizer
from sharpaudit.errors import UserError
from tests.support.models import model_at
from tests.support.tiny_models import edit_json, open_model


def refused(folder, said):
    """By the driver, which reads no weights, and by whoever loads the model."""
    for use in (open_model, lambda folder: load_tokenizer(model_at(folder))):
        with pytest.raises(UserError, match=said) as caught:
            use(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("merges.txt", b"#version: 0.2\nc\n", r"merges\.txt: line 2: two pieces with a space between"),
        ("merges.txt", b"#version: 0.2\nc a\nc a t\n", r"merges\.txt: line 3: two pieces with a space between"),
        ("merges.txt", b"#version: 0.2\nc a\n\nca t</w>\n", r"merges\.txt: line 3: two pieces"),
        ("merges.txt", b"#version: 0.2\nqq zz\n", r"merges\.txt: line 2: 'qq' is not in the vocabulary"),
        ("merges.txt", b"#version: 0.2\nc t\n", r"merges\.txt: line 2: 'ct' is not in the vocabulary"),
        ("merges.txt", b"c a\n\xff\xfe\n", r"merges\.txt: not UTF-8 text: .* at byte 4"),
        ("merges.txt", b"", r"merges\.txt is empty"),
        ("vocab.json", b'{"c": ', r"vocab\.json: not JSON"),
        ("vocab.json", b'["c"]', r"vocab\.json: holds a JSON list"),
        ("vocab.json", b'{"c": 1.5}', r"vocab\.json: c has the id 1\.5"),
        ("vocab.json", b'{"c": -1}', r"vocab\.json: c has the id -1"),
        ("vocab.json", b'{"c": 4294967296}', r"vocab\.json: c has the id 4294967296"),
        ("vocab.json", b'{"c": 0, "a": 1}', r"merges\.txt: line 2: 'ca' is not in the vocabulary"),
        ("tokenizer.json", b"{", r"tokenizer\.json: not JSON"),
        ("tokenizer.json", b"{}", r"tokenizer\.json: model = None: a BPE model is expected"),
        ("tokenizer.json", b'{"model": 3}', r"tokenizer\.json: model = 3"),
        ("tokenizer.json", b'{"model": {"type": "WordPiece"}}', r"model = 'WordPiece': a BPE model"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {}}}', "vocab and merges are expected"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": "b"}, "merges": []}}', "a has the id 'b'"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": 0}, "merges": ["a"]}}', r"model\.merges 0: two pieces"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": 0}, "merges": [["a", "a"]]}}', "'aa' is not in the vocabulary"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": 0}, "merges": []}}', "cannot be loaded as CLIPTokenizer"),
        ("special_tokens_map.json", b"[1]", r"special_tokens_map\.json: holds a JSON list"),
        ("added_tokens.json", b"<html>", r"added_tokens\.json: not JSON"),
        ("added_tokens.json", b'{"new": "first"}', "gives 'new' the id 516"),
        ("tokenizer_config.json", b"\xff", "tokenizer_config.json: not JSON"),
    ],
)
def test_a_tokenizer_that_cannot_be_parsed_is_one_line(folder, name, content, said):
    (folder / "tokenizer" / name).write_bytes(content)
    refused(folder, said)


def more_words(folder):
    vocabulary = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary | {"dog</w>": 9999}))


def added_token(folder):
    n = len(json.loads((folder / "tokenizer" / "vocab.json").read_text()))
    (folder / "tokenizer" / "added_tokens.json").write_text(json.dumps({"<sks>": n}))


def settings(**changes):
    return lambda folder: edit_json(folder / "tokenizer" / "tokenizer_config.json", **changes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (more_words, r"gives 'dog</w>' the id 9999, the text encoder has embeddings for ids below 516"),
        (added_token, r"gives '<sks>' the id 516, the text encoder has embeddings for ids below 516"),
        (settings(pad_token="[PAD]"), r"gives '\[PAD\]' the id 516"),
        (settings(bos_token="[START]"), r"gives '\[START\]' the id 516"),
        (settings(additional_special_tokens=["<a>", "<b>"]), "gives '<b>' the id 517"),
        (settings(added_tokens_decoder={"516": {"content": "<a>"}}), "gives '<a>' the id 516"),
        (settings(unk_token="[UNK]"), r"unk_token '\[UNK\]' is not in its vocabulary"),
        (settings(model_max_length=77), "gives 77 tokens, the text encoder takes 16"),
    ],
)
def test_a_token_that_the_text_encoder_has_no_place_for_is_found_at_load(folder, change, said):
    change(folder)
    refused(folder, said)


def test_a_text_encoder_with_a_smaller_vocabulary_is_found_without_its_weights(folder):
    edit_json(folder / "text_encoder" / "config.json", vocab_size=515)
    with pytest.raises(UserError, match=r"'<\|endoftext\|>' the id 515, .* below 515"):
        load_tokenizer(model_at(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab": "../vocab.json"},
        {"merges": "/merges.txt"},
        {"init_inputs": ["/vocab.json", "/merges.txt"]},
        {"fast_tokenizer_files": ["tokenizer.4.0.json"]},
    ],
)
def test_a_tokenizer_that_names_other_files_is_refused(folder, changes):
    edit_json(folder / "tokenizer" / "tokenizer_config.json", **changes)
    refused(folder, rf"tokenizer_config\.json: {next(iter(changes))} = ")


@pytest.mark.parametrize("name", ["tokenizer.model", "tekken.json", "tiktoken.model"])
def test_a_vocabulary_that_some_loaders_prefer_is_refused(folder, name):
    (folder / "tokenizer" / name).write_bytes(b"\0")
    refused(folder, f"tokenizer/{name}: some loaders read it in place of vocab.json")


def test_the_settings_of_published_tokenizers_are_read(folder):
    """Those of Stable Diffusion 1, with tokens as objects and names of files and folders that were there once."""
    before = DiffusionTokenizer(folder).tokens(["a cat", ""])
    token = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    end = token | {"content": "<|endoftext|>"}
    edit_json(
        folder / "tokenizer" / "tokenizer_config.json",
        add_prefix_space=False,
        bos_token=token | {"content": "<|startoftext|>"},
        do_lower_case=True,
        eos_token=end,
        errors="replace",
        name_or_path="openai/clip-vit-large-patch14",
        pad_token="<|endoftext|>",
        special_tokens_map_file="./special_tokens_map.json",
        tokenizer_class="CLIPTokenizer",
        unk_token=end,
    )
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer" / "special_tokens_map.json").write_text(json.dumps(marks | {"unk_token": "<|endoftext|>"}))
    assert load_tokenizer(model_at(folder)).tokens(["a cat", ""]) == before
