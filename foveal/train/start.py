"""How a network's parameters begin, and how a stage of training sets the network up.

The trainer never branches on the network's inside; everything a stage changes in it (rounding of weights, simulated
run-time quantisation, how many entries attention sees) is set here once, when the stage begins.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from foveal.config import ModelConfig, Numerics
from foveal.model.attention import Attention
from foveal.model.experts import Experts
from foveal.model.indexer import Indexer
from foveal.model.linear import Matrix, MatrixStack
from foveal.model.transformer import Transformer
from foveal.train.loss import Weighing
from foveal.train.settings import StageConfig


def random_start(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Plain random weights: normal matrices of `initializer_range`, norms and scales 1, the rest 0; hash routing
    tables with distinct experts for each token id. Deterministic in `seed`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight") or name.endswith("_scale"):
                parameter.fill_(1.0)
            elif parameter.ndim >= 2 and not name.endswith(".ape"):
                parameter.normal_(0.0, config.initializer_range, generator=generator)
            else:
                parameter.zero_()
        for name, buffer in model.named_buffers():
            if name.endswith("gate.tid2eid"):
                order = torch.rand(len(buffer), config.n_routed_experts, generator=generator).argsort(-1)
                buffer.copy_(order[:, : buffer.shape[1]])
            elif name.endswith("gate.bias"):
                buffer.zero_()


def choose_trained(model: Transformer, weighing: Weighing, trainable: Collection[nn.Parameter]) -> None:
    """Let gradients reach those of the `trainable` parameters that steps of this `weighing` train, and no others.

    Every parameter left with a gradient gets one in every step, which DDP counts on: the indexer is out when its
    divergence has no weight, MTP blocks when theirs has none.
    """
    every = {id(parameter) for parameter in trainable}
    for name, parameter in model.named_parameters():
        indexer, mtp = ".indexer." in name, name.startswith("mtp.")
        if weighing.indexer_only:
            wanted = indexer
        else:
            wanted = (not indexer or weighing.index_kl > 0) and (not mtp or weighing.mtp > 0)
        parameter.requires_grad_(wanted and id(parameter) in every)


def prepare_stage(model: nn.Module, stage: StageConfig) -> None:
    """Make `model` compute what `stage` asks for.

    With ``stage.quantize`` matrices stored as FP4 or FP8 are rounded on the way with straight-through gradients, and
    KV, index keys and activations are simulated as the official inference code quantises them.
    """
    numerics = Numerics() if stage.quantize else Numerics.none()
    for module in model.modules():
        if isinstance(module, Matrix | MatrixStack):
            module.fake_quantize = stage.quantize
        if isinstance(module, Transformer | Attention | Experts):
            module.numerics = numerics
        if isinstance(module, Indexer):
            # More entries than any training sequence has: the dense stage.
            module.topk = stage.index_topk if stage.index_topk is not None else stage.length
