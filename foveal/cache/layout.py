"""Where everything lies: the byte layout of a page, and the bytes of a context by kind.

This is arithmetic over the config and nothing else; pages, sequences, files and `foveal plan` all ask it, so what is
planned is what is allocated. A page holds no padding. All CSA layers come first (for each, 64 entries and then 64 index
keys), then the 2 entries of each HCA layer, so that every CSA region starts at a multiple of 64 bytes. At the published
widths: 1024 or 584 bytes an entry, 256, 132 or 68 bytes a key.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from foveal.cache.codec import EntryCodec, IndexFp4, IndexFp8, KvFp8, Raw
from foveal.cache.contract import Part, entry_width, open_row_count, parts_of, row_width
from foveal.config import PAGE_TOKENS, LayerKind, ModelConfig
from foveal.formats import BF16, F32, DType

KvFormat = Literal["fp32", "bf16", "fp8"]
IndexFormat = Literal["fp32", "bf16", "fp8", "fp4"]

TOKEN_BYTES = 4
"""A token id is kept as int32."""


@dataclass(frozen=True)
class CacheFormat:
    """How attention entries (`kv`) and index keys (`index`) are stored. "fp32" is for exact comparisons.

    Raises `ValueError` naming the allowed formats.
    """

    kv: KvFormat = "bf16"
    index: IndexFormat = "bf16"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("kv", self.kv, get_args(KvFormat)),
            ("index", self.index, get_args(IndexFormat)),
        ):
            if value not in allowed:
                raise ValueError(f"cache format {name} is {value!r}; it must be one of {', '.join(allowed)}")

    @property
    def window_dtype(self) -> DType:
        """Raw window rows stay unpacked: BF16, which holds FP8 fake-quantised values exactly, or FP32."""
        return F32 if self.kv == "fp32" else BF16

    def __str__(self) -> str:
        return f"{self.kv}+{self.index}"


@dataclass(frozen=True)
class Region:
    """One compressor's entries inside a page: `count` entries of `entry_bytes` bytes from byte `offset` on."""

    layer: int
    part: Part
    offset: int
    count: int
    codec: EntryCodec

    @property
    def entry_bytes(self) -> int:
        return self.codec.nbytes

    @property
    def nbytes(self) -> int:
        return self.count * self.entry_bytes


