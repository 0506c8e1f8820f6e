"""How a cached vector lies in bytes: FP8 for KV entries, FP4 for index keys.

What is special here: decoding what was encoded gives exactly the fake-quantised vector, and encoding a fake-quantised
vector loses nothing, so a cache may be packed, unpacked and packed again without drifting.

A KV vector of c channels, the last R of them rotary (c = 512, R = 64: 584 bytes):

    [c - R E4M3 codes][R BF16 values][one E8M0 byte for each 64 codes][zeros to a multiple of 8 bytes]

An index key of w channels (w = 128: 68 bytes):

    [w / 2 bytes of E2M1 code pairs, low nibble first][one E8M0 byte for each 32 codes]
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveal.formats.codes import (
    FormatError,
    decode_e8m0,
    decode_packed_e2m1,
    encode_e2m1,
    encode_e8m0,
    pack_e2m1,
)
from foveal.formats.fake import FP4_BLOCK, KV_BLOCK, block_codes_fp4, block_codes_fp8, join_blocks, split_blocks


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


def encode_kv_fp8(x: Tensor, rope_dim: int) -> Tensor:
    """KV vectors [..., c], any float dtype, -> uint8 [..., kv_fp8_bytes(c, rope_dim)].

    A block with an infinity or NaN in it is stored as NaN, so that it shows when read.
    """
    width = x.shape[-1]
    nope, size = width - rope_dim, kv_fp8_bytes(width, rope_dim)
    values, scale = block_codes_fp8(split_blocks(x[..., :nope], KV_BLOCK))
    codes = join_blocks(values, nope).to(torch.float8_e4m3fn).view(torch.uint8)
    rotary = x[..., nope:].to(torch.bfloat16).contiguous().view(torch.uint8)
    packed = torch.cat((codes, rotary, encode_e8m0(scale.squeeze(-1))), dim=-1)
    return pad(packed, (0, size - packed.shape[-1]))


def decode_kv_fp8(packed: Tensor, width: int, rope_dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 [..., bytes] -> KV vectors [..., `width`] in `dtype`: the fake-quantised values, exactly.

    Raises `FormatError` when the last axis is not ``kv_fp8_bytes(width, rope_dim)`` long.
    """
    _check_bytes(packed, kv_fp8_bytes(width, rope_dim))
    nope = width - rope_dim
    blocks = -(-nope // KV_BLOCK)
    after = nope + 2 * rope_dim
    codes = packed[..., :nope].contiguous().view(torch.float8_e4m3fn)
    scale = decode_e8m0(packed[..., after : after + blocks].contiguous())
    values = join_blocks(split_blocks(codes, KV_BLOCK).mul_(scale.unsqueeze(-1)), nope)
    if not rope_dim:
        return values.to(dtype)
    # A copy even when the slice is contiguous (one vector): the channels may start at an odd byte.
    rotary = packed[..., nope:after].clone(memory_format=torch.contiguous_format).view(torch.bfloat16)
    return torch.cat((values.to(dtype), rotary.to(dtype)), dim=-1)


def encode_index_fp4(x: Tensor) -> Tensor:
    """Index keys [..., w], any float dtype, -> uint8 [..., index_fp4_bytes(w)]."""
    width = x.shape[-1]
    index_fp4_bytes(width)
    values, scale = block_codes_fp4(split_blocks(x, FP4_BLOCK))
    codes = pack_e2m1(encode_e2m1(join_blocks(values, width)))
    return torch.cat((codes, encode_e8m0(scale.squeeze(-1))), dim=-1)


def decode_index_fp4(packed: Tensor, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 [..., bytes] -> index keys [..., `width`] in `dtype`: the fake-quantised values, exactly.

    Raises `FormatError` when the last axis is not ``index_fp4_bytes(width)`` long.
    """
    _check_bytes(packed, index_fp4_bytes(width))
    values = split_blocks(decode_packed_e2m1(packed[..., : width // 2]), FP4_BLOCK)
    scale = decode_e8m0(packed[..., width // 2 :].contiguous())
    return join_blocks(values * scale.unsqueeze(-1), width).to(dtype)


def _check_bytes(packed: Tensor, size: int) -> None:
    if packed.dtype is not torch.uint8 or packed.shape[-1] != size:
        raise FormatError(f"packed vectors are {packed.dtype} {list(packed.shape)}; they must be uint8 [..., {size}]")
