"""Tiny random models of the Llama kind, as Hugging Face folders and GGUF files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.convert import Source
from foveal.convert.hugging_face import read_folder

END, BEGIN, OPEN = 2, 0, 1


def tokenizer_json(size: int) -> str:
    """Byte-level BPE: control tokens 0 to 2, all 256 bytes, merges of letters up to `size` tokens."""
    from foveal.text.tokenizer import _ALPHABET

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_ALPHABET]
    merges: list[list[str]] = []
    letters = "etaoinsrhl"
    for first in letters:
        for second in letters:
            if len(tokens) < size:
                merges.append([first, second])
                tokens.append(first + second)
    added = [
        {"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for i in range(3)
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocabulary = {token: i for i, token in enumerate(tokens)}
    definition: dict[str, Any] = {
        "version": "1.0", "added_tokens": added, "normalizer": None, "pre_tokenizer": byte_level,
        "post_processor": None, "decoder": byte_level, "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }  # fmt: skip
    return json.dumps(definition)


def llama_config(**changes: Any) -> dict[str, Any]:
    """A config.json of which every size is different."""
    config: dict[str, Any] = {
        "model_type": "llama", "vocab_size": 300, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 3, "head_dim": 8, "intermediate_size": 51, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 1024, "hidden_act": "silu", "tie_word_embeddings": False, "attention_bias": False,
        "bos_token_id": OPEN, "eos_token_id": END,
    }  # fmt: skip
    return config | changes


def transformers_source(config: dict[str, Any], seed: int) -> Any:
    """transformers' own model with random weights of the size that pretrained ones have."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    theirs = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in config.items() if k != "model_type"}))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * 1.2 * parameter.shape[-1] ** -0.5)
    return theirs.eval().requires_grad_(False)


def one_direction(theirs: Any, seed: int) -> None:
    """Make every group's key a multiple of the first group's at each frequency, so that one component has it all."""
    generator = torch.Generator().manual_seed(seed)
    config = theirs.config
    groups, half = config.num_key_value_heads, config.head_dim // 2
    with torch.no_grad():
        for layer in theirs.model.layers:
            weight = layer.self_attn.k_proj.weight
            first = torch.complex(*weight.view(groups, 2, half, -1)[0])
            factors = torch.randn(groups, half, dtype=torch.complex64, generator=generator)
            keys = factors[:, :, None] * first
            weight.copy_(torch.stack([keys.real, keys.imag], 1).flatten(0, 2))


def save_folder(theirs: Any, folder: Path, **changes: Any) -> Path:
    """A Hugging Face folder of `theirs`, with a tokenizer and a chat template."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous().clone() for name, tensor in theirs.state_dict().items()}
    data = theirs.config.to_dict() | {"model_type": "llama"} | changes
    if data["tie_word_embeddings"]:
        state.pop("lm_head.weight", None)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(data))
    (folder / "tokenizer.json").write_text(tokenizer_json(data["vocab_size"]))
    template = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


def save_gguf(theirs: Any, path: Path, **changes: Any) -> Path:
    """A GGUF file of `theirs` as llama.cpp's converter lays it out: rotary rows interleaved."""
    from gguf import GGUFWriter

    c = theirs.config
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(c.head_dim)
    writer.add_rope_freq_base(float(changes.get("rope_theta", _theta(c))))
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    definition = json.loads(tokenizer_json(c.vocab_size))
    tokens = sorted(definition["model"]["vocab"], key=definition["model"]["vocab"].__getitem__)
    writer.add_tokenizer_model(changes.get("tokenizer_model", "gpt2"))
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges([" ".join(pair) for pair in definition["model"]["merges"]])
    writer.add_bos_token_id(OPEN)
    writer.add_eos_token_id(END)
    for name, tensor in _gguf_tensors(theirs).items():
        writer.add_tensor(name, tensor.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _theta(config: Any) -> float:
    return float((config.rope_parameters or {}).get("rope_theta", 10000.0))


def _gguf_tensors(theirs: Any) -> dict[str, Tensor]:
    c, state = theirs.config, theirs.state_dict()
    found = {"token_embd.weight": state["model.embed_tokens.weight"], "output_norm.weight": state["model.norm.weight"]}
    if not c.tie_word_embeddings:
        found["output.weight"] = state["lm_head.weight"]
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for layer in range(c.num_hidden_layers):
        for name, short in names.items():
            tensor = state[f"model.layers.{layer}.{name}.weight"]
            heads = {"attn_q": c.num_attention_heads, "attn_k": c.num_key_value_heads}.get(short)
            if heads is not None:
                tensor = tensor.view(heads, 2, c.head_dim // 2, -1).transpose(1, 2).flatten(0, 2)
            found[f"blk.{layer}.{short}.weight"] = tensor.contiguous()
    return found


def random_source(folder: Path, seed: int = 0, **changes: Any) -> tuple[Any, Source]:
    """transformers' model, and the `Source` of its folder."""
    theirs = transformers_source(llama_config(**changes), seed)
    return theirs, read_folder(save_folder(theirs, folder))


def random_tokens(count: int, vocab: int, seed: int = 0) -> Tensor:
    """Tokens [count], the first one that which begins a text."""
    tokens = torch.randint(3, vocab, (count,), generator=torch.Generator().manual_seed(seed))
    tokens[0] = BEGIN
    return tokens


def some_text(folder: Path, files: int = 12) -> Path:
    """A folder of files of made-up words, enough to fit to and to measure on."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for number in range(files):
        words = ("".join(draw.choice(list("etaoinsrhl"), draw.integers(2, 9))) for _ in range(600))
        (folder / f"{number}.txt").write_text(" ".join(words))
    return folder
