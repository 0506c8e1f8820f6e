"""Reading a GGUF file: any quantisation the `gguf` package can undo, and its byte-level BPE as a tokenizer.json.

The llama architecture's files already hold query and key rows as interleaved pairs; those of Qwen2 do not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.convert.errors import ConvertError
from foveal.convert.source import LlamaShape, Source, TextSide, interleaved, rotary_frequencies

_HALVES = ("qwen2",)
"""Architectures whose files keep the halves of a rotary pair apart."""

_NAMES = {
    "attn_norm": "attn_norm", "attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_output": "o", "ffn_norm": "ffn_norm",
    "ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down",
}  # fmt: skip
_GLOBAL = {"token_embd.weight": "embed", "output_norm.weight": "norm", "output.weight": "head"}
_SPLITS: Mapping[str, str | None] = {
    "smollm": None,
    "gpt-2": "",
    "default": "",
    "llama-bpe": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ),
}
"""How text is cut before the byte pairs are merged, by the name in the file. "": as GPT-2; None: digits one by one,
then as GPT-2."""
_CONTROL = (2, 3)  # token types that llama.cpp calls unknown and control
_USER_DEFINED = 4


def read_gguf(path: Path) -> Source:
    """The model in a GGUF file. Raises `ConvertError` naming what is missing or does not fit."""
    reader = _opened(path)
    fields = _Fields(reader)
    kind = fields.text("general.architecture")
    if kind not in ("llama", *_HALVES):
        raise ConvertError(
            f"the file's architecture is {kind!r}; what can be converted is llama and {', '.join(_HALVES)}"
        )
    stored = {tensor.name: tensor for tensor in reader.tensors}
    places = _places(path, stored, int(fields.need(f"{kind}.block_count")))
    shape = _shape(fields, kind, stored)

    def tensor(name: str) -> Tensor:
        from gguf import dequantize

        found = stored[places.get(name, places["embed"])] if name == "head" else stored[places[name]]
        matrix = torch.from_numpy(np.array(dequantize(found.data, found.tensor_type), dtype=np.float32))
        if kind in _HALVES and name.endswith((".q", ".k")):
            return interleaved(matrix, shape.heads if name.endswith(".q") else shape.groups)
        return matrix

    name = str(fields.get("general.name") or path.stem)
    facts = (path.name, path.stat().st_size, path.stat().st_mtime_ns)
    identity = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    text = TextSide(_tokenizer(fields), fields.get("tokenizer.chat_template"))
    return Source(name, shape, tensor, text, identity, fields.get("general.license"))


def _opened(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ConvertError("GGUF files need the package gguf: pip install 'foveal[convert]'") from error
    try:
        return GGUFReader(path)
    except (IndexError, KeyError, OverflowError) as error:  # of a place, or a kind, that there is not
        raise ConvertError(f"cannot read {path}: it is damaged, or cut off; fetch it again ({error})") from error
    except (OSError, ValueError) as error:
        raise ConvertError(f"cannot read {path}: {error}") from error


class _Fields:
    """The key-value part of a file."""

    def __init__(self, reader: Any) -> None:
        self._fields = reader.fields

    def get(self, name: str) -> Any:
        field = self._fields.get(name)
        return None if field is None else field.contents()

    def need(self, name: str) -> Any:
        value = self.get(name)
        if value is None:
            raise ConvertError(f"the GGUF file has no field {name!r}")
        return value

    def text(self, name: str) -> str:
        return str(self.need(name))


def _shape(fields: _Fields, kind: str, stored: Mapping[str, Any]) -> LlamaShape:
    hidden, heads = int(fields.need(f"{kind}.embedding_length")), int(fields.need(f"{kind}.attention.head_count"))
    head_dim = int(fields.get(f"{kind}.attention.key_length") or hidden // heads)
    theta = float(fields.get(f"{kind}.rope.freq_base") or 10000.0)
    scaling = fields.get(f"{kind}.rope.scaling.type")
    if scaling not in (None, "none", "linear"):
        raise ConvertError(f"its rotary scaling is {scaling!r}; none and linear can be read from a GGUF file")
    if int(fields.get(f"{kind}.rope.dimension_count") or head_dim) != head_dim:
        raise ConvertError("it does not fit V4: only a part of each head turns (rope.dimension_count)")
    factor = float(fields.get(f"{kind}.rope.scaling.factor") or 1.0) if scaling == "linear" else 1.0
    frequencies = np.array(rotary_frequencies(head_dim, theta)) / factor
    if "rope_freqs.weight" in stored:  # Llama 3's scaling, as divisors
        frequencies = frequencies / np.array(stored["rope_freqs.weight"].data, dtype=np.float64)
    return LlamaShape(
        vocab_size=len(fields.need("tokenizer.ggml.tokens")),
        hidden_size=hidden,
        layers=int(fields.need(f"{kind}.block_count")),
        heads=heads,
        groups=int(fields.get(f"{kind}.attention.head_count_kv") or heads),
        head_dim=head_dim,
        intermediate_size=int(fields.need(f"{kind}.feed_forward_length")),
        rms_norm_eps=float(f"{fields.need(f'{kind}.attention.layer_norm_rms_epsilon'):.6g}"),
        rope_theta=theta,
        frequencies=tuple(frequencies.tolist()),
        context=int(fields.need(f"{kind}.context_length")),
        bos_token_id=fields.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=int(fields.need("tokenizer.ggml.eos_token_id")),
    )


def _places(path: Path, stored: Mapping[str, Any], layers: int) -> dict[str, str]:
    places = {ours: theirs for theirs, ours in _GLOBAL.items() if theirs in stored}
    known = {"rope_freqs.weight", *places.values()}
    for layer in range(layers):
        for theirs, ours in _NAMES.items():
            name = f"blk.{layer}.{theirs}.weight"
            if name in stored:
                places[f"{layer}.{ours}"] = name
                known.add(name)
    strange = [name for name in stored if name not in known]
    if strange:
        raise ConvertError(f"it does not fit V4: there is no place for {', '.join(strange[:3])} of {path.name}")
    wanted = ["embed", "norm", *(f"{i}.{name}" for i in range(layers) for name in _NAMES.values())]
    missing = [name for name in wanted if name not in places]
    if missing:
        raise ConvertError(f"weights are missing in {path}: {', '.join(missing[:3])}")
    return places


# ---------------------------------------------------------------------- tokenizer


def _tokenizer(fields: _Fields) -> str:
    """The file's tokenizer as the content of a tokenizer.json."""
    model, cut = fields.text("tokenizer.ggml.model"), str(fields.get("tokenizer.ggml.pre") or "default")
    if model != "gpt2" or cut not in _SPLITS:
        raise ConvertError(
            f"its tokenizer is {model!r} cut as {cut!r}; byte-level BPE (gpt2) cut as {', '.join(_SPLITS)} can be read"
        )
    tokens, kinds = fields.need("tokenizer.ggml.tokens"), fields.need("tokenizer.ggml.token_type")
    added = [
        {"id": id_, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": kind in _CONTROL}
        for id_, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (*_CONTROL, _USER_DEFINED)
    ]  # fmt: skip
    merges = [merge.split(" ", 1) for merge in fields.need("tokenizer.ggml.merges")]
    definition = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _cuts(_SPLITS[cut])},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {token: id_ for id_, token in enumerate(tokens)}, "merges": merges},
    }
    return json.dumps(definition, ensure_ascii=False)


def _cuts(pattern: str | None) -> list[dict[str, Any]]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": not pattern}
    if pattern is None:
        return [{"type": "Digits", "individual_digits": True}, byte_level]
    if not pattern:
        return [byte_level]
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [split, byte_level]
