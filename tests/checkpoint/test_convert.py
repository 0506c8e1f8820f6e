"""Conversions between formats, and random weights."""

import numpy as np
import pytest
from checkpoint_support import CONFIG, FORMATS, PLAIN, WITHOUT_MTP, same, weights_of

from foveal.checkpoint import convert_weights, random_weights, weight_specs
from foveal.formats import F32, I64, Fp4Weight, Fp8Weight, dequantize

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("source", FORMATS, ids=lambda f: "-".join(f.values()))
@pytest.mark.parametrize("target", FORMATS, ids=lambda f: "-".join(f.values()))
def test_any_format_to_any_other_stays_close(source, target):
    config = CONFIG.replace(**target)
    before = weights_of(CONFIG.replace(**source))
    after = dict(convert_weights(before.items(), config))
    assert list(after) == list(before)
    kinds = {"fp4": Fp4Weight, "fp8": Fp8Weight, "bf16": np.ndarray}
    assert isinstance(after["layers.1.attn.wkv.weight"], kinds[target["linear_dtype"]])
    assert isinstance(after["layers.1.ffn.experts.0.w1.weight"], kinds[target["expert_dtype"]])
    for name, weight in after.items():
        old, new = dequantize(before[name]), dequantize(weight)
        assert np.linalg.norm(new - old) <= 0.15 * np.linalg.norm(old) + 1e-6, name
        if not isinstance(weight, np.ndarray):
            wide = weight.scale.dtype == F32
            assert wide == (target["scale_dtype"] == "float32")


def test_fp4_to_fp8_and_same_format_lose_nothing():
    before = weights_of(CONFIG)
    wide = dict(convert_weights(before.items(), CONFIG.replace(expert_dtype="fp8")))
    name = "layers.2.ffn.experts.1.w2.weight"
    assert np.array_equal(dequantize(wide[name]), dequantize(before[name]))
    again = dict(convert_weights(before.items(), CONFIG))
    assert again[name] is before[name]
    back = dict(convert_weights(wide.items(), CONFIG))
    assert same(back[name], before[name])


def test_dropping_the_mtp_block():
    names = [name for name, _ in convert_weights(weights_of(CONFIG).items(), WITHOUT_MTP)]
    assert names == [spec.name for spec in weight_specs(WITHOUT_MTP)]


def test_plain_dtype():
    weights = dict(convert_weights(weights_of(CONFIG).items(), PLAIN, plain_dtype=F32))
    assert {w.dtype for w in weights.values()} == {F32, I64}


@pytest.mark.parametrize("formats", FORMATS, ids=lambda f: "-".join(f.values()))
def test_random_weights_are_sane_and_repeatable(formats):
    config = CONFIG.replace(**formats, hidden_size=512, moe_intermediate_size=256)
    weights = dict(random_weights(config, seed=3))
    again = dict(random_weights(config, seed=3))
    other = dict(random_weights(config, seed=4))
    for spec in weight_specs(config):
        weight = weights[spec.name]
        assert tuple(weight.shape) == spec.shape
        assert same(weight, again[spec.name])
        plain = dequantize(weight)
        assert np.isfinite(plain).all()
        if ".experts." in spec.name or spec.name.endswith("wq_a.weight"):
            assert not same(weight, other[spec.name])
            assert plain.std().item() * spec.shape[-1] ** 0.5 == pytest.approx(1, abs=0.1)
            assert abs(plain.mean().item()) < 0.1 * plain.std().item()
    table = weights["layers.0.ffn.gate.tid2eid"]
    assert int(table.max()) < config.n_routed_experts
    assert all(len(set(row)) == config.num_experts_per_tok for row in table.tolist())
