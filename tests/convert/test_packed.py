"""Packed entries as ordinary V4 tensors: the student that learned them, our engines and transformers compute alike."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_support import llama_config, one_direction, random_tokens, save_folder, some_text, transformers_source
from helpers.hugging_face import transformers_logits, transformers_model
from helpers.networks import logits, native_logits
from torch import Tensor

from foveal import Engine
from foveal.checkpoint import open_checkpoint
from foveal.config import Numerics
from foveal.convert import ConvertError, Llama, Settings, Source, convert, fade
from foveal.convert.build import converted_weights
from foveal.convert.fitting import fit_moments
from foveal.convert.hugging_face import read_folder
from foveal.convert.layout import Layout
from foveal.convert.learned import load_slots, save_slots
from foveal.convert.packaged import shipped_slots
from foveal.convert.packed import PackedLayout
from foveal.convert.source import LlamaShape, rotary_frequencies
from foveal.model import Transformer, load_transformer
from foveal.model.weights import load_parameters
from foveal.train.distill.constants import fit_constants
from foveal.train.distill.student import Student

pytestmark = pytest.mark.slow

HEADS = {1: (0, 4), 2: (3,)}
CLOSE = 1e-2
"""Greatest difference of a logit, in standard deviations of the logits."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Three layers; one channel of the residual stream is the same everywhere, as pretrained models have some."""
    folder = tmp_path_factory.mktemp("packed")
    config = llama_config(
        hidden_size=84, head_dim=8, num_hidden_layers=3, rope_theta=100000.0, max_position_embeddings=4096
    )
    theirs = transformers_source(config, 0)
    one_direction(theirs, 0)
    with torch.no_grad():
        theirs.model.embed_tokens.weight[:, 0] = 3.0
        for layer in theirs.model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
            layer.input_layernorm.weight[0] = 0.1
            layer.post_attention_layernorm.weight[0] = 0.1
    return read_folder(save_folder(theirs, folder / "model"))


