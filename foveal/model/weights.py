"""Between modules and the official tensor names.

The names of parameters are the checkpoint's, but for the experts: the network stacks them, the checkpoint lists them
one by one (``ffn.experts.7.w1.weight``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from foveal.config import ModelConfig, Numerics
from foveal.formats import Fp4Weight, Fp8Weight
from foveal.formats.tensors import Weight, dequantize, weight_tensors
from foveal.formats.weights import Weight as ArrayWeight
from foveal.model.linear import Matrix, MatrixStack
from foveal.model.transformer import Transformer
from foveal.ops import Operations, reference

AnyWeight = Weight | ArrayWeight
"""On tensors, or on arrays as a checkpoint has them: these become tensors on the same memory."""


def named_weights(model: Transformer) -> Iterator[tuple[str, Weight]]:
    """Every weight under its official name, as the network holds it (parameters detached)."""
    for path, module in model.named_modules():
        if isinstance(module, Matrix):
            yield f"{path}.weight", _detached(module.operand())
        elif isinstance(module, MatrixStack):
            for expert, weight in enumerate(module.operand()):
                yield _expert_name(path, expert), _detached(weight)
        else:
            for name, tensor in _own_tensors(module):
                yield f"{path}.{name}" if path else name, tensor.detach()


def load_transformer(
    config: ModelConfig,
    weights: Mapping[str, AnyWeight],
    *,
    dtype: torch.dtype | None = None,
    ops: Operations = reference,
    numerics: Numerics | None = None,
) -> Transformer:
    """A network that serves `weights` (official names; FP4, FP8 or plain).

    With `dtype` None every matrix stays as it is stored, memory-mapped or packed; with a dtype it is dequantised once,
    which costs memory and makes the reference backend much faster on small models. Small tensors become fp32.

    Raises `KeyError` naming the first weight that is missing, `ValueError` when one has the wrong shape or a table
    names an expert that there is not.
    """
    with torch.device("meta"):
        model = Transformer(config, ops=ops, numerics=numerics)
    for path, module in list(model.named_modules()):
        if isinstance(module, Matrix):
            module.hold(_fitting(weights, f"{path}.weight", module.shape), dtype)
        elif isinstance(module, MatrixStack):
            module.hold([_fitting(weights, _expert_name(path, i), module.shape) for i in range(module.count)], dtype)
        else:
            _fill(config, path, module, weights)
    return model.eval().requires_grad_(False)


def load_parameters(model: Transformer, weights: Mapping[str, AnyWeight]) -> None:
    """Copy `weights` into a trainable network's parameters, dequantised.

    Raises `KeyError` naming the first weight that is missing, `ValueError` when one has the wrong shape.
    """
    with torch.no_grad():
        for path, module in model.named_modules():
            if isinstance(module, MatrixStack):
                names = [_expert_name(path, i) for i in range(module.count)]
                stacked = [_plain(_fitting(weights, name, module.shape)) for name in names]
                _own_weight(module).copy_(torch.stack(stacked))
            elif isinstance(module, Matrix):
                _own_weight(module).copy_(_plain(_fitting(weights, f"{path}.weight", module.shape)))
            else:
                for name, tensor in _own_tensors(module):
                    full = f"{path}.{name}" if path else name
                    tensor.copy_(_plain(_fitting(weights, full, tensor.shape)))


def _fitting(weights: Mapping[str, AnyWeight], name: str, shape: tuple[int, ...]) -> Weight:
    weight = _on_tensors(weights[name])
    if tuple(weight.shape) != tuple(shape):
        raise ValueError(f"{name}: weight has shape {tuple(weight.shape)}, the network needs {tuple(shape)}")
    return weight


def _on_tensors(weight: AnyWeight) -> Weight:
    codes = weight.codes if isinstance(weight, Fp4Weight | Fp8Weight) else weight
    return cast(Weight, weight) if isinstance(codes, Tensor) else weight_tensors(cast(ArrayWeight, weight))


def _check_experts(name: str, table: Tensor, config: ModelConfig) -> None:
    lowest, highest = (int(value) for value in table.aminmax())
    if lowest < 0 or highest >= config.n_routed_experts:
        raise ValueError(f"{name} names experts {lowest} to {highest}; there are 0 to {config.n_routed_experts - 1}")


def _fill(config: ModelConfig, path: str, module: nn.Module, weights: Mapping[str, AnyWeight]) -> None:
    for name, tensor in list(_own_tensors(module)):
        full = f"{path}.{name}" if path else name
        value = _plain(_fitting(weights, full, tensor.shape))
        if name == "tid2eid":
            _check_experts(full, value, config)
        if name in module._buffers:
            module._buffers[name] = value.to(tensor.dtype).clone()
        else:
            module._parameters[name] = nn.Parameter(value.to(torch.float32).clone(), requires_grad=False)


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _own_weight(module: Matrix | MatrixStack) -> Tensor:
    assert module.weight is not None, "only a trainable network has parameters to load"
    return module.weight


def _expert_name(path: str, expert: int) -> str:
    stem, matrix = path.rsplit(".", 1)
    return f"{stem}.{expert}.{matrix}.weight"


def _detached(weight: Weight) -> Weight:
    return weight.detach() if isinstance(weight, Tensor) else weight


def _plain(weight: Weight) -> Tensor:
    return weight if isinstance(weight, Tensor) else dequantize(weight)
