"""What a teacher said, in few bytes: its k most probable tokens, and hidden states of 8 or 16 bits.

A prediction is kept as the set of its k tokens in the code of Elias and Fano (Elias 1974, J. ACM 21; Fano 1971), their
log-probabilities in `BITS` bits each, and the probability of all other tokens together. n tokens, k kept, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from limbeck.losses.sparse import TopK

BITS = 6  # of a log-probability
WIDEST = 16.0  # nats below the most probable token where probabilities end: e^-16 is the rounding of 1 in fp32


@dataclass(frozen=True)
class Packing:
    """How predictions over V tokens are kept: the code of a token's k most probable followers has `size` bytes.

    The indices, ascending, are cut into low bits, kept as they are, and high ones, kept as a line of bits in which the j-th
    one stands at high_j + j: k (2 + log2(V / k)) bits at most, about half a bit an index above the entropy of a set. A
    log-probability lies g nats below the largest; sqrt(g / G) is rounded to 6 bits, G the largest g, so that steps are small
    where probabilities are large. Two fp16 numbers hold G and the log-probability of all other tokens, to which the sum is
    brought when the code is read.

    Example:
        >>> Packing(30522, 50).size
        112

    Args:
        vocabulary: V.
        k: below V.
    """

    vocabulary: int
    k: int

    @cached_property
    def low(self) -> int:
        """The number of low bits of an index."""
        return max(0, (self.vocabulary // self.k).bit_length() - 1)

    @cached_property
    def line(self) -> int:
        """The length of the line of bits of the high parts."""
        return self.k + ((self.vocabulary - 1) >> self.low) + 1

    @cached_property
    def bits(self) -> int:
        """Bits of a prediction but for its two numbers."""
        return (self.low + BITS) * self.k + self.line

    @property
    def size(self) -> int:
        """Bytes of a prediction."""
        return 4 + -(-self.bits // 8)

    def pack(self, said: TopK) -> np.ndarray:
        """The code of some predictions `[n, k]`: uint8 `[n, size]`."""
        assert said.rest is not None
        order = said.indices.argsort(dim=-1)
        indices = said.indices.gather(-1, order).cpu().numpy()
        logprobs = said.logprobs.double().gather(-1, order).cpu().numpy()
        gaps = np.minimum(logprobs.max(1, keepdims=True) - logprobs, WIDEST)
        widest = gaps.max(1, initial=0).astype(np.float16)
        scale = np.maximum(widest.astype(np.float64), np.finfo(np.float16).tiny)[:, None]
        levels = (1 << BITS) - 1
        codes = np.minimum(np.rint(np.sqrt(gaps / scale) * levels), levels).astype(np.int64)
        line = np.zeros((len(indices), self.line), np.uint8)
        np.put_along_axis(line, (indices >> self.low) + np.arange(self.k), 1, axis=1)
        bits = np.concatenate([_planes(indices, self.low), _planes(codes, BITS), line], axis=1)
        rest = said.rest.double().cpu().numpy().astype(np.float16)
        return np.concatenate([np.stack([widest, rest], 1).view(np.uint8), np.packbits(bits, axis=1)], axis=1)

    def unpack(self, code: np.ndarray) -> TopK:
        """Predictions from their code `[n, size]`: fp32, indices ascending."""
        widest, rest = np.ascontiguousarray(code[:, :4]).view(np.float16).astype(np.float32).T
        bits = np.unpackbits(code[:, 4:], axis=1, count=self.bits)
        kept, ends = self.k, (self.low * self.k, (self.low + BITS) * self.k)
        high = np.nonzero(bits[:, ends[1] :])[1].reshape(len(code), kept) - np.arange(kept)
        indices = (high << self.low) | _numbers(bits[:, : ends[0]], self.low, kept)
        codes = _numbers(bits[:, ends[0] : ends[1]], BITS, kept).astype(np.float32)
        logprobs = -widest[:, None] * np.square(codes / ((1 << BITS) - 1))
        logprobs += _log_of_others(rest)[:, None] - _logsumexp(logprobs)
        found = (torch.from_numpy(it) for it in (indices, logprobs, rest.copy()))
        return TopK(*found, columns=self.vocabulary)


def _planes(numbers: np.ndarray, bits: int) -> np.ndarray:
    """The lowest bits of numbers `[n, k]`, plane by plane: uint8 `[n, bits k]`."""
    planes = [(numbers >> bit) & 1 for bit in range(bits)]
    return np.concatenate([np.empty((len(numbers), 0)), *planes], axis=1).astype(np.uint8)


def _numbers(planes: np.ndarray, bits: int, kept: int) -> np.ndarray:
    """Numbers from their planes: int64 `[n, kept]`."""
    found = np.zeros((len(planes), kept), np.int64)
    for bit in range(bits):
        found |= planes[:, bit * kept : (bit + 1) * kept].astype(np.int64) << bit
    return found


def _log_of_others(log_p: np.ndarray) -> np.ndarray:
    """log(1 - p) of a log-probability that rounding may have brought to 0."""
    return np.log(np.maximum(-np.expm1(log_p), np.finfo(np.float32).tiny))


def _logsumexp(values: np.ndarray) -> np.ndarray:
    """`[n, k]`, the largest of each row 0 -> `[n, 1]`."""
    return np.log(np.exp(values).sum(1, keepdims=True))


def shrink(states: Tensor, how: str) -> tuple[np.ndarray, np.ndarray | None]:
    """States `[n, D]` as fp32, as bf16 (bit patterns, int16) or as int8 with a scale for each token, max |x| / 127, fp32 `[n]`."""
    if how == "fp32":
        return states.float().cpu().numpy(), None
    if how == "bf16":
        return states.to(torch.bfloat16).view(torch.int16).cpu().numpy(), None
    states = states.float()
    scale = (states.abs().amax(-1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (states / scale[:, None]).round().to(torch.int8).cpu().numpy(), scale.cpu().numpy()


def grow(kept: np.ndarray, scale: np.ndarray | None) -> Tensor:
    """States from what `shrink` kept: fp32, or bf16 as they were."""
    if scale is None:
        return torch.from_numpy(kept).view(torch.bfloat16 if kept.dtype == np.int16 else torch.float32)
    return torch.from_numpy(kept).float() * torch.from_numpy(scale).view(-1, 1)