@dataclass(frozen=True)
class CacheBytes:
    """Bytes by kind. The first six are what a context needs; the last three are what a live sequence holds besides."""

    window: int = 0
    csa_entries: int = 0
    index_keys: int = 0
    hca_entries: int = 0
    open_windows: int = 0
    tokens: int = 0
    reserved: int = 0
    """Room of the open page that is not filled yet."""
    kept_tails: int = 0
    """Earlier tails, kept so that `truncate` need not replay far."""
    views: int = 0
    """Decoded copies that make reading fast; derived, droppable."""

    @property
    def entries(self) -> int:
        """Everything compressed: CSA and HCA entries and index keys."""
        return self.csa_entries + self.index_keys + self.hca_entries

    @property
    def total(self) -> int:
        return sum(self.to_dict().values())

    def to_dict(self) -> dict[str, int]:
        """Kind -> bytes, in the order of the fields."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class CacheLayout:
    """The layout of `config`'s cache in `format`, of all its layers or of a stage's: those of `layers`.

    `regions` maps (layer, part) to its `Region`; `page_bytes` is the size of a page. MTP blocks are window-only and
    have no region: they live in the tail, and go with the last layer. `windows` are the layers and MTP blocks that have
    a window here. Raises `ValueError` when `layers` is no range of the model's layers.
    """

    def __init__(self, config: ModelConfig, format: CacheFormat | None = None, *, layers: range | None = None) -> None:
        count = config.num_hidden_layers
        self.config = config
        self.format = format or CacheFormat()
        self.layers = range(count) if layers is None else layers
        if not (0 <= self.layers.start < self.layers.stop <= count and self.layers.step == 1):
            raise ValueError(f"{self.layers} is no range of the model's layers, 0 to {count - 1}")
        blocks = range(count, len(config.compress_ratios)) if self.layers.stop == count else ()
        self.windows = (*self.layers, *blocks)
        self.regions: dict[tuple[int, Part], Region] = {}
        offset = 0
        for kind in (LayerKind.CSA, LayerKind.HCA):
            for layer in (layer for layer in config.layers_of(kind) if layer in self.layers):
                count = PAGE_TOKENS // config.compress_ratios[layer]
                for part in parts_of(config, layer):
                    region = Region(layer, part, offset, count, self._codec(part))
                    self.regions[layer, part] = region
                    offset += region.nbytes
        self.page_bytes = offset

    def _codec(self, part: Part) -> EntryCodec:
        width = entry_width(self.config, part)
        stored = self.format.kv if part is Part.MAIN else self.format.index
        if stored == "fp32":
            return Raw(width, F32)
        if stored == "bf16":
            return Raw(width, BF16)
        if part is Part.MAIN:
            return KvFp8(width, self.config.qk_rope_head_dim)
        return IndexFp4(width) if stored == "fp4" else IndexFp8(width)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CacheLayout) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[ModelConfig, CacheFormat, range]:
        return self.config, self.format, self.layers

    @property
    def whole(self) -> bool:
        """Whether all of the model's layers are in it."""
        return len(self.layers) == self.config.num_hidden_layers

    # ------------------------------------------------------------------ shapes

    def region(self, layer: int, part: Part) -> Region:
        """The region of a compressor. Raises `KeyError` naming the layer when it has none."""
        try:
            return self.regions[layer, part]
        except KeyError:
            raise KeyError(f"layer {layer} ({self.config.kind(layer)}) has no {part} compressor") from None

    def entry_bytes(self, layer: int, part: Part) -> int:
        """Bytes of one entry or key."""
        return self.region(layer, part).entry_bytes

    def window_shape(self, tokens: int) -> tuple[int, int]:
        """Shape of a layer's raw window after `tokens` tokens: the last W - 1 positions at most."""
        return min(tokens, self.config.sliding_window - 1), self.config.head_dim

    def open_shape(self, layer: int, part: Part, tokens: int) -> tuple[int, int]:
        """Shape of a compressor's open rows (kv, and the same again for gate) after `tokens` tokens."""
        rows = open_row_count(self.config.compress_ratios[layer], tokens)
        return rows, row_width(self.config, layer, part)

    # ------------------------------------------------------------------ bytes

    def window_bytes(self, tokens: int, *, mtp: bool = False) -> int:
        """Bytes of all layers' raw windows, with or without the MTP blocks'."""
        layers = len(self.windows) if mtp else len(self.layers)
        rows, width = self.window_shape(tokens)
        return layers * rows * width * self.format.window_dtype.itemsize

    def open_bytes(self, tokens: int) -> int:
        """Bytes of all compressors' open rows: kv and gate, fp32."""
        total = 0
        for layer, part in self.regions:
            rows, width = self.open_shape(layer, part, tokens)
            total += 2 * rows * width * F32.itemsize
        return total

    def tail_bytes(self, tokens: int, *, mtp: bool = False) -> int:
        """Bytes of the tail after `tokens` tokens: windows and open rows."""
        return self.window_bytes(tokens, mtp=mtp) + self.open_bytes(tokens)

    def bytes_at(self, tokens: int, *, mtp: bool = False) -> CacheBytes:
        """What `tokens` tokens leave behind, by kind; entries exactly as many as there are."""
        csa = index = hca = 0
        for region in self.regions.values():
            size = self.config.entries_after(tokens, region.layer) * region.entry_bytes
            if region.part is Part.INDEX:
                index += size
            elif self.config.kind(region.layer) is LayerKind.CSA:
                csa += size
            else:
                hca += size
        return CacheBytes(
            window=self.window_bytes(tokens, mtp=mtp),
            csa_entries=csa,
            index_keys=index,
            hca_entries=hca,
            open_windows=self.open_bytes(tokens),
            tokens=tokens * TOKEN_BYTES,
        )

    def published_bytes(self, tokens: int) -> int:
        """A context's bytes counted as published figures count them: entries, and windows of W rows stored as entries.

        Our own window has W - 1 rows (the newest token brings its own) and stays unpacked; `bytes_at` says that.
        """
        rows = len(self.layers) * min(tokens, self.config.sliding_window)
        return self.bytes_at(tokens).entries + rows * self._codec(Part.MAIN).nbytes

    @property
    def bytes_per_token(self) -> float:
        """Compressed bytes a token costs in the long run: `page_bytes` / 256."""
        return self.page_bytes / PAGE_TOKENS