@pytest.fixture(scope="module")
def student(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Student:
    """Slots that look things up, none of them like another."""
    network = Llama(source)
    rows = torch.stack([random_tokens(64, 300, seed) for seed in range(8)])
    moments = fit_moments(network, rows, tmp_path_factory.mktemp("moments"), "test")
    student = Student(network, moments, fit_constants(network, rows, [0]), HEADS).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in student.learned().items():
            noise = torch.randn(parameter.shape, generator=generator)
            small = name.endswith(("bias", "sink", "offset"))
            parameter.add_(noise * (0.1 if name.endswith("offset") else 1.0 if small else 0.3 * float(parameter.std())))
    return student


@pytest.fixture(scope="module")
def model(source: Source, student: Student, tmp_path_factory: pytest.TempPathFactory) -> Transformer:
    """The V4 network, fp32, nothing rounded."""
    rows = torch.stack([random_tokens(64, 300, seed) for seed in range(8)])
    moments = fit_moments(student.source, rows, tmp_path_factory.mktemp("again"), "test")
    layout, slots = Layout.of(source.shape), student.packed()
    config = PackedLayout(layout).config(slots)
    model = Transformer(config, numerics=Numerics.none())
    load_parameters(model, dict(converted_weights(source, moments.attention, layout, config, slots)))
    return model.eval().requires_grad_(False)


def students(student: Student, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return student.logits(tokens, torch.arange(len(tokens)))


@pytest.mark.parametrize("count", [1, 3, 4, 5, 127, 130, 257, 400, 611])
def test_the_network_computes_what_its_student_does(student: Student, model: Transformer, count: int) -> None:
    tokens = random_tokens(count, 300, count)
    theirs = students(student, tokens)
    assert (logits(model, tokens) - theirs).abs().max() < CLOSE * theirs.std()


def test_the_entries_matter(student: Student, model: Transformer) -> None:
    tokens = random_tokens(500, 300, 9)
    changed = tokens.clone()
    changed[200:300] = tokens[200:300].flip(0)
    assert (logits(model, changed)[499] - logits(model, tokens)[499]).abs().max() > 10 * CLOSE


def test_the_native_engine_computes_the_same(model: Transformer) -> None:
    tokens = random_tokens(403, 300, 5)
    ours = logits(model, tokens)
    for cuts in ((), (1, 2, 130, 131), (129, 258, 400)):
        assert (native_logits(model, tokens, cuts) - ours).abs().max() < 1e-3


def test_transformers_computes_the_same(model: Transformer) -> None:
    tokens = random_tokens(403, 300, 6)
    theirs = transformers_logits(transformers_model(model), tokens)
    assert (logits(model, tokens) - theirs).abs().max() < 1e-3


def test_what_was_learned_is_written_and_read(student: Student, source: Source, tmp_path: Path) -> None:
    """Eight bits a number: half a percent of what is there."""
    slots = student.packed()
    save_slots(tmp_path / "slots.safetensors", slots, source.shape, "a test")
    found = load_slots(tmp_path / "slots.safetensors", source.shape)
    assert found.keys() == slots.keys() == {1, 2}
    for layer, one in slots.items():
        assert found[layer].heads == one.heads
        for name in ("key", "value", "query", "output", "offset"):
            ours, theirs = getattr(found[layer], name), getattr(one, name)
            assert ours.shape == theirs.shape and (ours - theirs).norm() < 0.01 * theirs.norm()
        assert torch.equal(found[layer].sink, one.sink) and torch.equal(found[layer].constant, one.constant)


def test_a_file_that_does_not_fit(
    student: Student, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "slots.safetensors"
    save_slots(path, student.packed(), source.shape, "a test")
    with pytest.raises(ConvertError, match="learned from a test, a model of another shape"):
        load_slots(path, dataclasses.replace(source.shape, layers=9))
    monkeypatch.setattr(fade, "VERSION", fade.VERSION + 1)
    with pytest.raises(ConvertError, match="an earlier fade"):
        load_slots(path, source.shape)
    path.write_bytes(b"something else")
    with pytest.raises(ConvertError, match="no file of packed entries"):
        load_slots(path, source.shape)
    with pytest.raises(ConvertError, match="raw window of 127"):
        Settings(slots=path, window=64)


def test_a_source_too_small_for_slots(source: Source) -> None:
    shape = dataclasses.replace(source.shape, hidden_size=64)
    with pytest.raises(ConvertError, match="above 8 times the head's, 64; it is 64"):
        PackedLayout(Layout.of(shape))


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_a_source_whose_keys_fill_all_rotary_pairs(source: Source, groups: int) -> None:
    with pytest.raises(ConvertError, match=f"with {groups} key-value groups there are none"):
        PackedLayout(Layout.of(dataclasses.replace(source.shape, heads=8, groups=groups)))


@pytest.mark.parametrize("form", ["bf16", "fp8"])
def test_a_conversion_with_slots(student: Student, source: Source, tmp_path: Path, form: Any) -> None:
    """The folder that is written computes what the student does, up to the rounding of its form."""
    save_slots(tmp_path / "slots.safetensors", student.packed(), source.shape, "a test")
    text = some_text(tmp_path / "text")
    settings = Settings(text=(text,), fit_tokens=2048, rows=1, form=form, slots=tmp_path / "slots.safetensors")
    report = convert(source, tmp_path / "out", settings)
    config = open_checkpoint(tmp_path / "out").config
    assert config.compress_ratios == (128, 4, 4) and config.num_attention_heads == 6 + 4 * 2
    assert report.beyond is not None
    engine = Engine.open(tmp_path / "out", numerics=Numerics.none())
    assert len(engine.generate("the heat on earth " * 100, max_tokens=3, ignore_eos=True).tokens) == 3
    tokens = random_tokens(390, 300, 7)
    theirs = students(student, tokens).log_softmax(-1)
    checkpoint = open_checkpoint(tmp_path / "out")
    model = load_transformer(checkpoint.config, checkpoint.weights, dtype=torch.float32, numerics=Numerics.none())
    ours = logits(model, tokens).log_softmax(-1)
    assert float((theirs.exp() * (theirs - ours)).sum(-1).mean()) < (0.01 if form == "bf16" else 0.1)


def test_what_ships_fits_its_source() -> None:
    """SmolLM2-135M's shape; 31 heads of 14 layers, in less than 16 MB."""
    path = shipped_slots("smollm2")
    assert path is not None and path.stat().st_size < 16e6 and shipped_slots("another") is None
    shape = LlamaShape(
        vocab_size=49152, hidden_size=576, layers=30, heads=9, groups=3, head_dim=64, intermediate_size=1536,
        rms_norm_eps=1e-5, rope_theta=1e5, frequencies=rotary_frequencies(64, 1e5), context=8192, eos_token_id=2,
    )  # fmt: skip
    slots = load_slots(path, shape)
    assert sum(len(one.heads) for one in slots.values()) == 31 and len(slots) == 14
    for one in slots.values():
        assert one.query.shape == (4, len(one.heads), 64, 576) and one.query.isfinite().all()
    config = PackedLayout(Layout.of(shape)).config(slots)
    assert config.num_attention_heads == 21 and config.head_dim == 1024 and config.compress_ratios.count(4) == 14
