"""Weights in and out of the network: names, storage formats, round trips, the MTP block."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.formats import Fp4Weight, Fp8Weight, Weight, dequantize, quantize_fp4, quantize_fp8
from helpers.networks import forward, logits, random_config, random_network, random_tokens, same_weight, tiny_config
from torch import Tensor

from foveal.config import ModelConfig, Numerics
from foveal.model import PlainState, Transformer, load_parameters, load_transformer, named_weights

STORED = tiny_config(
    hidden_size=160,
    moe_intermediate_size=32,
    n_routed_experts=3,
    n_shared_experts=2,
    num_nextn_predict_layers=1,
    compress_ratios=(0, 4, 128, 4, 0),
    linear_dtype="fp8",
    expert_dtype="fp4",
)


def _expected_names(config: ModelConfig) -> set[str]:
    """The official layout's names, block by block."""
    names = {"embed.weight", "head.weight", "norm.weight", "hc_head_fn", "hc_head_base", "hc_head_scale"}
    for layer, ratio in enumerate(config.compress_ratios):
        mtp = layer >= config.num_hidden_layers
        block = f"mtp.{layer - config.num_hidden_layers}" if mtp else f"layers.{layer}"
        parts = [f"hc_{site}_{kind}" for site in ("attn", "ffn") for kind in ("fn", "base", "scale")]
        parts += ["attn_norm.weight", "ffn_norm.weight", "attn.attn_sink", "ffn.gate.weight"]
        parts += [f"attn.{matrix}.weight" for matrix in ("wq_a", "q_norm", "wq_b", "wkv", "kv_norm", "wo_a", "wo_b")]
        parts.append("ffn.gate.tid2eid" if layer < config.num_hash_layers else "ffn.gate.bias")
        parts += [f"ffn.experts.{e}.w{i}.weight" for e in range(config.n_routed_experts) for i in (1, 2, 3)]
        parts += [f"ffn.shared_experts.w{i}.weight" for i in (1, 2, 3)]
        compressors = {0: [], 4: ["attn.compressor", "attn.indexer.compressor"], 128: ["attn.compressor"]}[ratio]
        for compressor in compressors:
            parts += [f"{compressor}.{name}" for name in ("ape", "wkv.weight", "wgate.weight", "norm.weight")]
        if ratio == 4:
            parts += ["attn.indexer.wq_b.weight", "attn.indexer.weights_proj.weight"]
        if mtp:
            parts += [f"{name}.weight" for name in ("e_proj", "h_proj", "enorm", "hnorm", "norm")]
            parts += ["hc_head_fn", "hc_head_base", "hc_head_scale"]
        names |= {f"{block}.{part}" for part in parts}
    return names


def packed(config: ModelConfig, seed: int) -> dict[str, Weight]:
    """Random weights as an official instruct checkpoint stores them: FP4 experts, FP8 matrices, the rest plain."""
    return {name: _pack(name, weight) for name, weight in named_weights(random_network(config, seed))}


def _pack(name: str, weight: Weight) -> Weight:
    assert isinstance(weight, Tensor)
    if ".ffn.experts." in name:
        return quantize_fp4(weight)
    plain = ("embed", "head.", "gate.", "compressor.", "weights_proj", "norm", "hc_", "attn_sink")
    return weight if any(part in name for part in plain) else quantize_fp8(weight)


@pytest.mark.parametrize("seed", range(5))
def test_names_are_the_official_ones(seed: int) -> None:
    config = random_config(seed)
    config = config.replace(num_nextn_predict_layers=1, compress_ratios=(*config.compress_ratios, 0))
    names = [name for name, _ in named_weights(Transformer(config))]
    assert len(names) == len(set(names)) and set(names) == _expected_names(config)


