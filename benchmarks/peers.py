"""The rows on BERT-base -> TinyBERT4: against the peers, the machine's ceiling, and the bare mathematics, in one race."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import partial

from benchmarks import sides
from benchmarks.race import Lap, Step, race, ratio
from benchmarks.rows import Row, missing, row
from benchmarks.shapes import Shape, flops

SIZES = {"cpu": (1024, 1536, 2048), "cuda": (4096, 8192)}  # of the products that make the ceiling
NEEDS = {
    "textbrewer_fp32": ("textbrewer", "limbeck_fp32"),
    "textbrewer_bf16": ("textbrewer", "limbeck_bf16"),
    "loop_bf16": ("loop_bf16", "limbeck_bf16"),
    "memory": ("textbrewer", "loop_bf16", "limbeck_fp32", "limbeck_bf16"),
    "ceiling": ("product", "limbeck_bf16"),
    "overhead": ("bare_bf16", "limbeck_bf16"),
}


def rows(names: Sequence[str], shape: Shape, rounds: int, fresh: bool) -> list[Row]:
    """The rows of these names; `fresh` as in `race`."""
    found = []
    if importlib.util.find_spec("textbrewer") is None:
        why = "TextBrewer is not installed; pip install -c constraints.txt '.[bench]'"
        found = [missing(name, shape.device, why) for name in names if "textbrewer" in NEEDS[name]]
        names = [name for name in names if "textbrewer" not in NEEDS[name]]
    if not names:
        return found
    laps = race(_sides(names, shape), shape.device, rounds, fresh=fresh)
    return found + [MEASURES[name](shape, laps) for name in names]


def _sides(names: Sequence[str], shape: Shape) -> dict[str, Step]:
    every: dict[str, Step] = {
        "textbrewer": partial(sides.textbrewer, shape=shape),
        "limbeck_fp32": partial(sides.limbeck, shape=shape, precision="fp32"),
        "loop_bf16": partial(sides.loop, shape=shape),
        "limbeck_bf16": partial(sides.limbeck, shape=shape),
        "bare_bf16": partial(sides.bare, shape=shape),
    }
    needed = {side for name in names for side in NEEDS[name]}
    chosen = {name: side for name, side in every.items() if name in needed}
    if "product" in needed:
        chosen |= {f"product_{size}": partial(sides.product, shape=shape, size=size) for size in SIZES[shape.device]}
    return chosen


def _against(name: str, shape: Shape, laps: Mapping[str, Lap]) -> Row:
    peer, mine = (laps[side] for side in NEEDS[name])
    speeds = {side: shape.tokens / laps[side].median for side in NEEDS[name]}
    detail = {"tokens_per_second": speeds, **{side: laps[side].detail() for side in NEEDS[name]}}
    return row(name, shape.device, ratio(peer, mine), speeds[NEEDS[name][0]], detail)


def _memory(shape: Shape, laps: Mapping[str, Lap]) -> Row:
    """The worse of limbeck's two precisions, each against TextBrewer."""
    peer = laps["textbrewer"].peak
    shares = {name: lap.peak / peer for name, lap in laps.items() if name in NEEDS["memory"]}
    detail = {"of_textbrewer": shares, **{name: laps[name].detail() for name in NEEDS["memory"]}}
    return row("memory", shape.device, max(shares["limbeck_fp32"], shares["limbeck_bf16"]), peer, detail)


def _ceiling(shape: Shape, laps: Mapping[str, Lap]) -> Row:
    work = flops(shape)
    rates = {
        size: 2 * size**3 * sides.products(shape.device, size) / laps[f"product_{size}"].median
        for size in SIZES[shape.device]
    }
    best, mine = max(rates.values()), work.step / laps["limbeck_bf16"].median
    said = {"flops_teacher": work.teacher, "flops_student": work.student, "flops_per_second": mine}
    rest = {"products": rates, "limbeck_bf16": laps["limbeck_bf16"].detail()}
    return row("ceiling", shape.device, mine / best, best, said | rest)


def _overhead(shape: Shape, laps: Mapping[str, Lap]) -> Row:
    loop, hand = laps["limbeck_bf16"], laps["bare_bf16"]
    detail = {"limbeck_bf16": loop.detail(), "bare_bf16": hand.detail()}
    return row("overhead", shape.device, ratio(loop, hand) - 1, hand.median, detail)


MEASURES = {
    **{name: partial(_against, name) for name in ("textbrewer_fp32", "textbrewer_bf16", "loop_bf16")},
    "memory": _memory,
    "ceiling": _ceiling,
    "overhead": _overhead,
}
