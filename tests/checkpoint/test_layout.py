"""The layout against the published figures."""

import pytest
from checkpoint_support import CONFIG

from foveal.checkpoint import Storage, summarize, tensor_specs, weight_specs
from foveal.checkpoint.tensor_names import official_name, transformers_name
from foveal.config import LayerKind, preset
from foveal.formats import F32


@pytest.fixture(scope="module")
def flash():
    return summarize(preset("flash"))


@pytest.fixture(scope="module")
def pro():
    return summarize(preset("pro"))


def test_flash_has_the_published_totals(flash):
    assert flash.tensors == 69_187
    assert flash.nbytes == 159_609_485_896
    assert flash.stored_elements == 158_069_433_298


def test_pro_has_the_published_totals(pro):
    assert pro.tensors == 145_116
    assert pro.stored_elements == 861_608_274_846
    assert round(pro.nbytes / 2**30, 2) == 805.32


def test_base_without_mtp_has_the_published_number_of_tensors():
    base = preset("flash-base")
    base = base.replace(num_nextn_predict_layers=0, compress_ratios=base.compress_ratios[:-1])
    specs = list(tensor_specs(base))
    assert len(specs) == 67_612
    assert {spec.dtype for spec in specs if spec.name.endswith(".scale")} == {F32}


def test_parameters_total_and_active(flash, pro):
    assert round(flash.parameters / 1e9, 2) == 284.33
    assert round(flash.active / 1e9, 2) == 13.27
    assert round(pro.parameters / 1e9, 1) == 1573.0
    assert round(pro.active / 1e9, 2) == 48.85


def test_layers_and_kinds(flash, pro):
    assert [flash.count(kind) for kind in (LayerKind.SLIDING, LayerKind.CSA, LayerKind.HCA)] == [2, 21, 20]
    assert [pro.count(kind) for kind in (LayerKind.SLIDING, LayerKind.CSA, LayerKind.HCA)] == [0, 30, 31]
    assert len(flash.layers) == 44
    assert flash.layers[-1].name == "mtp.0"
    assert [layer.hashed for layer in flash.layers[:4]] == [True, True, True, False]
    outside = {"embed", "head", "norm", "hc_head_fn", "hc_head_base", "hc_head_scale"}
    rest = sum(spec.nbytes for spec in tensor_specs(preset("flash")) if spec.name.split(".")[0] in outside)
    assert sum(layer.nbytes for layer in flash.layers) + rest == flash.nbytes


def test_bytes_by_format_add_up(flash):
    assert sum(flash.bytes_by_format.values()) == flash.nbytes
    assert next(iter(flash.bytes_by_format)) == "FP4"
    assert flash.bytes_by_format["INT64"] == 3 * 129_280 * 6 * 8


def test_names_are_unique_and_routing_is_a_bias_or_a_table():
    names = [spec.name for spec in tensor_specs(CONFIG)]
    assert len(names) == len(set(names))
    assert "layers.0.ffn.gate.tid2eid" in names and "layers.0.ffn.gate.bias" not in names
    assert "layers.1.ffn.gate.bias" in names and "layers.1.ffn.gate.tid2eid" not in names
    assert "mtp.0.ffn.gate.bias" in names


def test_transformers_names_lead_back():
    for spec in weight_specs(CONFIG):
        assert official_name(spec.name) == spec.name
        if spec.storage is not Storage.EXPERT and not spec.name.startswith("mtp."):
            assert official_name(transformers_name(spec.name)) == spec.name


@pytest.mark.parametrize("name", ["nano", "flash"])
def test_a_summary_counts_every_tensor(name):
    """It walks over one expert of each block and counts it for all."""
    config = preset(name)
    assert summarize(config) == summarize(config, tensor_specs(config))
    assert summarize(config).parameters + summarize(config).mtp_parameters == sum(
        spec.elements for spec in weight_specs(config) if spec.storage is not Storage.I64
    )
