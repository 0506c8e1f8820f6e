"""What the engine refuses, and what it never does: ids that are none, padding, full contexts, broken states."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_support import edit
from cli_support import SMALL, write_model
from click.testing import CliRunner
from helpers.torchless import NEEDS_TORCH

from foveal import Memory
from foveal.backends.cpu.network import NativeNetwork
from foveal.batch import ContextLengthError, FinishReason, Job, ParameterError, SamplingParams, sample
from foveal.batch.tokens import token_ids
from foveal.cache import CacheFormat, CacheLayout, PagePool, Segment, Sequence
from foveal.checkpoint import open_checkpoint, values
from foveal.cli.main import app
from foveal.engine import Backend, Engine
from foveal.errors import NotFiniteError
from foveal.text.fitting import TokenizerMismatch

pytestmark = pytest.mark.slow

BACKENDS = ("native", pytest.param("reference", marks=NEEDS_TORCH))
IDS = 4096
"""Ids of nano's tokenizer."""


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose vocabulary goes on behind the tokenizer's, and which likes these ids best."""
    folder = write_model(tmp_path_factory.mktemp("models") / "padded", 4, SMALL.replace(vocab_size=IDS + 104))

    def prefer_padding(tensors: dict[str, np.ndarray]) -> None:
        tensors["head.weight"][IDS:] *= 40.0

    edit(folder, prefer_padding)
    return folder


# ---------------------------------------------------------------------- padding, and too large a tokenizer


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("settings", [{}, {"temperature": 5.0, "seed": 1}, {"logprobs": 20}], ids=str)
def test_padded_ids_are_never_chosen(padded: Path, backend: Backend, settings: dict[str, Any]) -> None:
    engine = Engine.open(padded, threads=1, backend=backend)
    done = engine.generate("def f(", max_tokens=24, ignore_eos=True, heal_prompt=True, **settings)
    assert len(done.tokens) >= 24 and max(done.tokens) < IDS
    assert all(token < IDS for one in done.logprobs for token, _ in one.top)
    streams = engine.network(np.array([5, 6]), [segment(engine, 2)])
    assert int(engine.network.logits(streams[-1:])[0].argmax()) >= IDS, "the test no longer tests anything"


def segment(engine: Engine, count: int) -> Segment:
    return Segment(engine.new_sequence(), count)


def test_a_constraint_cannot_lead_out_of_the_vocabulary() -> None:
    params = SamplingParams()
    assert sample(np.zeros(5), params, seed=0, index=0, allowed=np.arange(9) % 4 == 3).token == 3
    assert sample(np.ones(5), params, seed=0, index=0, allowed=np.arange(3) == 2).token == 2
    with pytest.raises(ParameterError, match="no token of the vocabulary"):
        sample(np.zeros(5), params, seed=0, index=0, allowed=np.arange(9) > 4)
    with pytest.raises(ParameterError, match="not int64"):
        sample(np.zeros(5), params, seed=0, index=0, allowed=np.array([3]))


def test_a_tokenizer_with_more_ids_than_the_network(tmp_path: Path) -> None:
    write_model(tmp_path / "m", 1, SMALL.replace(vocab_size=4000))
    with pytest.raises(TokenizerMismatch, match=r"4096 ids .* knows 4000"):
        Engine.open(tmp_path / "m")
    (tmp_path / "a.py").write_text("x = 1\n")
    store = str(tmp_path / "store")
    arguments = ["read", str(tmp_path / "a.py"), "--name", "a", "--model", str(tmp_path / "m"), "--store", store]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1 and "4096" in result.stderr and "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_text_that_the_tokenizer_cannot_end(tmp_path: Path) -> None:
    write_model(tmp_path / "m", 1, SMALL.replace(vocab_size=5000, eos_token_id=4500))
    with pytest.raises(TokenizerMismatch, match="eos_token_id is 4500"):
        Engine.open(tmp_path / "m")


# ---------------------------------------------------------------------- the context


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A model with a context of 700 tokens."""
    folder = write_model(tmp_path_factory.mktemp("models") / "s", 4, SMALL.replace(max_position_embeddings=700))
    return Engine.open(folder, threads=1)


def test_a_prompt_that_does_not_fit(short: Engine) -> None:
    for count, more in ((701, 1), (700, 1), (600, 101), (5, 10**30)):
        with pytest.raises(ContextLengthError, match="700 tokens"):
            short.generate([7] * count, max_tokens=more)
        with pytest.raises(ContextLengthError, match="700 tokens"):
            list(short.stream([7] * count, max_tokens=more))
    done = short.generate([7] * 695, max_tokens=5, ignore_eos=True)
    assert len(done.tokens) == 5 and done.finish_reason is FinishReason.LENGTH
    with pytest.raises(ContextLengthError, match="ask for at most 5"):
        short.generate([7] * 695, max_tokens=6)
    assert short.pool.live == 0


def test_reading_does_not_begin_what_does_not_fit(short: Engine) -> None:
    with short.new_sequence() as sequence:
        with pytest.raises(ContextLengthError, match="701 tokens is longer than the model's context of 700"):
            short.prefill(sequence, [7] * 701)
        assert sequence.length == 0
        short.prefill(sequence, [7] * 600)
        with pytest.raises(ContextLengthError):
            short.prefill(sequence, [7] * 101)
        assert sequence.length == 600
        with pytest.raises(ContextLengthError, match="do not fit behind 605"):
            short.generate([1] * 5, base=sequence, max_tokens=96)
        assert len(short.generate([1] * 5, base=sequence, max_tokens=95, ignore_eos=True).tokens) == 95
        with short.fork(sequence, 100) as fork, pytest.raises(ContextLengthError):
            short.generate([1] * 600, base=fork, max_tokens=1)


def test_healed_tokens_do_not_lead_past_the_end(short: Engine) -> None:
    """Tokens that repeat the prompt's end do not count for `max_tokens`, but they take room."""
    constraint = Forced(40)
    with short.new_sequence() as sequence:
        params = SamplingParams(max_tokens=10)
        request = short.batch.request([7] * 690, params, state=sequence, constraint=constraint)
        assert Job(short.loop, request).result().finish_reason is FinishReason.LENGTH
        assert len(request.generated) == 10
        assert sequence.length == 699


