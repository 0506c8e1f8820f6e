"""Open a checkpoint: the official layout, or what transformers writes, sharded or in one file.

Everything is checked before anything is used, and every fault is in one error. Opening reads only headers; weights are
built when asked for, as views of the mapped files, and packed experts stay packed. What the tensors are decides their
formats, not what the config says they are: the returned config tells the truth.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveal.checkpoint.errors import CheckpointError
from foveal.checkpoint.files import CONFIG_FILE, StoredTensor, stored_in, text_of
from foveal.checkpoint.layout import Shape, Storage, TensorSpec, WeightSpec, weight_specs
from foveal.checkpoint.tensor_names import is_transformers_name, official_name
from foveal.checkpoint.values import wrong_values
from foveal.config import ConfigError, ModelConfig, read_fields
from foveal.formats import (
    BF16,
    E4M3,
    E8M0,
    F16,
    F32,
    FP4_BLOCK,
    I8,
    I32,
    I64,
    U8,
    Array,
    DType,
    Fp4Weight,
    Fp8Weight,
    Weight,
    fp8_scale_shape,
)
from foveal.process.logs import logger

_log = logger(__name__)

_PLAIN = (BF16, F16, F32)
_SCALES = (E8M0, U8, F32)
_FORMATS = {E4M3: "fp8", I8: "fp4", U8: "fp4", **dict.fromkeys(_PLAIN, "bf16")}
_ALLOWED = {Storage.LINEAR: ("fp8", "bf16"), Storage.EXPERT: ("fp4", "fp8", "bf16")}

# Tensors of sibling releases (vision, drafters) and leftovers the official converter drops: not part of this network.
_IGNORED = re.compile(r"^(aligner\.|image_|vision|mtp\.\d+\.(.*emb|.*\bhead\.weight))|\.gate\.bias_vl$")
# A drafter of another kind in place of the MTP block.
_OTHER_DRAFTER = re.compile(r"^mtp\.\d+\.(main_proj|main_norm|markov_head|confidence_head)\b")


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint.

    `config`: with `linear_dtype`, `expert_dtype`, `scale_dtype` and the number of MTP blocks as found in the files.
    `weights`: official name -> weight, in the network's order; building one maps memory and copies nothing.
    `tensors`: what lies on disk, under official names.
    """

    path: Path
    config: ModelConfig
    weights: Mapping[str, Weight]
    tensors: tuple[TensorSpec, ...]


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open the checkpoint in folder `path`: ``config.json`` and ``model.safetensors`` or an index with shards.

    Accepts UE8M0 and fp32 scales, plain BF16/F16/F32 in place of any packed format, int32 or int64 routing tables, and
    transformers' names and fused experts. Tensors of the vision and other sibling releases are ignored; so are all MTP
    tensors when the config asks for no MTP block.

    Raises `CheckpointError` listing every missing, extra, mis-shaped, wrongly typed or unreadable tensor and file,
    entries that are not finite or point outside a table (`foveal.checkpoint.values`), and what is wrong with
    ``config.json``.
    """
    folder = Path(path)
    problems: list[str] = []
    found = stored_in(folder, problems)
    whole = not problems
    config = _read_config(folder / CONFIG_FILE, found, problems)
    if not whole or config is None or _has_no_room(config, found, problems):
        # Without whole files every tensor in them would be reported as missing too: that would hide the cause.
        raise CheckpointError(f"cannot read checkpoint {folder}", problems)
    stored = _by_official_name(config, found, problems)
    config, entries = _match(config, stored, problems)
    problems += wrong_values(config, {spec: entry.stored for spec, entry in entries.items()})
    if problems:
        raise CheckpointError(f"cannot read checkpoint {folder}", problems)
    tensors = tuple(TensorSpec(t.name, t.shape, t.dtype) for entry in entries.values() for t in entry.stored)
    _log.info("checkpoint %s: %d tensors in %d layers", folder, len(tensors), config.num_hidden_layers)
    return Checkpoint(folder, config, _LazyWeights({spec.name: e for spec, e in entries.items()}), tensors)


# ---------------------------------------------------------------------- config


def _read_config(path: Path, found: Mapping[str, StoredTensor], problems: list[str]) -> ModelConfig | None:
    """The config, or as near as can be to what a faulty one describes, with as many MTP blocks as the tensors have."""
    try:
        data = json.loads(text_of(path))
        if not isinstance(data, dict):
            raise ConfigError("it must be a JSON object")
        values, wrong = read_fields(data)
        problems += [f"{CONFIG_FILE}: {problem}" for problem in wrong]
        config = ModelConfig(**values)
    except FileNotFoundError:
        problems.append(f"{CONFIG_FILE}: file is missing")
    except ConfigError as error:
        problems += [line for problem in error.problems if (line := f"{CONFIG_FILE}: {problem}") not in problems]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        if not any(problem.startswith(CONFIG_FILE) for problem in problems):
            problems.append(f"{CONFIG_FILE} is not readable: {type(error).__name__}: {error}")
    else:
        has_mtp = any(name.startswith("mtp.") for name in found)
        from_transformers = any(map(is_transformers_name, found)) and not has_mtp
        # transformers drops the MTP block but keeps the field that announces it.
        other = from_transformers or any(map(_OTHER_DRAFTER.match, found))
        return _without_mtp(config) if other else config
    return None


def _has_no_room(config: ModelConfig, found: Mapping[str, StoredTensor], problems: list[str]) -> bool:
    """Whether the config promises more experts than any tensor has rows: then their list would have no end."""
    most = max((tensor.shape[0] for tensor in found.values() if tensor.shape), default=0)
    if config.n_routed_experts <= most:
        return False
    problems.append(
        f"{CONFIG_FILE}: config field 'n_routed_experts' is {config.n_routed_experts}, but no tensor has so many rows"
    )
    return True


def _without_mtp(config: ModelConfig) -> ModelConfig:
    ratios = config.compress_ratios[: config.num_hidden_layers]
    return config.replace(num_nextn_predict_layers=0, compress_ratios=ratios)


# ---------------------------------------------------------------------- names


def _by_official_name(
    config: ModelConfig, found: Mapping[str, StoredTensor], problems: list[str]
) -> dict[str, StoredTensor]:
    """The tensors under their official names, fused experts taken apart into views."""
    stored: dict[str, StoredTensor] = {}
    for tensor in found.values():
        name = official_name(tensor.name)
        for part in _unfused(config, name, tensor):
            if part.name in stored:
                problems.append(f"{part.name}: there twice, once as {tensor.name}")
            stored[part.name] = part
    return stored


def _unfused(config: ModelConfig, name: str, tensor: StoredTensor) -> Iterator[StoredTensor]:
    """[E, 2m, d] gate_up_proj -> w1 and w3 of each expert; [E, d, m] down_proj -> w2. Others: themselves."""
    prefix, _, last = name.rpartition(".")
    d, m, count = config.hidden_size, config.moe_intermediate_size, config.n_routed_experts
    wanted = {"gate_up_proj": (count, 2 * m, d), "down_proj": (count, d, m)}.get(last)
    if wanted is None or not prefix.endswith(".experts") or tensor.shape != wanted:
        yield StoredTensor(name, tensor.shape, tensor.dtype, tensor.load)
        return
    for expert in range(count):
        if last == "down_proj":
            yield _part(f"{prefix}.{expert}.w2.weight", tensor, expert, 0, d)
        else:
            yield _part(f"{prefix}.{expert}.w1.weight", tensor, expert, 0, m)
            yield _part(f"{prefix}.{expert}.w3.weight", tensor, expert, m, 2 * m)


def _part(name: str, whole: StoredTensor, expert: int, start: int, stop: int) -> StoredTensor:
    def load() -> Array:
        return whole.load()[expert, start:stop]

    return StoredTensor(name, (stop - start, whole.shape[-1]), whole.dtype, load)


# ---------------------------------------------------------------------- matching


@dataclass(frozen=True)
class _Entry:
    """One weight and the tensors it is built from: itself, or codes and scale."""

    format: str
    stored: tuple[StoredTensor, ...]

    def build(self) -> Weight:
        tensors = [tensor.load() for tensor in self.stored]
        if self.format == "fp4":
            return Fp4Weight(*tensors)
        return Fp8Weight(*tensors) if self.format == "fp8" else tensors[0]


class _LazyWeights(Mapping[str, Weight]):
    """Builds a weight each time it is asked for; keeps nothing but where it lies."""

    def __init__(self, entries: Mapping[str, _Entry]) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> Weight:
        return self._entries[name].build()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries


def _match(
    config: ModelConfig, stored: Mapping[str, StoredTensor], problems: list[str]
) -> tuple[ModelConfig, dict[WeightSpec, _Entry]]:
    """Pair what must be there with what is there."""
    specs = list(weight_specs(config))
    formats = {storage: _common_format(specs, stored, storage) for storage in _ALLOWED}
    entries: dict[WeightSpec, _Entry] = {}
    used: set[str] = set()
    for spec in specs:
        entry = _entry(spec, stored, formats.get(spec.storage), problems)
        used.update((spec.name, spec.scale_name))
        if entry is not None:
            entries[spec] = entry
    extra = [tensor for name, tensor in stored.items() if name not in used and not _ignored(config, name)]
    problems.extend(f"{t.name}: not part of this model ({_show(t.dtype, t.shape)})" for t in extra)
    return _true_config(config, formats, entries.values(), problems), entries


def _ignored(config: ModelConfig, name: str) -> bool:
    if name.startswith("mtp.") and config.num_nextn_predict_layers == 0:
        return True
    hashed = re.match(r"layers\.(\d+)\.ffn\.gate\.bias$", name)  # the vision release has it, unused for text
    return bool(_IGNORED.search(name)) or (hashed is not None and int(hashed[1]) < config.num_hash_layers)


def _common_format(specs: list[WeightSpec], stored: Mapping[str, StoredTensor], storage: Storage) -> str:
    """The format most weights of one kind have in the files."""
    names = [spec.name for spec in specs if spec.storage is storage]
    present = (_FORMATS.get(stored[name].dtype) for name in names if name in stored)
    counts = Counter(f for f in present if f in _ALLOWED[storage])
    return counts.most_common(1)[0][0] if counts else "bf16"


def _entry(
    spec: WeightSpec, stored: Mapping[str, StoredTensor], common: str | None, problems: list[str]
) -> _Entry | None:
    tensor = stored.get(spec.name)
    if tensor is None:
        problems.append(f"{spec.name}: missing (shape {list(spec.shape)})")
        return None
    format_ = common or ("i64" if spec.storage is Storage.I64 else "plain")
    before = len(problems)
    _check(tensor, _codes_dtypes(format_), _codes_shape(spec.shape, format_), problems)
    scale = stored.get(spec.scale_name) if spec.scale_name != spec.name else None
    if format_ in ("fp4", "fp8"):
        if scale is None:
            problems.append(f"{spec.scale_name}: missing (shape {list(_scale_shape(spec.shape, format_))})")
            return None
        _check(scale, _SCALES, _scale_shape(spec.shape, format_), problems)
        return _Entry(format_, (tensor, scale)) if len(problems) == before else None
    if scale is not None and spec.name.endswith("weight"):
        problems.append(f"{scale.name}: a scale beside a weight that is not packed")
    return _Entry(format_, (tensor,)) if len(problems) == before else None


def _check(tensor: StoredTensor, dtypes: tuple[DType, ...], shape: Shape, problems: list[str]) -> None:
    if tensor.dtype not in dtypes or tensor.shape != shape:
        wanted = " or ".join(_name(dtype) for dtype in dtypes)
        problems.append(f"{tensor.name}: is {_show(tensor.dtype, tensor.shape)}, must be {wanted} {list(shape)}")


def _codes_dtypes(format_: str) -> tuple[DType, ...]:
    match format_:
        case "fp4":
            return (I8, U8)
        case "fp8":
            return (E4M3,)
        case "i64":
            return (I64, I32)
        case _:
            return _PLAIN


def _codes_shape(shape: Shape, format_: str) -> Shape:
    return (*shape[:-1], shape[-1] // 2) if format_ == "fp4" else shape


def _scale_shape(shape: Shape, format_: str) -> Shape:
    return (*shape[:-1], shape[-1] // FP4_BLOCK) if format_ == "fp4" else fp8_scale_shape(shape)


def _true_config(
    config: ModelConfig, formats: Mapping[Storage, str], entries: Iterable[_Entry], problems: list[str]
) -> ModelConfig:
    """`config` with the storage formats the files really have."""
    scales = Counter(entry.stored[1].dtype == F32 for entry in entries if len(entry.stored) == 2)
    changes: dict[str, Any] = {"linear_dtype": formats[Storage.LINEAR], "expert_dtype": formats[Storage.EXPERT]}
    if scales:
        changes["scale_dtype"] = "float32" if scales.most_common(1)[0][0] else "ue8m0"
    try:
        return config.replace(**changes)
    except ConfigError as error:
        problems += error.problems
        return config


def _name(dtype: DType) -> str:
    return dtype.name


def _show(dtype: DType, shape: Shape) -> str:
    return f"{_name(dtype)} {list(shape)}"
