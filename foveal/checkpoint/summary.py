"""What a model is made of: layers and their kinds, parameters total and active, bytes by format. Data, no printing.

What is special here: the numbers come from the layout (`summarize`) or, for a checkpoint on disk, from the tensors that
really lie there (`inspect_checkpoint`). Parameters count logical values: scales and routing tables are not parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from foveal.checkpoint.layout import Storage, TensorSpec, WeightSpec, tensor_specs, weight_specs
from foveal.checkpoint.reader import open_checkpoint
from foveal.config import LayerKind, ModelConfig


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
    stored = list(tensor_specs(config) if tensors is None else tensors)
    weights = list(weight_specs(config))
    parameters = [spec for spec in weights if spec.storage is not Storage.I64]
    main = [spec for spec in parameters if not spec.name.startswith("mtp.")]
    total = sum(spec.elements for spec in parameters)
    return Summary(
        config=config,
        layers=_layers(config, parameters, stored),
        parameters=sum(spec.elements for spec in main),
        active=sum(_active(config, spec) for spec in main),
        mtp_parameters=total - sum(spec.elements for spec in main),
        tensors=len(stored),
        stored_elements=sum(tensor.elements for tensor in stored),
        nbytes=sum(tensor.nbytes for tensor in stored),
        bytes_by_format=_by_format(stored),
    )


def inspect_checkpoint(path: Path | str) -> Summary:
    """The numbers of the checkpoint at `path`, opened but not read. Raises `CheckpointError` like `open_checkpoint`."""
    checkpoint = open_checkpoint(path)
    return summarize(checkpoint.config, checkpoint.tensors)


def _active(config: ModelConfig, spec: WeightSpec) -> int:
    if spec.name == "embed.weight":
        return 0
    if spec.storage is Storage.EXPERT:
        # All experts have one shape: count each with the share of them a token visits, in whole numbers.
        used = int(spec.name.split(".experts.")[1].split(".")[0]) < config.num_experts_per_tok
        return spec.elements if used else 0
    return spec.elements


def _block_name(name: str) -> str | None:
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] in ("layers", "mtp") else None


def _layers(
    config: ModelConfig, weights: Iterable[WeightSpec], stored: Iterable[TensorSpec]
) -> tuple[LayerSummary, ...]:
    parameters: Counter[str | None] = Counter()
    nbytes: Counter[str | None] = Counter()
    for spec in weights:
        parameters[_block_name(spec.name)] += spec.elements
    for tensor in stored:
        nbytes[_block_name(tensor.name)] += tensor.nbytes
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
    torch.int8: "FP4",
    torch.uint8: "FP4",
    torch.float8_e4m3fn: "FP8",
    torch.bfloat16: "BF16",
    torch.float16: "FP16",
    torch.float32: "FP32",
    torch.int64: "INT64",
    torch.int32: "INT32",
}


def _by_format(tensors: Iterable[TensorSpec]) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        is_scale = tensor.name.endswith(".scale")
        sizes["scales" if is_scale else _FORMAT_NAMES[tensor.dtype]] += tensor.nbytes
    return dict(sizes.most_common())