def test_shapes_of_the_mtp_block() -> None:
    """An ordinary window-only block with learned routing, two projections, three norms and a head of its own."""
    weights = dict(named_weights(Transformer(STORED)))
    d, streams = STORED.hidden_size, STORED.hc_mult
    shapes = {"e_proj.weight": (d, d), "h_proj.weight": (d, d), "hc_head_fn": (streams, streams * d)}
    shapes |= dict.fromkeys(("enorm.weight", "hnorm.weight", "norm.weight"), (d,))
    shapes |= {"hc_head_base": (streams,), "hc_head_scale": (1,), "ffn.gate.bias": (STORED.n_routed_experts,)}
    for name, shape in shapes.items():
        assert tuple(weights[f"mtp.0.{name}"].shape) == shape
    assert "mtp.0.ffn.gate.tid2eid" not in weights


def test_mtp_weights_load_and_change_nothing_in_the_main_network() -> None:
    weights = packed(STORED, 1)
    model = load_transformer(STORED, weights)
    for name, weight in named_weights(model):
        assert same_weight(weight, weights[name]), name
    without = STORED.replace(num_nextn_predict_layers=0, compress_ratios=STORED.compress_ratios[:-1])
    tokens = random_tokens(STORED, 20, 1)
    assert torch.equal(logits(model, tokens), logits(load_transformer(without, weights), tokens))


@pytest.mark.parametrize("numerics", [Numerics(), Numerics.none()], ids=["simulated", "plain"])
def test_packed_and_dequantised_weights_compute_the_same(numerics: Numerics) -> None:
    """FP4 and FP8 as stored (dtype None) against the same dequantised once: equal to the bit."""
    weights, tokens = packed(STORED, 2), random_tokens(STORED, 140, 2)
    as_stored = load_transformer(STORED, weights, numerics=numerics)
    dequantised = load_transformer(STORED, weights, dtype=torch.float32, numerics=numerics)
    kinds = {type(weight) for _, weight in named_weights(as_stored)}
    assert kinds == {Tensor, Fp4Weight, Fp8Weight}
    assert all(isinstance(weight, Tensor) for _, weight in named_weights(dequantised))
    for cuts in ([], [5, 129]):
        assert torch.equal(logits(as_stored, tokens, cuts), logits(dequantised, tokens, cuts))


def test_bf16_weights_compute_in_fp32() -> None:
    """A BF16 checkpoint is used as it is stored; sums are fp32."""
    config, tokens = tiny_config(), random_tokens(tiny_config(), 30, 3)
    weights = {
        name: weight.to(torch.bfloat16) if isinstance(weight, Tensor) and weight.is_floating_point() else weight
        for name, weight in named_weights(random_network(config, 3))
    }
    stored = load_transformer(config, weights, numerics=Numerics.none())
    upcast = load_transformer(config, weights, dtype=torch.float32, numerics=Numerics.none())
    assert logits(stored, tokens).dtype == torch.float32
    assert torch.equal(logits(stored, tokens), logits(upcast, tokens))


def test_loaded_tensors_are_not_copied() -> None:
    """Matrices may be views of a mapped file: loading keeps the very tensors."""
    weights = packed(STORED, 1)
    held = dict(named_weights(load_transformer(STORED, weights)))
    for name in ("layers.1.attn.wq_b.weight", "layers.0.ffn.experts.2.w1.weight"):
        before, after = weights[name], held[name]
        assert not isinstance(before, Tensor) and not isinstance(after, Tensor)
        assert after.codes.data_ptr() == before.codes.data_ptr()
    before, after = weights["embed.weight"], held["embed.weight"]
    assert isinstance(before, Tensor) and isinstance(after, Tensor) and before.data_ptr() == after.data_ptr()


@pytest.mark.parametrize("seed", range(4))
def test_named_weights_to_parameters_round_trip(seed: int) -> None:
    """Out of one trainable network, into another: every parameter and buffer arrives, gradients stay possible."""
    config = random_config(seed + 50)
    one, other = random_network(config, 1), random_network(config, 2).requires_grad_(True)
    load_parameters(other, dict(named_weights(one)))
    mine = dict([*one.named_parameters(), *one.named_buffers()])
    for name, tensor in [*other.named_parameters(), *other.named_buffers()]:
        assert torch.equal(tensor, mine[name]), name
    assert all(parameter.requires_grad for parameter in other.parameters())


