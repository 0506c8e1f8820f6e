"""Reading a Hugging Face folder: config.json, safetensors, tokenizer.json, chat template.

Nothing of a model is left out in silence. A field of the config that means another network, and every tensor that the
converter has no place for, is named in the refusal.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from foveal.convert.errors import ConvertError
from foveal.convert.source import LlamaShape, Source, TextSide, interleaved, rotary_frequencies

KINDS = ("llama", "mistral", "qwen2", "qwen3")
"""Values of `model_type` that are of the Llama kind, so far as their biases and norms allow."""

_NAMES = {
    "input_layernorm.weight": "attn_norm",
    "post_attention_layernorm.weight": "ffn_norm",
    "self_attn.q_proj.weight": "q",
    "self_attn.k_proj.weight": "k",
    "self_attn.v_proj.weight": "v",
    "self_attn.o_proj.weight": "o",
    "mlp.gate_proj.weight": "gate",
    "mlp.up_proj.weight": "up",
    "mlp.down_proj.weight": "down",
}
_GLOBAL = {"model.embed_tokens.weight": "embed", "model.norm.weight": "norm", "lm_head.weight": "head"}
_LAYER = re.compile(r"^model\.layers\.(\d+)\.(.+)$")
_HARMLESS = re.compile(r"rotary_emb\.inv_freq$|attn\.bias$|attn\.masked_bias$")


def read_folder(folder: Path) -> Source:
    """The model in `folder`. Raises `ConvertError` naming what is missing or does not fit."""
    config = _json(folder / "config.json")
    shape = _shape(config)
    files = _files(folder)
    places = _places(folder, files, shape.layers)
    tied = bool(config.get("tie_word_embeddings")) or "head" not in places

    def tensor(name: str) -> Tensor:
        file, stored = places["embed" if name == "head" and tied else name]
        with safe_open(file, framework="pt") as opened:
            matrix = opened.get_tensor(stored).to(torch.float32)
        if name.endswith(".q"):
            return interleaved(matrix, shape.heads)
        return interleaved(matrix, shape.groups) if name.endswith(".k") else matrix

    return Source(
        folder.resolve().name, shape, tensor, _text(folder), _identity([folder / "config.json", *files]),
        config.get("license"),
    )  # fmt: skip


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConvertError(f"cannot read {path}: {error}") from error
    if not isinstance(data, dict):
        raise ConvertError(f"cannot read {path}: it must be a JSON object")
    return data


# ---------------------------------------------------------------------- config.json


def _shape(config: Mapping[str, Any]) -> LlamaShape:
    _refuse(config)
    try:
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        head_dim = int(config.get("head_dim") or hidden // heads)
        rope = _rope_settings(config)
        theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
        ends = config["eos_token_id"]
        uses_window = config.get("use_sliding_window", True)
        return LlamaShape(
            vocab_size=int(config["vocab_size"]),
            hidden_size=hidden,
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            groups=int(config.get("num_key_value_heads") or heads),
            head_dim=head_dim,
            intermediate_size=int(config["intermediate_size"]),
            rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope_theta=theta,
            frequencies=_frequencies(rope, head_dim, theta),
            context=int(config.get("max_position_embeddings", 2048)),
            window=config.get("sliding_window") if uses_window else None,
            bos_token_id=config.get("bos_token_id"),
            eos_token_id=int(ends[0] if isinstance(ends, list) else ends),
        )
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise ConvertError(f"config.json lacks a number, or has a wrong one: {error!r}") from error


def _refuse(config: Mapping[str, Any]) -> None:
    kind = config.get("model_type")
    if kind not in KINDS:
        raise ConvertError(f"model_type is {kind!r}; what can be converted is {', '.join(KINDS)}")
    problems = []
    for name in ("attention_bias", "mlp_bias"):
        if config.get(name):
            problems.append(f"{name} is true (V4's matrices have no biases)")
    if kind == "qwen3":
        problems.append("Qwen3 norms every key group by itself (k_norm; V4 has one norm for keys and values together)")
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        problems.append(f"hidden_act is {config['hidden_act']!r} (V4's experts are SwiGLU: silu)")
    if config.get("partial_rotary_factor", 1.0) != 1.0:
        problems.append("partial_rotary_factor is not 1 (whole heads must turn)")
    if problems:
        raise ConvertError("it does not fit V4: " + "; ".join(problems))


def _rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _frequencies(rope: Mapping[str, Any], head_dim: int, theta: float) -> tuple[float, ...]:
    plain = rotary_frequencies(head_dim, theta)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return plain
    if kind == "linear":
        return tuple(value / float(rope["factor"]) for value in plain)
    if kind == "llama3":
        return tuple(_llama3(value, rope) for value in plain)
    raise ConvertError(f"its rotary scaling is {kind!r}; default, linear and llama3 can be converted")


def _llama3(frequency: float, rope: Mapping[str, Any]) -> float:
    """Llama 3's scaling: slow pairs divided by `factor`, a smooth passage between two wavelengths."""
    factor, low, high = float(rope["factor"]), float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    turns = float(rope["original_max_position_embeddings"]) * frequency / (2 * math.pi)
    smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
    return frequency * (smooth + (1 - smooth) / factor)


# ---------------------------------------------------------------------- tensors


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [folder / name for name in sorted(set(_json(index).get("weight_map", {}).values()))]
    single = folder / "model.safetensors"
    if not single.is_file():
        raise ConvertError(f"there is no model.safetensors in {folder}, nor an index of several")
    return [single]


def _places(folder: Path, files: list[Path], layers: int) -> dict[str, tuple[Path, str]]:
    """Our name -> file and name there. Refuses tensors that have no place, and names what is missing."""
    places: dict[str, tuple[Path, str]] = {}
    strange: list[str] = []
    for file in files:
        for stored in _names_in(file):
            name = _our_name(stored)
            if name is not None:
                places[name] = (file, stored)
            elif not _HARMLESS.search(stored):
                strange.append(stored)
    if strange:
        raise ConvertError(f"it does not fit V4: there is no place for {_some(strange)}")
    wanted = ["embed", "norm", *(f"{i}.{name}" for i in range(layers) for name in _NAMES.values())]
    missing = [name for name in wanted if name not in places]
    if missing:
        raise ConvertError(f"weights are missing in {folder}: {_some(missing)}")
    return places


def _names_in(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise ConvertError(f"cannot read {file}: {error}") from error


def _our_name(stored: str) -> str | None:
    match = _LAYER.match(stored)
    if match is None:
        return _GLOBAL.get(stored)
    name = _NAMES.get(match[2])
    return None if name is None else f"{int(match[1])}.{name}"


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest


def _identity(files: list[Path]) -> str:
    """A hash over names, sizes and times: cheap, and another file has another one."""
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


# ---------------------------------------------------------------------- text


def _text(folder: Path) -> TextSide:
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise ConvertError(f"there is no tokenizer.json in {folder}; save the model's fast tokenizer there")
    template = folder / "chat_template.jinja"
    if template.is_file():
        return TextSide(tokenizer.read_text(encoding="utf-8"), template.read_text(encoding="utf-8"))
    settings = folder / "tokenizer_config.json"
    chat = _json(settings).get("chat_template") if settings.is_file() else None
    return TextSide(tokenizer.read_text(encoding="utf-8"), chat if isinstance(chat, str) else None)
