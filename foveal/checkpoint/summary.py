"""What a model is made of: layers and their kinds, parameters total and active, bytes by format. Data, no printing.

The numbers come from the layout (`summarize`) or, for a checkpoint on disk, from the tensors that really lie there
(`inspect_checkpoint`). Parameters count logical values: scales and routing tables are not parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from foveal.checkpoint.layout import Storage, TensorSpec, WeightSpec, stored_tensors, weight_specs
from foveal.config import LayerKind, ModelConfig
from foveal.formats import BF16, E4M3, F16, F32, I8, I32, I64, U8


@dataclass(frozen=True)
class LayerSummary:
    """One layer or MTP block."""

    name: str
    kind: LayerKind
    ratio: int
    hashed: bool
    """Whether its experts are chosen by a table of token ids."""
    parameters: int
    nbytes: int


@dataclass(frozen=True)
class Summary:
    """A model in numbers. `parameters` and `active` leave out the MTP blocks (`mtp_parameters`), as published figures
    do; `active` counts what one token's arithmetic touches: its experts, not the others, and not the embedding table.
    """

    config: ModelConfig
    layers: tuple[LayerSummary, ...]
    parameters: int
    active: int
    mtp_parameters: int
    tensors: int
    stored_elements: int
    nbytes: int
    bytes_by_format: Mapping[str, int]

    def count(self, kind: LayerKind) -> int:
        """Main layers of one kind."""
        return len(self.config.layers_of(kind))


def summarize(config: ModelConfig, tensors: Iterable[TensorSpec] | None = None) -> Summary:
    """The numbers of a model from its config; with `tensors` (official names), sizes are those of these tensors."""
    weights = list(_counted(config))
    if tensors is None:
        stored = [(tensor, times) for spec, times in weights for tensor in stored_tensors(config, spec)]
    else:
        stored = [(tensor, 1) for tensor in tensors]
    parameters = [(spec, times) for spec, times in weights if spec.storage is not Storage.I64]
    main = [(spec, times) for spec, times in parameters if not spec.name.startswith("mtp.")]
    total, total_main = (sum(spec.elements * times for spec, times in some) for some in (parameters, main))
    return Summary(
        config=config,
        layers=_layers(config, parameters, stored),
        parameters=total_main,
        active=sum(_active(config, spec) for spec, _ in main),
        mtp_parameters=total - total_main,
        tensors=sum(times for _, times in stored),
        stored_elements=sum(tensor.elements * times for tensor, times in stored),
        nbytes=sum(tensor.nbytes * times for tensor, times in stored),
        bytes_by_format=_by_format(stored),
    )


def _counted(config: ModelConfig) -> Iterator[tuple[WeightSpec, int]]:
    """Every weight and how many there are of it: routed experts are alike, so one of each block stands for all. (Pro
    has 72,000 weights; walking over all of them would take a second.)"""
    for spec in weight_specs(config, experts=1):
        yield spec, config.n_routed_experts if spec.storage is Storage.EXPERT else 1


def inspect_checkpoint(path: Path | str) -> Summary:
    """The numbers of the checkpoint at `path`, opened but not read. Raises `CheckpointError` like `open_checkpoint`."""
    from foveal.checkpoint.reader import open_checkpoint  # a plan has no files to read

    checkpoint = open_checkpoint(path)
    return summarize(checkpoint.config, checkpoint.tensors)


def _active(config: ModelConfig, spec: WeightSpec) -> int:
    """Values that one token's arithmetic touches of a weight; of a routed expert, those of all that a token visits."""
    if spec.name == "embed.weight":
        return 0
    return spec.elements * (config.num_experts_per_tok if spec.storage is Storage.EXPERT else 1)


def _block_name(name: str) -> str | None:
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] in ("layers", "mtp") else None


def _layers(
    config: ModelConfig, weights: Iterable[tuple[WeightSpec, int]], stored: Iterable[tuple[TensorSpec, int]]
) -> tuple[LayerSummary, ...]:
    parameters: Counter[str | None] = Counter()
    nbytes: Counter[str | None] = Counter()
    for spec, times in weights:
        parameters[_block_name(spec.name)] += spec.elements * times
    for tensor, times in stored:
        nbytes[_block_name(tensor.name)] += tensor.nbytes * times
    names = [f"layers.{i}" for i in range(config.num_hidden_layers)]
    names += [f"mtp.{i}" for i in range(config.num_nextn_predict_layers)]
    return tuple(
        LayerSummary(
            name=name,
            kind=config.kind(index),
            ratio=config.compress_ratios[index],
            hashed=index < config.num_hash_layers,
            parameters=parameters[name],
            nbytes=nbytes[name],
        )
        for index, name in enumerate(names)
    )


_FORMAT_NAMES = {
    I8: "FP4",
    U8: "FP4",
    E4M3: "FP8",
    BF16: "BF16",
    F16: "FP16",
    F32: "FP32",
    I64: "INT64",
    I32: "INT32",
}


def _by_format(tensors: Iterable[tuple[TensorSpec, int]]) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for tensor, times in tensors:
        is_scale = tensor.name.endswith(".scale")
        sizes["scales" if is_scale else _FORMAT_NAMES[tensor.dtype]] += tensor.nbytes * times
    return dict(sizes.most_common())
