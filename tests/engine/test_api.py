"""The public engine: opened from a directory, generating text, leaving bases untouched."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_support import write_model

import foveal
from foveal.batch import FinishReason, ParameterError, SamplingParams
from foveal.cache import CacheFormat, CacheFull, PagePool
from foveal.checkpoint import CheckpointError
from foveal.config import Numerics
from foveal.engine import Engine, ModelNotFound, with_settings

NANO = Path(foveal.__file__).parent / "weights" / "nano"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny", 4)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine.open(folder, threads=1)


def test_open_knows_what_it_opened(engine: Engine, folder: Path) -> None:
    assert engine.name == "tiny" and engine.config.hidden_size == 64
    assert engine.fingerprint == Engine.open(str(folder)).fingerprint
    other = Engine.open(folder, kv=CacheFormat("fp32", "fp32"), numerics=Numerics.none())
    assert engine.fingerprint.differing(other.fingerprint) == ("number format",)


def test_open_says_what_is_missing(folder: Path, tmp_path: Path) -> None:
    for model in (tmp_path / "nothing", "no-such-model"):
        with pytest.raises(ModelNotFound, match="nano"):
            Engine.open(model)
    shutil.copytree(folder, tmp_path / "broken")
    next((tmp_path / "broken").glob("*.safetensors")).unlink()
    with pytest.raises(CheckpointError):
        Engine.open(tmp_path / "broken")


def test_generate_is_the_stream_joined(engine: Engine) -> None:
    settings = {"max_tokens": 9, "temperature": 1.0, "seed": 3, "ignore_eos": True, "logprobs": 1}
    done = engine.generate("def main():\n", **settings)
    events = list(engine.stream("def main():\n", **settings))
    assert done.text == "".join(event.text for event in events) == engine.tokenizer.decode(done.tokens)
    assert done.finish_reason is FinishReason.LENGTH and len(done.tokens) == len(done.logprobs) == 9
    assert [event.sampled for event in events] == list(done.logprobs)
    assert done == engine.generate(engine.tokenizer.encode("def main():\n"), SamplingParams(), **settings)
    assert engine.pool.live == 0


def test_a_stop_string_cuts_the_text(engine: Engine) -> None:
    whole = engine.generate("x = 1\n", max_tokens=12, ignore_eos=True).text
    stop = whole[len(whole) // 2 :][:3]
    cut = engine.generate("x = 1\n", max_tokens=12, ignore_eos=True, stop=stop)
    assert cut.text == whole[: whole.index(stop)] and cut.finish_reason is FinishReason.STOP


def test_healing_keeps_the_prompt_out_of_the_text(engine: Engine) -> None:
    done = engine.generate("import torch.nn.functio", heal_prompt=True, max_tokens=4, ignore_eos=True)
    said = engine.tokenizer.decode(done.tokens)
    assert said.endswith(done.text)
    assert "import torch.nn.functio".endswith(said[: len(said) - len(done.text)])
    word = engine.generate("def", heal_prompt=True, max_tokens=4, ignore_eos=True)
    assert word == engine.generate("def", max_tokens=4, ignore_eos=True), "one word cannot be healed without a past"


def test_a_base_is_never_changed(engine: Engine) -> None:
    base = engine.new_sequence()
    marks: list[tuple[int, int]] = []
    assert engine.prefill(base, [7] * 700, progress=lambda done, total: marks.append((done, total))) == 700
    assert marks == [(512, 700), (700, 700)]
    before = base.export()
    first = engine.generate([9, 9], base=base, max_tokens=5, ignore_eos=True)
    assert engine.generate([9, 9], base=base, max_tokens=5, ignore_eos=True) == first
    after = base.export()
    assert np.array_equal(before.tokens, after.tokens) and all(
        np.array_equal(before.tail[n], after.tail[n]) for n in after.tail
    )
    assert engine.prefill(base, [7] * 600, should_stop=lambda: base.length >= 1024) == 324
    base.free()
    assert engine.pool.live == 0


def test_failures_reach_the_caller_and_leak_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "pool", PagePool(engine.pool.layout, limit=1))
    with pytest.raises(CacheFull):
        engine.generate([7] * 600, max_tokens=2)
    for bad in ("", []):
        with pytest.raises(ParameterError, match="empty"):
            engine.generate(bad)
    with pytest.raises(ParameterError, match="top_p"):
        engine.generate("x", top_p=0)
    with pytest.raises(TypeError):
        engine.generate("x", heat=1)
    stream = engine.stream("x", max_tokens=100)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert engine.pool.live == 0 and not engine.batch.scheduler.busy


def test_settings_replace_fields() -> None:
    assert with_settings(SamplingParams(), stop="ab").stop == ("ab",)
    assert with_settings(SamplingParams(), stop=["a", "b"], stop_tokens=[3]).stop_tokens == (3,)
    assert with_settings(SamplingParams(stop=("x",)), stop=None).stop == ()
    assert with_settings(SamplingParams(), stop_tokens=np.array([1, 2])).stop_tokens == (1, 2)


@pytest.mark.parametrize("value", [0, False, "", {}, -0.0])
def test_what_holds_nothing_is_no_list(value: object) -> None:
    for name in ("stop", "stop_tokens"):
        with pytest.raises(ParameterError, match=f"'{name}'"):
            with_settings(SamplingParams(), **{name: value})


def test_tokens_that_are_no_sequence_or_outside_are_refused(engine: Engine) -> None:
    for prompt in (b"ab", {1, 2}, {1: 2}, 5, None, iter([1])):
        with pytest.raises(ParameterError, match="no sequence of token ids"):
            engine.generate(prompt, max_tokens=1)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="'stop_tokens' has"):
        engine.generate([1], max_tokens=1, stop_tokens=[engine.config.vocab_size])


def test_names_of_the_package() -> None:
    assert {"Engine", "Memory", "Recall", "Citation", "SamplingParams"} <= set(dir(foveal))
    for name in foveal.__all__:
        assert getattr(foveal, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = foveal.nothing_like_it
