"""How fast a run trains: tokens a second, and what part of what the device can multiply.

The work is counted from the network's shape (only products that the report's formulas ask for, not what an
implementation does beside them), and the ceiling is measured on the same device in the same dtype.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import torch

from foveal.config import CSA_RATIO, LayerKind, ModelConfig
from foveal.train import launch
from foveal.train.parallel import Group, joined
from foveal.train.prefetch import Prefetch
from foveal.train.settings import RunConfig, StageConfig
from foveal.train.structured import Circuit
from foveal.train.trainer import Trainer


@dataclass(frozen=True)
class Measured:
    """One stage: tokens of a step, seconds of its parts, work in floating-point operations, and the device's ceiling in
    the same unit a second. `operations`: names and shares of the time, the largest first (when profiled)."""

    stage: int
    tokens: int
    seconds: float
    forward: float
    backward: float
    optimizer: float
    flops_per_token: float
    ceiling: float
    operations: tuple[tuple[str, float], ...] = ()

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def flops_per_second(self) -> float:
        return self.tokens_per_second * self.flops_per_token

    @property
    def fraction(self) -> float:
        """Of the ceiling."""
        return self.flops_per_second / self.ceiling

    def to_dict(self) -> dict[str, object]:
        """All numbers, for JSON."""
        derived = {name: getattr(self, name) for name in ("tokens_per_second", "flops_per_second", "fraction")}
        return dataclasses.asdict(self) | derived


def training_flops(
    config: ModelConfig, stage: StageConfig, *, indexed: bool, mtp: bool, keep_circuit: bool = False
) -> float:
    """Operations a token of a training step needs: three times (forward, and two products backward) twice the
    multiplications of the forward pass, averaged over the row; forward alone where a kept circuit is not trained."""
    d = config.hidden_size
    total = float(d * config.vocab_size)
    kept = Circuit.of(config).parameters if keep_circuit else ()
    layers = config.num_hidden_layers + (config.num_nextn_predict_layers if mtp else 0)
    for layer in range(layers):
        for part, count in (("attn.", _attention(config, stage, layer, indexed)), ("ffn.", _experts(config))):
            total += count / 3 if f"layers.{layer}.{part}".startswith(kept) else count
    if mtp:
        total += d * config.vocab_size + 2 * d * d
    return 6 * total


def _attention(config: ModelConfig, stage: StageConfig, layer: int, indexed: bool) -> float:
    """Multiplications of a layer's attention a token, with its hyper-connection."""
    d, heads, c = config.hidden_size, config.num_attention_heads, config.head_dim
    length = stage.length if stage.documents is None else sum(stage.documents) / 2
    total = config.q_lora_rank * (d + heads * c) + c * d + _hyper(config)
    total += heads * c * config.o_lora_rank + d * config.o_groups * config.o_lora_rank
    seen: float = min(length, config.sliding_window)
    ratio = config.compress_ratios[layer]
    if ratio:
        overlap = 2 if ratio == CSA_RATIO else 1
        total += 2 * overlap * c * d
        entries = length / ratio / 2
        if config.kind(layer) is LayerKind.CSA and indexed:
            keys = config.index_n_heads * config.index_head_dim
            total += keys * config.q_lora_rank + 4 * config.index_head_dim * d + keys * entries
            entries = min(entries, stage.index_topk or entries)
        seen += entries
    return total + 2 * heads * c * seen


def _experts(config: ModelConfig) -> float:
    """Those of a layer's experts, with their hyper-connection."""
    d, width = config.hidden_size, config.moe_intermediate_size
    active = config.num_experts_per_tok + config.n_shared_experts
    return 3 * d * width * active + d * config.n_routed_experts + _hyper(config)


def _hyper(config: ModelConfig) -> float:
    return (2 + config.hc_mult) * config.hc_mult**2 * config.hidden_size


def ceiling(device: torch.device, dtype: torch.dtype, size: int = 1536) -> float:
    """Operations a second of a square matrix product, the best of a few."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        _wait(device)
        began = time.perf_counter()
        a @ b
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def measure_run(run: RunConfig, steps: int, *, profile: bool = False) -> list[Measured]:
    """Time `steps` steps of every stage (after two that are not counted). Nothing is saved."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder, joined(run.device, run.parallel) as group:
        trainer = launch.build(dataclasses.replace(run, out=folder), group)
        top = ceiling(group.device, trainer.model.precision, 1536 if group.device.type == "cpu" else 8192)
        return [_measure(trainer, number, steps, top, group, profile) for number in range(len(run.stages))]


def _measure(trainer: Trainer, number: int, steps: int, top: float, group: Group, profile: bool) -> Measured:
    stage = trainer.run.stages[number]
    trainer._begin(stage, 0.5)
    with Prefetch(trainer.feed, trainer.run.workers) as prefetch:
        for _ in range(2):
            trainer._step(stage, 0.5, prefetch)
        trainer.times.clear()
        _wait(group.device)
        began = time.perf_counter()
        for _ in range(steps):
            trainer._step(stage, 0.5, prefetch)
        _wait(group.device)
        seconds = (time.perf_counter() - began) / steps
        times = {name: total / steps for name, total in trainer.times.items()}
        operations = _profile(trainer, stage, prefetch) if profile else ()
    weighing = trainer._weighing(stage, 0.5, 1, 1, 1)
    indexed = weighing.index_kl > 0 or weighing.indexer_only or stage.index_topk is not None
    return Measured(
        stage=number,
        tokens=stage.length * stage.sequences,
        seconds=seconds,
        forward=times.get("forward", 0.0),
        backward=times.get("backward", 0.0),
        optimizer=times.get("optimizer", 0.0),
        flops_per_token=training_flops(
            trainer.network.config,
            stage,
            indexed=indexed,
            mtp=weighing.mtp > 0,
            keep_circuit=trainer.run.keep_circuit,
        )
        / (3 if weighing.indexer_only else 1),
        ceiling=top * group.size,
        operations=operations,
    )


def _profile(trainer: Trainer, stage: StageConfig, prefetch: Prefetch) -> tuple[tuple[str, float], ...]:
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    gpu = trainer.group.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as made:
        trainer._step(stage, 0.5, prefetch)
    attribute = "self_device_time_total" if gpu else "self_cpu_time_total"
    # An operation has its kernels' time, and on a GPU the kernels are listed once more by their own names.
    events = [event for event in made.key_averages() if event.device_type == DeviceType.CPU]
    spent = {event.key: float(getattr(event, attribute)) for event in events}
    total = sum(spent.values())
    best = sorted(spent.items(), key=lambda pair: -pair[1])[:12]
    return tuple((name, value / max(1e-9, total)) for name, value in best)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
