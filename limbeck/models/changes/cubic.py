"""When what is cut: the cubic schedule."""

from __future__ import annotations

from dataclasses import dataclass


def cubic_sparsity(step: int, begin: int, end: int, final: float, initial: float = 0.0, every: int = 1) -> float:
    """The share that is cut after some updates: much at first, while there is much to choose from, and less and less towards the end.

    s_k = s_f + (s_0 - s_f) (1 - (k - k_0) / (n dk))^3 at k = k_0, k_0 + dk, ..., k_0 + n dk, with k_0 = begin, k_0 + n dk = end and
    dk = every; s_0 before it, s_f after it, and between two of these k what it was at the earlier one. Where `every` does not divide
    the updates between, the last step to s_f comes sooner, at end. Where end is begin, everything is cut there at once.

    Source: Zhu and Gupta 2017, arXiv 1710.01878, equation 1.

    Args:
        step: updates that are done.
        begin: after how many it begins.
        end: after how many it ends; at least begin.
        final: the share at the end, 0 to 1.
        initial: the share at the beginning.
        every: updates between two cuts, at least 1.

    Returns:
        The share, between initial and final.

    Raises:
        ValueError: end lies before begin, or every is below 1.

    Example:
        >>> [round(cubic_sparsity(step, begin=2, end=6, final=0.8), 4) for step in (1, 2, 4, 6, 9)]
        [0.0, 0.0, 0.7, 0.8, 0.8]
    """
    if end < begin or every < 1:
        raise ValueError(f"from {begin} to {end} in steps of {every}: end must not lie before begin, every not below 1")
    if step >= end:
        return final
    if step <= begin:
        return initial
    reached = (step - begin) // every * every
    return final + (initial - final) * (1 - reached / (end - begin)) ** 3


@dataclass(frozen=True)
class Cuts:
    """When a change cuts, in updates that are done.

    Args:
        begin: when it begins; 0: when the model is made.
        end: when all is cut; begin: all at once.
        every: updates between two cuts.
    """

    begin: int = 0
    end: int = 0
    every: int = 1

    def progress(self, done: int) -> float:
        """The part of what is cut in the end that is cut after so many updates."""
        return cubic_sparsity(done, self.begin, self.end, 1.0, every=self.every)

    def share(self, done: int, final: float) -> float:
        """The share that is cut after so many updates."""
        return cubic_sparsity(done, self.begin, self.end, final, every=self.every)
