"""Several processes on one run: who computes which rows, and how gradients and parameters come together.

The trainer is written for a group of any size, one included. Started by ``torchrun`` a run uses DDP (every process
holds all parameters) or FSDP2 (each holds a share); both give the losses of one process with the same global batch.
Checkpoints hold whole tensors, so a run may go on with another number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from foveal.errors import FovealError
from foveal.train.loss import TrainTransformer

Kind = Literal["none", "ddp", "fsdp"]


class ParallelError(FovealError, ValueError):
    """The processes cannot share this run; the message says why."""

    code = "invalid_request"


@dataclass(frozen=True)
class Group:
    """The processes of a run: this one's number, how many there are, its device, and how they share parameters."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    kind: Kind = "none"

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, in every one."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def agreed(self, values: list[float]) -> list[float]:
        """The first process's numbers, in every one."""
        if self.size == 1:
            return values
        told = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.broadcast(told, 0)
        return [float(value) for value in told]

    def rows(self, count: int) -> range:
        """Which of `count` rows are this process's: they are dealt out one by one."""
        return range(self.rank, count, self.size)

    def all_rows(self, own: Tensor) -> Tensor:
        """The rows of all processes, in order, from each one's `own` [B, ...] (as many in each); in every one."""
        if self.size == 1:
            return own
        own = own.to(self.device).contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own)
        return torch.stack(parts, dim=1).flatten(0, 1)

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined(device: str, kind: str) -> Iterator[Group]:
    """The group that torchrun's environment describes, or this process alone; left again at the end.

    `device` is "auto", "cpu" or "cuda"; `kind` "auto", "ddp" or "fsdp". Raises `ParallelError` when there is no such
    device.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ParallelError("setting 'device' is 'cuda', but torch sees no GPU here; use 'auto' or 'cpu'")
    chosen = torch.device("cuda", local) if device == "cuda" else torch.device("cpu")
    if chosen.type == "cuda":
        if local >= torch.cuda.device_count():
            raise ParallelError(f"process {local} has no GPU: there are {torch.cuda.device_count()}; start fewer")
        torch.cuda.set_device(chosen)
    if size == 1:
        yield Group(device=chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(minutes=30))
    try:
        yield Group(rank, size, chosen, "ddp" if kind == "auto" else kind)  # type: ignore[arg-type]
    finally:
        dist.destroy_process_group()


class Shared:
    """A training network among the processes of a group: runs it, and gathers what is spread."""

    def __init__(self, module: TrainTransformer, group: Group) -> None:
        self.module, self.group = module, group
        self._runner: nn.Module = module
        if group.kind == "fsdp":
            _shard(module)

    def begin_stage(self) -> None:
        """Call when it has changed which parameters are trained."""
        if self.group.kind == "ddp":
            from torch.nn.parallel import DistributedDataParallel

            self._runner = DistributedDataParallel(self.module, gradient_as_bucket_view=True)

    @property
    def runner(self) -> nn.Module:
        """What to call: the network's forward, with the group's hooks around it."""
        return self._runner

    @contextmanager
    def gradients(self, *, complete: bool) -> Iterator[None]:
        """Around a forward and backward: only the last one of a step (`complete`) brings gradients together."""
        if self.group.kind == "ddp" and not complete:
            with self._runner.no_sync():  # type: ignore[operator]
                yield
            return
        if self.group.kind == "fsdp":
            self.module.set_requires_gradient_sync(complete)  # type: ignore[operator]
        yield

    def rest(self) -> None:
        """Call after a pass without gradients: FSDP takes parameters back to their shares in a backward pass only."""
        if self.group.kind == "fsdp":
            from torch.distributed.fsdp import FSDPModule

            for module in self.module.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    def state(self) -> dict[str, Tensor]:
        """The network's parameters and buffers, whole, on the CPU. All processes must call it."""
        return {name: whole(tensor).cpu() for name, tensor in self.module.model.state_dict().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set parameters and buffers from whole tensors. Raises `ValueError` when names or shapes differ."""
        own = self.module.model.state_dict()
        wrong = sorted(n for n in own.keys() | tensors.keys() if n not in own or n not in tensors)
        wrong += sorted(n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape)
        if wrong:
            raise ValueError(f"tensors are missing, left over or of another shape: {wrong[:8]}")
        with torch.no_grad():
            for name, tensor in own.items():
                local(tensor).copy_(share(tensors[name], tensor))


def _shard(module: TrainTransformer) -> None:
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # Blocks stay whole from forward to backward: index loss and balance leave them beside their output, and what runs
    # backward before a block's output does would find its parameters freed. The MTP block goes with the root.
    for block in module.model.layers:
        fully_shard(block, reshard_after_forward=False)
    fully_shard(module)
    for name in ("answers", "choices"):
        register_fsdp_forward_method(module, name)


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of one that may be sharded (then a collective), detached."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's share of a tensor that may be sharded, detached; writing to it changes the tensor."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def share(full: Tensor, like: Tensor) -> Tensor:
    """The part of `full` that this process holds of `like` (all of it when that is not sharded)."""
    if not isinstance(like, DTensor):
        return full
    mesh = like.device_mesh
    parts = full.chunk(mesh.size(), dim=0)
    number = mesh.get_local_rank()
    return parts[number] if number < len(parts) else full[:0]


def gathered(part: Tensor, like: Tensor) -> Tensor:
    """The inverse of `share`: the full tensor of which every process holds its `part`. A collective."""
    if not isinstance(like, DTensor):
        return part
    spread = DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return spread.full_tensor()
