"""
Integer codes packed into 32-bit words, the ways the checkpoint formats do it.

A *stream* packs along one axis: every 32 codes of `bits` bits become `bits` words, one
code after another in a little-endian stream, code 0 in the lowest bits of word 0. For
2, 4 and 8 bits no code crosses a word; for 3 bits two of them do (codes 10 and 21).
AutoGPTQ packs weights along the inputs and zero points along the outputs;
compressed-tensors does the same to the matrix that lies the other way round.

AutoAWQ's *interleaved* words hold eight 4-bit codes of consecutive outputs, in the
order 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits up, so that its kernel unpacks two
half-precision numbers with one instruction.

Shape suffixes: I input channels, O output channels, G groups of I, R rows and C
columns of any matrix, W words; a, b, c have two values each.

Sources: AutoGPTQ 0.7.1 `nn_modules/qlinear/qlinear_cuda_old.py`, `pack`; AutoAWQ 0.2.9
`modules/linear/gemm.py`, `from_linear`; compressed-tensors 0.19
`compressors/pack_quantized/helpers.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD_BITS = 32
SUPPORTED_BITS = (2, 3, 4, 8)
# Output, of eight consecutive ones, in each nibble of AutoAWQ's words.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_NIBBLE = 4


def pack_rows(code_RC: Tensor, *, bits: int) -> Tensor:
    """
    Pack codes along the first axis.

    Args:
        code_RC: uint8 codes below 2**bits; R is a multiple of 32 codes, or of the
            codes in one word where none crosses a word.
        bits: 2, 3, 4 or 8.

    Returns:
        int32 words [R * bits / 32, C].

    Raises:
        ValueError: The axis does not fill whole words.
    """
    num_codes, num_columns = code_RC.shape
    if (num_codes * bits) % WORD_BITS:
        raise ValueError(f"{num_codes} codes of {bits} bits do not fill whole words")
    per_word = WORD_BITS // bits
    if bits * per_word == WORD_BITS:
        return _pack_aligned(code_RC.reshape(-1, per_word, num_columns), bits)
    if num_codes % WORD_BITS:
        raise ValueError(f"{num_codes} codes are not a multiple of {WORD_BITS}")
    return _pack_stream(code_RC.reshape(-1, WORD_BITS, num_columns), bits)


def pack_columns(code_RC: Tensor, *, bits: int) -> Tensor:
    """`pack_rows` along the second axis: int32 words [R, C * bits / 32]."""
    if bits in {4, 8} and code_RC.shape[1] * bits % WORD_BITS == 0:
        # Neighbours lie together in memory, so bytes can be seen as words.
        code_RC = code_RC.to(torch.uint8)
        if bits == _NIBBLE:
            code_RC = code_RC[:, 0::2] | (code_RC[:, 1::2] << _NIBBLE)
        return _as_words(code_RC)
    return pack_rows(code_RC.T, bits=bits).T.contiguous()


def _as_words(byte_RC: Tensor) -> Tensor:
    num_rows, num_bytes = byte_RC.shape
    # Flat, because a column of one word counts as contiguous with any stride.
    flat = byte_RC.contiguous().reshape(-1)
    return flat.view(torch.int32).reshape(num_rows, num_bytes // 4)


def _pack_aligned(code_WnC: Tensor, bits: int) -> Tensor:
    word_WC = code_WnC[:, 0].to(torch.int32)
    for index in range(1, code_WnC.shape[1]):
        word_WC |= code_WnC[:, index].to(torch.int32) << (index * bits)
    return word_WC


def _pack_stream(code_BnC: Tensor, bits: int) -> Tensor:
    num_blocks, _, num_columns = code_BnC.shape
    word_BbC = torch.zeros(
        (num_blocks, bits, num_columns), dtype=torch.int64, device=code_BnC.device
    )
    for index in range(WORD_BITS):
        word, shift = divmod(index * bits, WORD_BITS)
        code_BC = code_BnC[:, index].to(torch.int64)
        word_BbC[:, word] |= (code_BC << shift) & 0xFFFFFFFF
        if shift + bits > WORD_BITS:
            word_BbC[:, word + 1] |= code_BC >> (WORD_BITS - shift)
    return _as_int32(word_BbC).view(-1, num_columns)


def _as_int32(word: Tensor) -> Tensor:
    """Reinterpret unsigned words held in int64 as signed 32-bit ones."""
    return torch.where(word >= 1 << 31, word - (1 << 32), word).to(torch.int32)


def unpack_rows(word_WC: Tensor, *, bits: int) -> Tensor:
    """
    Undo `pack_rows`.

    Args:
        word_WC: int32 words [R * bits / 32, C].
        bits: 2, 3, 4 or 8.

    Returns:
        uint8 codes [R, C].
    """
    mask = (1 << bits) - 1
    num_columns = word_WC.shape[1]
    per_word = WORD_BITS // bits
    if bits * per_word == WORD_BITS:
        code_WnC = torch.empty(
            (word_WC.shape[0], per_word, num_columns),
            dtype=torch.uint8,
            device=word_WC.device,
        )
        for index in range(per_word):
            code_WnC[:, index] = (word_WC >> (index * bits)) & mask
        return code_WnC.view(-1, num_columns)
    word_BbC = word_WC.reshape(-1, bits, num_columns).to(torch.int64) & 0xFFFFFFFF
    rows = []
    for index in range(WORD_BITS):
        word, shift = divmod(index * bits, WORD_BITS)
        code_BC = word_BbC[:, word] >> shift
        if shift + bits > WORD_BITS:
            code_BC = code_BC | (word_BbC[:, word + 1] << (WORD_BITS - shift))
        rows.append(code_BC & mask)
    return torch.stack(rows, dim=1).to(torch.uint8).view(-1, num_columns)


def unpack_columns(word_RW: Tensor, *, bits: int) -> Tensor:
    """Undo `pack_columns`: uint8 codes [R, W * 32 / bits]."""
    num_rows = word_RW.shape[0]
    if bits in {4, 8}:
        byte_RC = word_RW.contiguous().reshape(-1).view(torch.uint8)
        byte_RC = byte_RC.reshape(num_rows, -1)
        if bits == _NIBBLE:
            pair = torch.stack((byte_RC & 0xF, byte_RC >> _NIBBLE), dim=-1)
            return pair.reshape(num_rows, -1)
        return byte_RC.clone()
    return unpack_rows(word_RW.T, bits=bits).T.contiguous()


def pack_interleaved(code_RO: Tensor) -> Tensor:
    """
    Pack 4-bit codes along the outputs as AutoAWQ does.

    Args:
        code_RO: uint8 codes below 16; O is a multiple of 8.

    Returns:
        int32 words [R, O / 8].

    Raises:
        ValueError: The axis does not fill whole words.
    """
    num_rows, num_outputs = code_RO.shape
    if num_outputs % len(AWQ_ORDER):
        raise ValueError(f"{num_outputs} outputs are not a multiple of 8")
    # Output 4a + 2b + c lies in byte 2c + a of its word, in the half b of the byte.
    code_RWabc = code_RO.to(torch.uint8).reshape(num_rows, -1, 2, 2, 2)
    byte_RWac = code_RWabc[:, :, :, 0] | (code_RWabc[:, :, :, 1] << _NIBBLE)
    return _as_words(byte_RWac.transpose(2, 3).reshape(num_rows, -1))


def unpack_interleaved(word_RW: Tensor) -> Tensor:
    """Undo `pack_interleaved`: uint8 codes [R, W * 8]."""
    num_rows = word_RW.shape[0]
    byte_RWca = word_RW.contiguous().reshape(-1).view(torch.uint8)
    byte_RWca = byte_RWca.reshape(num_rows, -1, 2, 2)
    half_RWcab = torch.stack((byte_RWca & 0xF, byte_RWca >> _NIBBLE), dim=-1)
    return half_RWcab.permute(0, 1, 3, 4, 2).reshape(num_rows, -1)


def pack_zeros(zero_GO: Tensor, *, bits: int) -> Tensor:
    """
    Pack zero points of at least one into AutoGPTQ's `qzeros`, version 1.

    Args:
        zero_GO: uint8 zero points, from 1 to 2**bits - 1.
        bits: 2, 3, 4 or 8.

    Returns:
        int32 words [G, O * bits / 32].
    """
    return pack_columns(zero_GO - 1, bits=bits)


def unpack_zeros(word_GW: Tensor, *, bits: int) -> Tensor:
    """
    Undo `pack_zeros`.

    Args:
        word_GW: int32 words [G, O * bits / 32].
        bits: 2, 3, 4 or 8.

    Returns:
        uint8 zero points [G, O].
    """
    return unpack_columns(word_GW, bits=bits) + 1
