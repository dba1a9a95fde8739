"""The rows on BERT-base -> TinyBERT4: against the peers, the machine's ceiling, and the bare mathematics, in one race."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import partial

from benchmarks import sides
from benchmarks.flops import flops, product, products
from benchmarks.race import Lap, Step, beside, race, ratio
from benchmarks.rows import Row, missing, row, unfit
from benchmarks.shapes import Shape

SIZES = {"cpu": (1024, 1536, 2048), "cuda": (4096, 8192)}  # of the products that make the ceiling
NAMES = ("textbrewer_fp32", "textbrewer_bf16", "loop_bf16", "memory", "ceiling", "shared", "overhead")


def needs(name: str, shape: Shape) -> tuple[str, ...]:
    """The sides of a row; those that say no precision have the one that the device multiplies fastest."""
    fast = shape.precision
    return {
        "textbrewer_fp32": ("textbrewer", "limbeck_fp32"),
        "textbrewer_bf16": ("textbrewer", "limbeck_bf16"),
        "loop_bf16": ("loop_bf16", "limbeck_bf16"),
        "memory": ("textbrewer", *(["loop_bf16", "limbeck_bf16"] if fast == "bf16" else []), "limbeck_fp32"),
        "ceiling": ("product", f"limbeck_{fast}"),
        "shared": ("textbrewer", f"limbeck_{fast}"),
        "overhead": (f"bare_{fast}", f"limbeck_{fast}"),
    }[name]


def rows(names: Sequence[str], shape: Shape, rounds: int, fresh: bool) -> list[Row]:
    """The rows of these names; `fresh` as in `race`."""
    found: list[Row] = []
    if shape.precision != "bf16":
        why = "this machine multiplies bf16 slower than fp32"
        found += [unfit(name, shape.device, why) for name in names if name.endswith("_bf16")]
        names = [name for name in names if not name.endswith("_bf16")]
    if importlib.util.find_spec("textbrewer") is None:
        why = "TextBrewer is not installed; pip install -c constraints.txt '.[bench]'"
        found += [missing(name, shape.device, why) for name in names if "textbrewer" in needs(name, shape)]
        names = [name for name in names if "textbrewer" not in needs(name, shape)]
    if not names:
        return found
    alone = [name for name in names if name != "shared"]
    laps = race(_sides(alone, shape), shape.device, rounds, fresh=fresh) if alone else {}
    found += [MEASURES[name](shape, laps) for name in alone]
    return found + ([_shared(shape, rounds, fresh)] if "shared" in names else [])


def _sides(names: Sequence[str], shape: Shape) -> dict[str, Step]:
    every: dict[str, Step] = {
        "textbrewer": partial(sides.textbrewer, shape=shape),
        "limbeck_fp32": partial(sides.limbeck, shape=shape, precision="fp32"),
        "loop_bf16": partial(sides.loop, shape=shape),
        "limbeck_bf16": partial(sides.limbeck, shape=shape, precision="bf16"),
        f"bare_{shape.precision}": partial(sides.bare, shape=shape, precision=shape.precision),
    }
    needed = {side for name in names for side in needs(name, shape)}
    chosen = {name: side for name, side in every.items() if name in needed}
    if "product" in needed:
        chosen |= {f"product_{size}": partial(product, shape=shape, size=size) for size in SIZES[shape.device]}
    return chosen


def _against(name: str, shape: Shape, laps: Mapping[str, Lap]) -> Row:
    peer, mine = needs(name, shape)
    speeds = {side: shape.tokens / laps[side].median for side in (peer, mine)}
    detail = {"tokens_per_second": speeds, **{side: laps[side].detail() for side in (peer, mine)}}
    return row(name, shape.device, ratio(laps[peer], laps[mine]), speeds[peer], detail)


def _shared(shape: Shape, rounds: int, fresh: bool) -> Row:
    """Both sides while another process keeps one core busy."""
    with beside(1):
        laps = race(_sides(["shared"], shape), shape.device, rounds, fresh=fresh)
    return _against("shared", shape, laps)


def _memory(shape: Shape, laps: Mapping[str, Lap]) -> Row:
    """The worse of limbeck's precisions, each against TextBrewer."""
    peer, sides = laps["textbrewer"].peak, needs("memory", shape)
    shares = {name: laps[name].peak / peer for name in sides}
    detail = {"of_textbrewer": shares, **{name: laps[name].detail() for name in sides}}
    worst = max(share for name, share in shares.items() if name.startswith("limbeck"))
    return row("memory", shape.device, worst, peer, detail)


def _ceiling(shape: Shape, laps: Mapping[str, Lap]) -> Row:
    work, mine = flops(shape), f"limbeck_{shape.precision}"
    rates = {size: 2 * size**3 * products(shape, size) / laps[f"product_{size}"].median for size in SIZES[shape.device]}
    best, rate = max(rates.values()), work.step / laps[mine].median
    said = {"flops_teacher": work.teacher, "flops_student": work.student, "flops_per_second": rate}
    rest = {"products": rates, mine: laps[mine].detail()}
    return row("ceiling", shape.device, rate / best, best, said | rest)


def _overhead(shape: Shape, laps: Mapping[str, Lap]) -> Row:
    hand, loop = needs("overhead", shape)
    detail = {loop: laps[loop].detail(), hand: laps[hand].detail()}
    return row("overhead", shape.device, ratio(laps[loop], laps[hand]) - 1, laps[hand].median, detail)


MEASURES = {
    **{name: partial(_against, name) for name in ("textbrewer_fp32", "textbrewer_bf16", "loop_bf16")},
    "memory": _memory,
    "ceiling": _ceiling,
    "overhead": _overhead,
}