class Forced:
    """Only token 9 for a while, as if it repeated the prompt."""

    repeats_prompt = True

    def __init__(self, count: int) -> None:
        self.left = count

    def allowed(self) -> np.ndarray | None:
        return np.arange(10) == 9 if self.left else None

    def accept(self, token: int) -> None:
        self.left -= 1


def test_a_source_longer_than_the_context(short: Engine, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.py").write_text("value = 1\n" * 60)
    with Memory.read(short, source, name="a", root=tmp_path / "store") as memory:
        tokens = memory.length
        assert tokens < 690
        (source / "b.py").write_text("other = 2\n" * 200)
        for mode in ("append", "rebuild"):
            with pytest.raises(ContextLengthError, match="more than the model's context of 700"):
                memory.sync(mode)
        assert memory.length == tokens and memory.complete
        with pytest.raises(ContextLengthError, match="do not fit"):
            memory.recall("value", max_tokens=700)
        with pytest.raises(ContextLengthError):
            memory.extend(np.full(700, 7, dtype=np.int32))
        assert memory.length == tokens
    with pytest.raises(ContextLengthError, match="--exclude"):
        Memory.read(short, source, name="b", root=tmp_path / "store")
    assert short.pool.live == 0


def test_a_context_of_ones_own(short: Engine, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", 4, SMALL.replace(max_position_embeddings=64))
    wider = Engine.open(folder, threads=1, context_length=128)
    assert len(wider.generate([7] * 100, max_tokens=28, ignore_eos=True).tokens) == 28
    with pytest.raises(ParameterError, match="context_length is 0"):
        Engine.open(folder, context_length=0)


# ---------------------------------------------------------------------- token ids


@pytest.mark.parametrize(
    "token", [True, np.True_, 1.5, 1.0, np.float32(1), "1", None, b"1", [1], 2**70, -1, 260, -(2**70)]
)
def test_what_is_no_token_id(token: object) -> None:
    for tokens in ([token], [3, token], [token, 3]):
        with pytest.raises(ParameterError, match=f"at place {tokens.index(token)} is"):
            token_ids(tokens, 260)  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [[1, 2], (1, 2), [np.int64(1), np.uint8(2)], np.array([1, 2])])
def test_integers_of_any_kind_are_token_ids(tokens: Any, short: Engine) -> None:
    ids = token_ids(tokens, 260)
    assert ids.dtype == np.int64 and ids.tolist() == [1, 2]
    whole = short.generate([1, 2], max_tokens=2, ignore_eos=True)
    assert short.generate(tokens, max_tokens=2, ignore_eos=True).tokens == whole.tokens


def test_the_engine_refuses_what_is_no_token_id(short: Engine) -> None:
    for bad in ([True], [5, 1.5], [4096], [-1]):
        with pytest.raises(ParameterError):
            short.generate(bad, max_tokens=1)  # type: ignore[arg-type]
        with short.new_sequence() as sequence:
            with pytest.raises(ParameterError):
                short.prefill(sequence, bad)  # type: ignore[arg-type]
            assert sequence.length == 0
    assert short.pool.live == 0


# ---------------------------------------------------------------------- sampling parameters

SMALLEST = 5e-324


@pytest.mark.parametrize("temperature", [SMALLEST, 1e-320, 1e-308, 1e-300, 1e-45, 1e-9])
def test_a_temperature_next_to_nothing_is_greedy(temperature: float) -> None:
    logits = np.array([0.0, 3.0, 1.0, 2.999])
    params = SamplingParams(temperature=temperature)
    assert {sample(logits, params, seed=1, index=index).token for index in range(20)} == {1}
    large = np.array([-1e38, 3e38, float("-inf"), -3e38])
    assert sample(large, params, seed=1, index=0).token == 1


@pytest.mark.parametrize(
    "settings", [{"top_p": SMALLEST}, {"top_k": 10**30}, {"min_p": SMALLEST}, {"temperature": 100}]
)
def test_extreme_filters(settings: dict[str, Any]) -> None:
    logits = np.array([0.0, 30.0, 1.0])
    assert sample(logits, SamplingParams(**{"temperature": 1.0} | settings), seed=1, index=0).token == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, True, "1", None, 1j, [1]], ids=str)
