"""Train the nano's tokenizer: byte-level BPE with DeepSeek-V4's rules and exactly 4096 entries.

The pre-tokeniser and the control tokens are V4's own, so that everything written for the official tokenizer works on
the small one. The vocabulary is laid out as in the official file: ids 0 to 2 are BOS, EOS and padding, then 256 bytes
and the merges, and the other control tokens are the last 16 ids (4080 to 4095).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from foveal.text.specials import BOS, EOS, FIRST_SPECIALS, LAST_SPECIALS, PAD, PRETOKENISER_PATTERNS, RECALL_BLANKS

NANO_VOCAB_SIZE = 4096
NANO_BLANKS = 36
"""As far back as the structured start looks (`foveal.train.structured`)."""


def train_nano_tokenizer(texts: Iterator[str], vocab_size: int = NANO_VOCAB_SIZE) -> Tokenizer:
    """A byte-level BPE tokenizer with `vocab_size` entries, control tokens included, learned from `texts`.

    The same texts in the same order give the same tokenizer. Raises `ValueError` if the texts are too few to fill
    the vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRETOKENISER_PATTERNS]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    base = vocab_size - len(LAST_SPECIALS)
    trainer = trainers.BpeTrainer(
        vocab_size=base,
        special_tokens=[_added(token) for token in FIRST_SPECIALS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != base:
        raise ValueError(f"the texts gave only {tokenizer.get_vocab_size()} of {base} entries; give more text")
    tokenizer.add_tokens([_added(token) for token in LAST_SPECIALS])
    return tokenizer


def save_nano_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` (Hugging Face form) into `folder`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_whole(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    config = {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": BOS,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS,
        RECALL_BLANKS: NANO_BLANKS,
        "model_max_length": 1048576,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    _write_whole(folder / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=2) + "\n")


def _added(token: str) -> AddedToken:
    return AddedToken(token, special=token in FIRST_SPECIALS, normalized=False)


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
