"""python -m benchmarks: measures, prints a table, and writes benchmarks/results/latest.json."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

from benchmarks import rows as result
from benchmarks.rows import LATEST, TARGETS, Row

Measure = Callable[[Sequence[str]], list[Row]]


def parts(device: str, quick: bool, rounds: int, text: Path | None) -> dict[tuple[str, ...], Measure]:
    """Names of rows -> what measures them together."""
    from benchmarks import cache, data, growth, peers, saving, study
    from benchmarks.shapes import QUICK, Shape

    shape = replace(QUICK if quick else Shape(), device=device)
    fewer = max(2, rounds * 5 // 9)
    return {
        peers.NAMES: partial(peers.rows, shape=shape, rounds=rounds, fresh=not quick),
        ("lockstep_8",): partial(study.rows, shape=shape, rounds=fewer),
        ("cache_epoch", "cache_bytes"): partial(cache.rows, shape=shape, rounds=fewer),
        ("growth_vocabulary", "growth_length"): partial(growth.rows, device=device, rounds=fewer, quick=quick),
        ("saving",): partial(saving.rows, device=device, rounds=fewer, quick=quick),
        ("data",): partial(data.rows, shape=shape, rounds=fewer, megabytes=0.2 if quick else 4.0, text=text),
    }


def measure(
    only: Sequence[str] = (), *, device: str = "cpu", quick: bool = False, rounds: int = 9, text: Path | None = None
) -> list[Row]:
    """The rows of these names, all where none is named, in the order of `TARGETS`."""
    wanted, found = list(only or TARGETS), {}
    for names, part in parts(device, quick, rounds, text).items():
        mine = [name for name in names if name in wanted]
        if not mine:
            continue
        start = perf_counter()
        found |= {row.name: row for row in part(mine)}
        print(f"{', '.join(mine)}: {perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return [found[name] for name in TARGETS if name in found]


def words() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=list(TARGETS), default=[], help="this row; may be repeated")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does it run? The numbers mean nothing")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each side that count (default 9)")
    parser.add_argument("--text", type=Path, help="for `data`: a text file or folder in place of generated text")
    parser.add_argument("--out", type=Path, help="where to write (default: results/latest.json, of whole runs only)")
    parser.add_argument("--markdown", action="store_true", help="only print latest.json, or --out, as Markdown")
    said = parser.parse_args()
    for error in _wrong(said):
        parser.error(error)
    return said


def _wrong(said: argparse.Namespace) -> Iterator[str]:
    """What cannot be done, each with its remedy."""
    if said.rounds < 1:
        yield f"--rounds: {said.rounds} rounds measure nothing; give at least 1"
    if said.text and not said.text.exists():
        yield f"--text: {said.text} is not there; leave it out for generated text"
    if said.markdown and not (said.out or LATEST).is_file():
        yield f"--markdown: {said.out or LATEST} is not there; run make bench first"
    if said.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            yield "--device: torch finds no CUDA device here; leave it out for the CPU"


def main() -> None:
    """Measures, prints, writes."""
    said = words()
    if said.markdown:
        print(result.markdown(result.read(said.out or LATEST)))
        return
    rows = measure(said.only, device=said.device, quick=said.quick, rounds=said.rounds, text=said.text)
    print(result.table(rows))
    whole = not said.only and not said.quick
    if out := said.out or (LATEST if whole else None):
        result.write(rows, out)
        print(f"written: {out}")


if __name__ == "__main__":
    main()