@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "top_k", "max_tokens", "logprobs", "seed"])
def test_odd_values_are_refused_by_name(name: str, value: object) -> None:
    if (name == "seed" and value == -1) or (name in ("seed", "logprobs") and value is None):
        return
    with pytest.raises(ParameterError, match=f"'{name}'"):
        SamplingParams(**{name: value})  # type: ignore[arg-type]


def test_more_odd_values() -> None:
    for name, value in (
        ("temperature", 10**400),
        ("seed", 2**63),
        ("seed", 0.5),
        ("top_k", 1.0),
        ("stop_tokens", (True,)),
        ("stop_tokens", (1.5,)),
        ("ignore_eos", "no"),
    ):
        with pytest.raises(ParameterError, match=f"'{name}'"):
            SamplingParams(**{name: value})  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers() -> None:
    ours = SamplingParams(temperature=0.5, top_k=3, top_p=0.25, seed=7, max_tokens=4, stop_tokens=(2,), logprobs=1)
    theirs = SamplingParams(
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        top_k=np.int64(3),  # type: ignore[arg-type]
        top_p=np.float64(0.25),
        seed=np.uint32(7),  # type: ignore[arg-type]
        max_tokens=np.int8(4),  # type: ignore[arg-type]
        stop_tokens=(np.int64(2),),  # type: ignore[arg-type]
        logprobs=np.int32(1),  # type: ignore[arg-type]
    )
    assert ours == theirs and type(theirs.seed) is int and type(theirs.temperature) is float


# ---------------------------------------------------------------------- states that are not finite

PACKED = SMALL.replace(linear_dtype="fp8", expert_dtype="fp8")


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with one NaN among an expert's codes, where opening a large model does not look."""
    monkeypatch.setattr(values, "CODES_UP_TO", 0)
    folder = write_model(tmp_path / "broken", 4, PACKED)

    def damage(tensors: dict[str, np.ndarray]) -> None:
        for expert in range(PACKED.n_routed_experts):
            tensors[f"layers.1.ffn.experts.{expert}.w1.weight"].view(np.uint8)[3, 5] = 0x7F

    edit(folder, damage)
    return folder


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_chunk_says_where_it_goes_wrong(broken: Path, backend: Backend) -> None:
    engine = Engine.open(broken, threads=1, backend=backend)
    with engine.new_sequence() as sequence:
        with pytest.raises(NotFiniteError, match=r"not finite .* from the experts of layer 1 on"):
            engine.prefill(sequence, [7, 8, 9] * 100)
        assert sequence.length == 0
        sequence.rollback()
    with pytest.raises(NotFiniteError, match="layer 1"):
        engine.generate([7, 8, 9], max_tokens=2)
    assert engine.pool.live == 0


def test_read_says_it_in_one_line(broken: Path, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("value = 1\n" * 50)
    arguments = ["read", str(tmp_path / "a.py"), "--name", "a", "--model", str(broken), "--store", str(tmp_path / "s")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1 and "experts of layer 1" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_too_large_for_the_arithmetic(tmp_path: Path, backend: Backend) -> None:
    """Finite entries, products that are not."""
    folder = write_model(tmp_path / "m", 4)
    edit(folder, lambda tensors: tensors["layers.2.attn.wo_b.weight"].fill(3e38))
    edit(folder, lambda tensors: tensors["layers.2.attn.wo_a.weight"].fill(3e38))
    engine = Engine.open(folder, threads=1, backend=backend)
    with engine.new_sequence() as sequence, pytest.raises(NotFiniteError, match="the attention of layer 2"):
        engine.prefill(sequence, [7, 8, 9] * 5)


@pytest.mark.parametrize("place", [0, 70, 127, 128, 255, 299])
def test_one_bad_token_is_noticed_wherever_it_stands(tmp_path: Path, place: int) -> None:
    """An embedding that is not finite, of a token that stands once."""
    model = open_checkpoint(write_model(tmp_path / "m", 4))
    table = np.array(model.weights["embed.weight"])
    table[11] = math.nan
    network = NativeNetwork(model.config, {**model.weights, "embed.weight": table}, threads=1)
    sequence = Sequence(PagePool(CacheLayout(model.config, CacheFormat())), dtype=np.float32)
    tokens = np.full(300, 7)
    tokens[place] = 11
    with pytest.raises(NotFiniteError, match="the embedding"):
        network(tokens, [Segment(sequence, 300)])
    assert sequence.length == 0


def test_a_table_that_names_no_expert_never_reaches_the_kernels(tmp_path: Path) -> None:
    model = open_checkpoint(write_model(tmp_path / "m", 4))
    name = "layers.0.ffn.gate.tid2eid"
    for value in (-2, 4, 10**8):
        table = np.array(model.weights[name])
        table[3, 1] = value
        with pytest.raises(ValueError, match="there are 4"):
            NativeNetwork(model.config, {**model.weights, name: table}, threads=1)
