"""The CPU backend as a runner: what it is built from, and that its choice of tokens is torch's."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.configs import tiny_config
from helpers.torchless import NEEDS_TORCH

from foveal.backends import backend_of
from foveal.backends.cpu import NativeNetwork
from foveal.backends.cpu.sampling import choose, log_softmax
from foveal.batch import SamplingParams
from foveal.cache import CacheFormat, CacheLayout, PagePool, Segment, Sequence
from foveal.cache.memory import HostBytes
from foveal.checkpoint import random_weights
from foveal.config import Numerics
from foveal.errors import BadLogitsError, ParameterError

CONFIG = tiny_config()


def test_a_missing_or_misshaped_weight_is_named() -> None:
    weights = dict(random_weights(CONFIG))
    with pytest.raises(KeyError, match=r"layers\.2\.attn\.wkv\.weight"):
        NativeNetwork(CONFIG, {name: w for name, w in weights.items() if name != "layers.2.attn.wkv.weight"})
    with pytest.raises(ValueError, match="wkv"):
        NativeNetwork(CONFIG, weights | {"layers.2.attn.wkv.weight": np.zeros((3, 4), np.float32)})


def test_there_are_two_backends() -> None:
    assert backend_of("native").__name__ == "foveal.backends.cpu"  # type: ignore[attr-defined]
    with pytest.raises(ParameterError, match="native, reference"):
        backend_of("abacus")


def test_a_runner_says_what_the_engine_needs_to_know() -> None:
    runner = NativeNetwork(CONFIG, dict(random_weights(CONFIG)), threads=1)
    assert runner.grain == 1 and runner.memory is None
    assert runner.arithmetic == "bf16 activations, simulating kv+index+activations"
    none = NativeNetwork(CONFIG, dict(random_weights(CONFIG)), threads=1, numerics=Numerics.none())
    assert none.arithmetic == "fp32 activations, simulating nothing"


def test_pages_that_the_kernels_cannot_see_are_refused() -> None:
    class Elsewhere:
        def zeros(self, size: int) -> HostBytes:
            return HostBytes(np.zeros(size, np.uint8))

    runner = NativeNetwork(CONFIG, dict(random_weights(CONFIG)), threads=1)
    sequence = Sequence(PagePool(CacheLayout(CONFIG, CacheFormat())))
    sequence.pool.memory = Elsewhere()  # type: ignore[assignment]
    with pytest.raises(TypeError, match="Elsewhere"):
        runner(np.array([1]), [Segment(sequence, 1)])


@NEEDS_TORCH
@pytest.mark.parametrize("seed", range(20))
def test_choices_are_those_of_the_definition_in_torch(seed: int) -> None:
    """Log-probabilities to fp32's last bits; the same token for every number drawn."""
    import torch

    dice = np.random.default_rng(seed)
    logits = (dice.standard_normal(500) * dice.choice([0.5, 3.0, 12.0])).astype(np.float32)
    logits[dice.integers(0, 500, 20)] = logits[7]  # equals among them
    theirs = torch.log_softmax(torch.from_numpy(logits), -1).numpy()
    assert np.allclose(log_softmax(logits), theirs, rtol=3e-7, atol=1e-6)
    for draw in range(40):
        temperature = float(dice.choice([0.3, 1.0, 1.7]))
        rules = SamplingParams(
            temperature=temperature, top_k=int(dice.choice([0, 5, 50])), top_p=float(dice.choice([1.0, 0.8]))
        )
        u = float(dice.random())
        assert choose(logits, rules, u).token == _drawn(logits, rules, u), draw


def _drawn(logits: np.ndarray, rules: SamplingParams, u: float) -> int:
    """The definition, on torch."""
    import torch

    scores = torch.log_softmax(torch.from_numpy(logits), dim=-1)
    likely = torch.softmax((scores.double() - scores.max()) / rules.temperature, dim=-1)
    ordered, tokens = torch.sort(likely, descending=True, stable=True)
    keep = ordered > 0
    if rules.top_k:
        keep[rules.top_k :] = False
    if rules.top_p < 1:
        kept = torch.where(keep, ordered, 0)
        keep &= kept.cumsum(0) - kept < rules.top_p * kept.sum()
    keep[0] = True
    cumulated = torch.where(keep, ordered, 0).cumsum(0)
    return int(tokens[int(torch.searchsorted(cumulated, u * cumulated[-1], right=True))])


def test_logits_that_are_no_numbers_are_refused() -> None:
    for logits in (np.array([0.0, np.nan], np.float32), np.full(3, -np.inf, np.float32)):
        for rules in (SamplingParams(), SamplingParams(temperature=1.0), SamplingParams(logprobs=1)):
            with pytest.raises(BadLogitsError):
                choose(logits, rules, 0.5)
