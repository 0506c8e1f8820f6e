"""How a cached vector lies in bytes: FP8 for KV entries, FP4 for index keys.

Decoding what was encoded gives exactly the fake-quantised vector, and encoding a fake-quantised vector loses nothing,
so a cache may be packed, unpacked and packed again without drifting.

A KV vector of c channels, the last R of them rotary (c = 512, R = 64: 584 bytes):

    [c - R E4M3 codes][R BF16 values][one E8M0 byte for each 64 codes][zeros to a multiple of 8 bytes]

An index key of w channels (w = 128: 68 bytes):

    [w / 2 bytes of E2M1 code pairs, low nibble first][one E8M0 byte for each 32 codes]
"""

from __future__ import annotations

import numpy as np

from foveal.formats.blocks import block_codes_fp4, block_codes_fp8, join_blocks, split_blocks
from foveal.formats.codes import (
    BF16,
    F32,
    FP4_BLOCK,
    KV_BLOCK,
    Array,
    DType,
    FormatError,
    decode_e4m3,
    decode_e8m0,
    decode_packed_e2m1,
    encode_e2m1,
    encode_e4m3,
    encode_e8m0,
    pack_e2m1,
)


def kv_fp8_bytes(width: int, rope_dim: int) -> int:
    """Bytes of one encoded KV vector of `width` channels, `rope_dim` of them rotary. 584 for 512 and 64."""
    nope = width - rope_dim
    if nope < 0 or rope_dim < 0:
        raise FormatError(f"a KV vector of {width} channels cannot have {rope_dim} rotary ones")
    used = nope + 2 * rope_dim + -(-nope // KV_BLOCK)
    return -(-used // 8) * 8


def index_fp4_bytes(width: int) -> int:
    """Bytes of one encoded index key of `width` channels. 68 for 128."""
    if width < 2 or width % 2:
        raise FormatError(f"an index key of {width} channels cannot be packed: the width must be even")
    return width // 2 + -(-width // FP4_BLOCK)


def encode_kv_fp8(x: Array, rope_dim: int) -> Array:
    """KV vectors [..., c], any float dtype, -> uint8 [..., kv_fp8_bytes(c, rope_dim)].

    A block with an infinity or NaN in it is stored as NaN, so that it shows when read.
    """
    width = x.shape[-1]
    nope, size = width - rope_dim, kv_fp8_bytes(width, rope_dim)
    values, scale = block_codes_fp8(split_blocks(x[..., :nope], KV_BLOCK))
    packed = np.zeros((*x.shape[:-1], size), dtype=np.uint8)
    packed[..., :nope] = encode_e4m3(join_blocks(values, nope))
    packed[..., nope : nope + 2 * rope_dim] = np.ascontiguousarray(x[..., nope:].astype(BF16)).view(np.uint8)
    after = nope + 2 * rope_dim
    packed[..., after : after + scale.shape[-2]] = encode_e8m0(scale[..., 0])
    return packed


def decode_kv_fp8(packed: Array, width: int, rope_dim: int, dtype: DType = F32) -> Array:
    """uint8 [..., bytes] -> KV vectors [..., `width`] in `dtype`: the fake-quantised values, exactly.

    Raises `FormatError` when the last axis is not ``kv_fp8_bytes(width, rope_dim)`` long.
    """
    _check_bytes(packed, kv_fp8_bytes(width, rope_dim))
    nope = width - rope_dim
    blocks = -(-nope // KV_BLOCK)
    after = nope + 2 * rope_dim
    scale = decode_e8m0(packed[..., after : after + blocks])
    with np.errstate(over="ignore", invalid="ignore"):
        values = split_blocks(decode_e4m3(packed[..., :nope]), KV_BLOCK) * scale[..., None]
    out = np.empty((*packed.shape[:-1], width), dtype=dtype)
    out[..., :nope] = join_blocks(values, nope)
    out[..., nope:] = np.ascontiguousarray(packed[..., nope:after]).view(BF16)
    return out


def encode_index_fp4(x: Array) -> Array:
    """Index keys [..., w], any float dtype, -> uint8 [..., index_fp4_bytes(w)]."""
    width = x.shape[-1]
    index_fp4_bytes(width)
    values, scale = block_codes_fp4(split_blocks(x, FP4_BLOCK))
    codes = pack_e2m1(encode_e2m1(join_blocks(values, width)))
    return np.concatenate((codes, encode_e8m0(scale[..., 0])), axis=-1)


def decode_index_fp4(packed: Array, width: int, dtype: DType = F32) -> Array:
    """uint8 [..., bytes] -> index keys [..., `width`] in `dtype`: the fake-quantised values, exactly.

    Raises `FormatError` when the last axis is not ``index_fp4_bytes(width)`` long.
    """
    _check_bytes(packed, index_fp4_bytes(width))
    values = split_blocks(decode_packed_e2m1(packed[..., : width // 2]), FP4_BLOCK)
    scale = decode_e8m0(packed[..., width // 2 :])
    with np.errstate(over="ignore", invalid="ignore"):
        return join_blocks(values * scale[..., None], width).astype(dtype, copy=False)


def _check_bytes(packed: Array, size: int) -> None:
    if packed.dtype != np.uint8 or packed.shape[-1] != size:
        raise FormatError(f"packed vectors are {packed.dtype} {list(packed.shape)}; they must be uint8 [..., {size}]")
