"""Tokenizers of ten words, for checkpoints whose weights know no words at all."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ["a", "cat", "dog", "surfing", "sleeping", "on", "the", "sea", "red", "blurry"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {word: index + 3 for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=10**30
    )


def write_umt5_like(folder: Path) -> None:
    """tokenizer.json and its configuration as published umT5 folders have them, with a few dozen words.

    Unigram with bytes for what has no token (`<0x00>` is 4), `<unk>` 3, an end token; the configuration names
    T5Tokenizer, a class that rebuilds the tokenizer without the bytes and with another unknown token.
    """
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    vocabulary += [("▁", -3.0), *((f"▁{word}", -4.0) for word in WORDS)]
    vocabulary += [(letter, -8.0) for letter in "abcdefghijklmnopqrstuvwxyz,.&'-猫é"]
    made = Tokenizer(models.Unigram(vocabulary, unk_id=3, byte_fallback=True))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    made.add_special_tokens([AddedToken(token, normalized=False) for token in ("<pad>", "</s>", "<s>", "<unk>")])
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "extra_ids": 0, "model_max_length": 10**30}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
