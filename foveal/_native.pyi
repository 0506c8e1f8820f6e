"""
Foveal's native kernels for the CPU. Tensors are passed as DLPack; see native/ for the sources.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

Array: TypeAlias = Any
# numpy's arrays and torch's tensors; the module checks dtypes and shapes.

def available_isas() -> list[str]:
    """Instruction sets with kernels in this build that this machine runs."""

class Matrix:
    """
    A weight [rows, columns] as the checkpoint stores it: "f32", "bf16", "fp8" (E4M3, E8M0 scales
    of 128 x 128 blocks) or "fp4" (packed E2M1, E8M0 scales of 1 x 32 blocks). Keeps its arrays alive.
    skip_zeros: blocks of zeros are looked for now and not read later; inputs must be finite.
    Raises ValueError when the sizes do not fit.
    """

    def __init__(
        self,
        format: str,
        rows: int,
        columns: int,
        data: object,
        scale: object | None = None,
        *,
        skip_zeros: bool = False,
    ) -> None: ...
    @property
    def skipped(self) -> float:
        """The part of the weight that is zeros and never read."""

class Runtime:
    """
    Threads, scratch memory and the kernels of one instruction set. threads 0: the physical cores;
    isa "": the best one here. exact: activations enter products as two BF16 numbers (agrees with fp32
    to about 1e-5) instead of one. To be used from one thread at a time.
    """

    def __init__(self, *, threads: int = 0, isa: str = "", exact: bool = False) -> None: ...
    @property
    def threads(self) -> int: ...
    @property
    def isa(self) -> str: ...
    @property
    def growths(self) -> int:
        """Requests to the system for scratch memory so far."""

    @property
    def scratch_bytes(self) -> int: ...

def linear(
    runtime: Runtime, x: Array, weights: Sequence[Matrix], simulate: Sequence[bool], out: Sequence[Array]
) -> None:
    """
    Products of one input x [n, columns] with several weights: out[i] [n, rows] = x @ weights[i].T. Where simulate[i],
    x goes through FP8 first. Raises ValueError when shapes do not fit.
    """

def grouped_output(
    runtime: Runtime, heads: Array, wo_a: Matrix, wo_b: Matrix, groups: int, simulate: bool, out: Array
) -> None:
    """
    heads [n, groups * width] through wo_a's rows of each group, then all through wo_b: out [n, d].
    """

def route(
    runtime: Runtime,
    y: Array,
    gate: Matrix,
    bias: Array | None,
    table: Array | None,
    tokens: Array | None,
    scale: float,
    chosen: Array,
    weights: Array,
    affinity: Array,
) -> None:
    """
    The experts of each token: fills chosen and weights [n, A] and affinity [n, E].
    """

def experts(
    runtime: Runtime,
    y: Array,
    chosen: Array,
    weights: Array,
    w1: Sequence[Matrix],
    w2: Sequence[Matrix],
    w3: Sequence[Matrix],
    shared: Sequence[Matrix],
    limit: float,
    simulate: bool,
    out: Array,
) -> None:
    """
    SwiGLU experts of y [n, d], weighted, in ascending order, then the shared (w1, w2, w3): out [n, d].
    """

def embed(runtime: Runtime, table: Matrix, tokens: Array, out: Array) -> None:
    """
    Rows of `table` (bf16 or f32) for tokens int64 [n], repeated for each stream: out [n, S, d].
    """

def hyper_pre(
    runtime: Runtime,
    streams: Array,
    fn: Array,
    base: Array,
    scale: Array,
    iterations: int,
    eps: float,
    norm_eps: float,
    norm: Array | None,
    x: Array,
    post: Array,
    comb: Array,
) -> None:
    """
    Streams [n, S, d] -> x [n, d] (RMS-normed and times `norm` [d] unless that is None), post [n, S], comb
    [n, S, S] (source, destination). fn [(2 + S) * S, S * d], base [(2 + S) * S], scale [3].
    """

def hyper_head(
    runtime: Runtime,
    streams: Array,
    fn: Array,
    base: Array,
    scale: Array,
    eps: float,
    norm_eps: float,
    norm: Array | None,
    x: Array,
) -> None:
    """
    Streams [n, S, d] -> x [n, d] that the LM head reads. fn [S, S * d], base [S], scale [1].
    """

def hyper_post(runtime: Runtime, out: Array, post: Array, comb: Array, streams: Array) -> None:
    """
    Streams [n, S, d] in place: destination k gets post_k * out + sum of comb[j, k] * stream_j.
    """

def rms_norm(runtime: Runtime, x: Array, weight: Array | None, eps: float, out: Array) -> None:
    """
    x [n, width] / rms, times weight [width] unless None -> out [n, width].
    """

def finish_query(runtime: Runtime, x: Array, positions: Array, frequencies: Array, eps: float, quantize: bool) -> None:
    """
    x [n, heads, c] in place: RMS norm of each head (eps < 0: none), rotation at int64 positions [n], with
    `quantize` the Hadamard rotation and FP4.
    """

def finish_kv(
    runtime: Runtime,
    x: Array,
    positions: Array,
    frequencies: Array,
    weight: Array,
    eps: float,
    quantize: bool,
    rows: Array,
) -> None:
    """
    x [n, c]: RMS norm times weight, rotation, with `quantize` the FP8 of KV rows -> rows [n, c], float32,
    bfloat16 or (BF16 bits) uint16.
    """

def rotate(runtime: Runtime, x: Array, positions: Array, frequencies: Array, inverse: bool) -> None:
    """
    Rotates the last channels of x [n, heads, c] in place, as interleaved pairs.
    """

def quantize_kv(runtime: Runtime, x: Array, rotary: int) -> None:
    """
    x [n, c] in place: FP8 in blocks of 64 before the last `rotary` channels, BF16 on those.
    """

def quantize_index(runtime: Runtime, x: Array) -> None:
    """
    x [n, width] in place: Hadamard rotation, FP4 in blocks of 32. width must be a power of two.
    """

def quantize_activations(runtime: Runtime, x: Array) -> None:
    """x [n, width] in place: FP8 in blocks of 128."""

def compress(
    runtime: Runtime,
    past_kv: Array | None,
    past_gate: Array | None,
    kv: Array,
    gate: Array,
    length: int,
    first: int,
    last: int,
    ratio: int,
    overlap: bool,
    norm: Array,
    eps: float,
    frequencies: Array,
    finish: str,
    codec: str,
    out: Array,
) -> None:
    """
    Entries [first, last) -> their bytes, uint8 [last - first, bytes of one]. kv and gate [rows, width]
    stand at positions `length` and on; past_kv and past_gate (or None) are rings of the positions before.
    width is e (HCA) or 2 e (CSA, `overlap`). finish: "plain", "kv" or "index"; codec: "f32", "bf16",
    "kv_fp8", "index_fp4" or "index_fp8". Raises ValueError for wrong shapes or missing rows.
    """

def add_position_bias(runtime: Runtime, gate: Array, ape: Array, position: int) -> None:
    """
    gate [n, width] in place: adds ape[(position + i) % ratio]; ape [ratio, width].
    """

def encode_entries(runtime: Runtime, codec: str, entries: Array, rotary: int, out: Array) -> None:
    """
    Entries float32 [n, e] -> uint8 [n, bytes], as foveal.cache.codec does.
    """

def decode_entries(runtime: Runtime, codec: str, rows: Array, rotary: int, entries: Array) -> None:
    """The inverse of encode_entries."""

def entry_bytes(codec: str, width: int, rotary: int) -> int:
    """Bytes of one entry."""

class IndexKeys:
    """
    Index keys packed for scoring. `data`: raw bytes of `count` keys of `width` channels, stored as
    `codec` "f32", "bf16", "fp4" or "fp8". `kind`: "fp4" (the keys are exactly FP4 in blocks of 32;
    others are rounded to it), "bf16" or "f32". `per_page`: 1 to 64 keys, written `step` at a time.
    ValueError for sizes that do not fit.
    """

    def __init__(
        self,
        runtime: Runtime,
        data: Array,
        count: int,
        width: int,
        *,
        codec: str,
        kind: str,
        per_page: int = 64,
        step: int = 64,
    ) -> None: ...
    def forked(self, runtime: Runtime, data: Array, count: int, *, codec: str) -> IndexKeys:
        """
        The full pages of these keys, shared, and `count` more keys behind them.
        """

    @property
    def count(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def nbytes(self) -> int:
        """Bytes of all packs."""

def index_is_fp4(x: Array) -> bool:
    """
    Whether rows [n, width] fp32 are FP4 codes times one power of two in every block of 32.
    """

def index_scores(runtime: Runtime, query: Array, weights: Array, keys: IndexKeys, out: Array) -> None:
    """
    Scores of queries [n, I, ci] with weights [n, I] over all keys into out [n, keys], fp32.
    """

def index_topk(runtime: Runtime, jobs: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """
    For every job (query [n, I, ci], weights [n, I], keys, visible [n] int64, chosen [n, k] int32): the k best of
    the first visible[i] keys, ascending, then -1; ties take the lowest index. Returns how many keys were visible
    and how many were scored, of all tokens.
    """

class AttendJob:
    """
    Attention of n consecutive tokens of one sequence: `query` [n, H, c] fp32, rotated; the first token stands at
    `position`; `out` [n, H, c]; `sink` [H]; `frequencies` [R / 2], radians a position.
    Raw rows (`window_codec` "f32" or "bf16"): `fresh` holds positions `length` to position + n; older ones lie
    in the ring `past`, position p in row p modulo its rows (a power of two). A token looks at the last
    `window_size`.
    Entries (`entry_codec` "f32", "bf16" or "fp8"): entry s is slot s % per_page, from byte `offset` on, of
    pages[s // per_page]; `count` of them, `rotary` rotary channels in FP8 ones. A token looks at its row of
    `indices` [n, k] int32 (ascending, then -1), else at the first (p + 1) // ratio (ratio 0: none).
    `entry_mass` [trace, k or count] and `window_mass` [trace, W] get the weight summed over heads for the last
    `trace` tokens. Raises ValueError for sizes that do not fit.
    """

    def __init__(
        self,
        *,
        query: Array,
        position: int,
        out: Array,
        sink: Array,
        frequencies: Array,
        fresh: Array,
        length: int,
        past: Array | None = None,
        window_codec: str,
        window_size: int,
        pages: Sequence[Array] = [],
        entry_codec: str = "bf16",
        count: int = 0,
        per_page: int = 1,
        offset: int = 0,
        rotary: int = 0,
        ratio: int = 0,
        indices: Array | None = None,
        entry_mass: Array | None = None,
        window_mass: Array | None = None,
    ) -> None: ...

def attend(runtime: Runtime, jobs: Sequence[AttendJob]) -> None:
    """Runs `AttendJob`s together."""

def greedy(runtime: Runtime, logits: Array) -> tuple[int, float]:
    """
    The likeliest token (the lowest of equals) of logits fp32 [V], and its log-probability.

    Raises ValueError when a logit is NaN or none is finite.
    """

class CacheShape:
    """Where a sequence's entries lie (foveal.backends.cpu.live makes it)."""

    def __init__(
        self,
        arg0: int,
        arg1: int,
        arg2: int,
        arg3: str,
        arg4: str,
        arg5: Sequence[
            tuple[int, tuple[str, int, int, int, int, int] | None, tuple[str, int, int, int, int, int] | None]
        ],
        arg6: int,
        /,
    ) -> None: ...
    @property
    def slots(self) -> int: ...
    @property
    def slot_bytes(self) -> int: ...
    @property
    def slab_bytes(self) -> int: ...

def fill_slots(arg0: Runtime, arg1: CacheShape, arg2: Sequence[tuple[int, int, int]], arg3: Sequence[int], /) -> None:
    """
    Fill the slots of (page address, slab address, slot) with what the first tokens[i] tokens left in page i, in
    all layers. The caller holds the memory, and vouches for its size.
    """

class Live:
    """
    A sequence in work: pages, and its tail in rings (foveal.backends.cpu.live owns it).
    """

    def __init__(self, arg: CacheShape, /) -> None: ...
    @property
    def length(self) -> int: ...
    @length.setter
    def length(self, arg: int, /) -> None: ...
    @property
    def page_count(self) -> int: ...
    def add_pages(self, arg: Sequence[tuple[int, int, int]], /) -> None: ...
    def put_window(self, arg0: int, arg1: int, arg2: int, arg3: object, /) -> None: ...
    def get_window(self, arg0: int, arg1: int, arg2: int, arg3: object, /) -> None: ...
    def put_open(self, arg0: int, arg1: bool, arg2: int, arg3: int, arg4: object, arg5: object, /) -> None: ...
    def get_open(self, arg0: int, arg1: bool, arg2: int, arg3: int, arg4: object, arg5: object, /) -> None: ...
    def commit(self, arg: int, /) -> None: ...

class Network:
    """All layers in one call (foveal.backends.cpu makes it)."""

    def __init__(self, arg0: object, arg1: dict[str, Any], /) -> None: ...
    def add_layer(self, arg: dict[str, Any], /) -> None: ...
    def set_ends(self, arg: dict[str, Any], /) -> None: ...
    def step(self, tokens: Array, segments: Sequence[tuple[Live, int, bool]], streams: Array) -> None:
        """
        Run the next tokens int64 [n] of (Live, count, trace) segments; fills streams fp32 [n, S, d]. The sequences hold
        the step uncommitted. Raises ValueError when sizes, pages or token ids do not fit; nothing has changed then.
        """

    def logits(self, arg0: Array, arg1: Array, /) -> None: ...
    def traces(self) -> list[Any]: ...
    def seconds(self) -> dict[str, float]: ...
    def index_counters(self) -> tuple[int, int]: ...
    def reset_profile(self) -> None: ...
