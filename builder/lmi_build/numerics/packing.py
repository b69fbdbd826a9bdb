"""
Integer codes packed into 32-bit words, as AutoGPTQ lays them out.

Along the packed axis, every 32 codes of `bits` bits become `bits` words: the codes
stand one after another in a little-endian stream, code 0 in the lowest bits of word
0. For 2, 4 and 8 bits no code crosses a word; for 3 bits two of them do (codes 10
and 21), which is the layout that AutoGPTQ's 3-bit kernels read.

- `qweight` packs along the input axis: codes [I, O] -> words [I * bits / 32, O].
- `qzeros` packs along the output axis: codes [G, O] -> words [G, O * bits / 32], and
  holds zero point minus one (format `gptq`, version 1; version 2 drops the minus).

Shape suffixes: I input channels, O output channels, G groups of I, W words.

Source: AutoGPTQ 0.7.1, `nn_modules/qlinear/qlinear_cuda_old.py`, `pack`.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD_BITS = 32
SUPPORTED_BITS = (2, 3, 4, 8)


def pack_rows(code_IO: Tensor, *, bits: int) -> Tensor:
    """
    Pack codes along the first axis.

    Args:
        code_IO: uint8 codes below 2**bits; I is a multiple of 32 codes, or of the
            codes in one word where none crosses a word.
        bits: 2, 3, 4 or 8.

    Returns:
        int32 words [I * bits / 32, O].

    Raises:
        ValueError: The axis does not fill whole words.
    """
    num_codes, num_outputs = code_IO.shape
    if (num_codes * bits) % WORD_BITS:
        raise ValueError(f"{num_codes} codes of {bits} bits do not fill whole words")
    per_word = WORD_BITS // bits
    if bits * per_word == WORD_BITS:
        return _pack_aligned(code_IO.view(-1, per_word, num_outputs), bits)
    if num_codes % WORD_BITS:
        raise ValueError(f"{num_codes} codes are not a multiple of {WORD_BITS}")
    return _pack_stream(code_IO.view(-1, WORD_BITS, num_outputs), bits)


def _pack_aligned(code_WnO: Tensor, bits: int) -> Tensor:
    word_WO = torch.zeros(
        (code_WnO.shape[0], code_WnO.shape[2]),
        dtype=torch.int32,
        device=code_WnO.device,
    )
    for index in range(code_WnO.shape[1]):
        word_WO |= code_WnO[:, index].to(torch.int32) << (index * bits)
    return word_WO


def _pack_stream(code_BnO: Tensor, bits: int) -> Tensor:
    num_blocks, _, num_outputs = code_BnO.shape
    word_BbO = torch.zeros(
        (num_blocks, bits, num_outputs), dtype=torch.int64, device=code_BnO.device
    )
    for index in range(WORD_BITS):
        word, shift = divmod(index * bits, WORD_BITS)
        code_BO = code_BnO[:, index].to(torch.int64)
        word_BbO[:, word] |= (code_BO << shift) & 0xFFFFFFFF
        if shift + bits > WORD_BITS:
            word_BbO[:, word + 1] |= code_BO >> (WORD_BITS - shift)
    return _as_int32(word_BbO).view(-1, num_outputs)


def _as_int32(word: Tensor) -> Tensor:
    """Reinterpret unsigned words held in int64 as signed 32-bit ones."""
    return torch.where(word >= 1 << 31, word - (1 << 32), word).to(torch.int32)


def unpack_rows(word_WO: Tensor, *, bits: int) -> Tensor:
    """
    Undo `pack_rows`.

    Args:
        word_WO: int32 words [I * bits / 32, O].
        bits: 2, 3, 4 or 8.

    Returns:
        uint8 codes [I, O].
    """
    mask = (1 << bits) - 1
    num_outputs = word_WO.shape[1]
    per_word = WORD_BITS // bits
    if bits * per_word == WORD_BITS:
        rows = [(word_WO >> (index * bits)) & mask for index in range(per_word)]
        return torch.stack(rows, dim=1).to(torch.uint8).view(-1, num_outputs)
    word_BbO = word_WO.view(-1, bits, num_outputs).to(torch.int64) & 0xFFFFFFFF
    rows = []
    for index in range(WORD_BITS):
        word, shift = divmod(index * bits, WORD_BITS)
        code_BO = word_BbO[:, word] >> shift
        if shift + bits > WORD_BITS:
            code_BO = code_BO | (word_BbO[:, word + 1] << (WORD_BITS - shift))
        rows.append(code_BO & mask)
    return torch.stack(rows, dim=1).to(torch.uint8).view(-1, num_outputs)


def pack_zeros(zero_GO: Tensor, *, bits: int) -> Tensor:
    """
    Pack zero points of at least one into `qzeros`, version 1.

    Args:
        zero_GO: uint8 zero points, from 1 to 2**bits - 1.
        bits: 2, 3, 4 or 8.

    Returns:
        int32 words [G, O * bits / 32].
    """
    return pack_rows((zero_GO - 1).T.contiguous(), bits=bits).T.contiguous()


def unpack_zeros(word_GW: Tensor, *, bits: int) -> Tensor:
    """
    Undo `pack_zeros`.

    Args:
        word_GW: int32 words [G, O * bits / 32].
        bits: 2, 3, 4 or 8.

    Returns:
        uint8 zero points [G, O].
    """
    return unpack_rows(word_GW.T.contiguous(), bits=bits).T.contiguous() + 1
