"""Tensor names: the official ones, and those of Hugging Face transformers.

Three spellings are in use. The official release says ``layers.0.attn.kv_norm.weight``; the modules of transformers say
``model.layers.0.self_attn.kv_norm.weight``; and what transformers 5 *saves* is a mixture
(``model.layers.0.attn.norm.weight``), because it applies its load-time renames backwards. `official_name` takes any of
them to the official one; no name means two things.
"""

from __future__ import annotations

import re

_TO_OFFICIAL = [
    (r"^model\.", ""),
    (r"^embed_tokens\.", "embed."),
    (r"^lm_head\.", "head."),
    (r"^hc_head\.hc_", "hc_head_"),
    (r"\.self_attn\.", ".attn."),
    (r"\.mlp\.", ".ffn."),
    (r"\.input_layernorm\.", ".attn_norm."),
    (r"\.post_attention_layernorm\.", ".ffn_norm."),
    (r"\.(attn|ffn)_hc\.", r".hc_\1_"),
    (r"\.sinks$", ".attn_sink"),
    (r"\.compressor\.indexer\.scorer\.weights_proj\.", ".indexer.weights_proj."),
    (r"\.compressor\.indexer\.q_b_proj\.", ".indexer.wq_b."),
    (r"\.compressor\.indexer\.", ".indexer.compressor."),
    (r"\.position_bias$", ".ape"),
    (r"\.compressor\.kv_norm\.", ".compressor.norm."),
    (r"\.attn\.norm\.", ".attn.kv_norm."),
    (r"\.q_a_norm\.", ".q_norm."),
    (r"\.q_a_proj\.", ".wq_a."),
    (r"\.q_b_proj\.", ".wq_b."),
    (r"\.kv_proj\.", ".wkv."),
    (r"\.compressor\.gate_proj\.", ".compressor.wgate."),
    (r"\.o_a_proj\.", ".wo_a."),
    (r"\.o_b_proj\.", ".wo_b."),
    (r"\.gate\.e_score_correction_bias$", ".gate.bias"),
    (r"\.shared_experts\.gate_proj\.", ".shared_experts.w1."),
    (r"\.shared_experts\.down_proj\.", ".shared_experts.w2."),
    (r"\.shared_experts\.up_proj\.", ".shared_experts.w3."),
]

_TO_TRANSFORMERS = [
    (r"^hc_head_", "hc_head.hc_"),
    (r"^embed\.", "embed_tokens."),
    (r"\.(?:hc_attn)_", ".attn_hc."),
    (r"\.(?:hc_ffn)_", ".ffn_hc."),
    (r"\.attn_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
    (r"\.attn_sink$", ".sinks"),
    (r"\.attn\.", ".self_attn."),
    (r"\.ffn\.", ".mlp."),
    (r"\.indexer\.compressor\.", ".compressor.indexer."),
    (r"\.indexer\.weights_proj\.", ".compressor.indexer.scorer.weights_proj."),
    (r"\.self_attn\.indexer\.wq_b\.", ".self_attn.compressor.indexer.q_b_proj."),
    (r"\.(compressor|indexer)\.norm\.", r".\1.kv_norm."),
    (r"\.ape$", ".position_bias"),
    (r"\.q_norm\.", ".q_a_norm."),
    (r"\.wq_a\.", ".q_a_proj."),
    (r"\.wq_b\.", ".q_b_proj."),
    (r"\.wkv\.", ".kv_proj."),
    (r"\.wgate\.", ".gate_proj."),
    (r"\.wo_a\.", ".o_a_proj."),
    (r"\.wo_b\.", ".o_b_proj."),
    (r"\.gate\.bias$", ".gate.e_score_correction_bias"),
    (r"\.shared_experts\.w1\.", ".shared_experts.gate_proj."),
    (r"\.shared_experts\.w2\.", ".shared_experts.down_proj."),
    (r"\.shared_experts\.w3\.", ".shared_experts.up_proj."),
]

_OFFICIAL_RULES = [(re.compile(pattern), new) for pattern, new in _TO_OFFICIAL]
_TRANSFORMERS_RULES = [(re.compile(pattern), new) for pattern, new in _TO_TRANSFORMERS]

# An expert's name is by far the most frequent one, and is spelled alike in the official and the saved form.
_EXPERT = re.compile(r"^(?:model\.)?((?:layers|mtp)\.\d+\.ffn\.experts\.\d+\.w[123]\.(?:weight|scale))$")


def official_name(name: str) -> str:
    """Any accepted spelling -> the official one. Names it does not know come back changed little or not at all.

    The fused experts of transformers' modules become ``layers.N.ffn.experts.gate_up_proj`` and ``.down_proj``.
    """
    expert = _EXPERT.match(name)
    if expert:
        return expert[1]
    for pattern, new in _OFFICIAL_RULES:
        name = pattern.sub(new, name)
    return name


def transformers_name(name: str) -> str:
    """The official name of any weight but a routed expert's -> its name in transformers' ``state_dict()``."""
    for pattern, new in _TRANSFORMERS_RULES:
        name = pattern.sub(new, name)
    return "lm_head.weight" if name == "head.weight" else f"model.{name}"


def is_transformers_name(name: str) -> bool:
    """Whether `name` is spelled as transformers spells or saves it."""
    return name.startswith(("model.", "lm_head."))
