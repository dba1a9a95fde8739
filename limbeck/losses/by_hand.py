"""Losses on logits of which value and slope are written out by hand, for speed. `blockwise` takes them where it can."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.losses.tensors import allowed, both


def forward_kl(student: Tensor, teacher: Tensor, out: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(p_t || p_s) and T (p_s - p_t), with one exponential a logit where the plain way takes two.

    With the largest of each side taken off, z = z / T - max z / T: KL = sum_v p_t (z_t - z_s) + log(max p_t / max p_s), and
    numbers of unlike size never cancel. Not finite where a column is -inf. `out` holds the difference before the slope.
    """
    allowed("positive", temperature=temperature)
    s, t = both(None, student, teacher)
    if temperature != 1:
        s, t = s / temperature, t / temperature
    mine = s - s.amax(-1, keepdim=True)
    apart = out if out.dtype == t.dtype else torch.empty_like(t)
    torch.sub(t, t.amax(-1, keepdim=True), out=apart).sub_(mine)
    p_t = t.softmax(-1)
    values = torch.linalg.vecdot(p_t, apart)
    p_s = torch.softmax(s, -1, out=mine)
    values += (p_t.amax(-1) / p_s.amax(-1)).log()
    torch.sub(p_s, p_t, out=out) if temperature == 1 else torch.mul(p_s.sub_(p_t), temperature, out=out)
    return values * temperature**2