def test_packed_weights_become_parameters_dequantised() -> None:
    weights, model = packed(STORED, 4), random_network(STORED, 5)
    load_parameters(model, weights)
    tokens = random_tokens(STORED, 20, 4)
    served = load_transformer(STORED, weights, numerics=Numerics.none())
    assert torch.equal(logits(model, tokens), logits(served, tokens))


def test_hash_table_may_be_int32() -> None:
    config, tokens = tiny_config(), random_tokens(tiny_config(), 9, 1)
    weights = dict(named_weights(random_network(config, 1)))
    name = "layers.0.ffn.gate.tid2eid"
    narrow = {**weights, name: weights[name].to(torch.int32)}  # type: ignore[arg-type]
    assert torch.equal(
        logits(load_transformer(config, narrow), tokens), logits(load_transformer(config, weights), tokens)
    )


@pytest.mark.parametrize(
    "name", ["layers.1.attn.wq_a.weight", "layers.0.ffn.experts.1.w3.weight", "norm.weight", "mtp.0.enorm.weight"]
)
def test_missing_and_misshapen_weights_are_named(name: str) -> None:
    weights = dict(named_weights(random_network(STORED, 1)))
    missing = {key: value for key, value in weights.items() if key != name}
    with pytest.raises(KeyError, match=name.replace(".", r"\.")):
        load_transformer(STORED, missing)
    with pytest.raises(KeyError, match=name.replace(".", r"\.")):
        load_parameters(random_network(STORED, 1), missing)
    wrong = {**weights, name: torch.zeros(*weights[name].shape[:-1], 1)}
    for load in (lambda: load_transformer(STORED, wrong), lambda: load_parameters(random_network(STORED, 1), wrong)):
        with pytest.raises(ValueError, match="shape") as error:
            load()
        assert name in str(error.value)


def test_a_served_network_has_nothing_to_train() -> None:
    model = load_transformer(STORED, packed(STORED, 1))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def _matrix(model: Transformer) -> Weight:
    return model.layers[0].attn.wq_b.operand()  # type: ignore[union-attr, operator, no-any-return]


@pytest.mark.parametrize(("dtype", "quantise"), [("fp8", quantize_fp8), ("fp4", quantize_fp4)])
def test_quantisation_aware_training_rounds_as_storage_does(
    dtype: str, quantise: Callable[[Tensor], Fp4Weight | Fp8Weight]
) -> None:
    """With `fake_quantize` a parameter counts as if it had been stored and read back; the gradient passes through."""
    config = STORED.replace(expert_dtype=dtype)
    model = random_network(config, 3).requires_grad_(True)
    experts = model.layers[1].ffn.experts.w1  # type: ignore[union-attr]
    before = experts.operand().detach().clone()  # type: ignore[union-attr, operator]
    experts.fake_quantize = True  # type: ignore[union-attr, assignment]
    rounded = experts.operand()  # type: ignore[union-attr, operator]
    expected = torch.stack([dequantize(quantise(one), torch.float32) for one in before])
    assert torch.equal(rounded, expected) and not torch.equal(rounded, before)
    rounded.sum().backward()
    assert torch.equal(experts.weight.grad, torch.ones_like(before))  # type: ignore[union-attr]


def test_forward_of_a_stored_network_continues_any_state() -> None:
    """Serving in two steps: the state of the first is all the second needs."""
    model, tokens = load_transformer(STORED, packed(STORED, 6)), random_tokens(STORED, 12, 6)
    state = PlainState(STORED)
    first = forward(model, tokens[:7], state)
    second = forward(model, tokens[7:], state)
    assert first.shape == (7, 4, 160) and second.shape == (5, 4, 160) and state.length == 12
