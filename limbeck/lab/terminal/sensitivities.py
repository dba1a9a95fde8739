"""Sensitivities as a table in the terminal: layers down, the most sensitive first, and the line for the recipe."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from limbeck.lab.numbers import size

Facts = dict[str, Any]


def show(facts: Facts) -> None:
    """Prints what `limbeck.tools.sensitivity.of_model` found."""
    console = Console()
    head, *rows = lines(facts)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, word in enumerate(head):
        table.add_column(word, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(remark(facts), style="dim", highlight=False)
    print(f"skip: [{', '.join(facts['skip'])}]")


def lines(facts: Facts) -> list[list[str]]:
    """The head of the table, then a line for each weight; a star is at those that are better left alone."""
    found = [["layer", facts["measured"], "saved", f"{facts['measured']} a MiB", ""]]
    for it in facts["layers"]:
        values = [f"{it['change']:.3g}", size(it["bytes"]), f"{it['change'] / it['bytes'] * 2**20:.3g}"]
        found.append([" = ".join(it["names"]), *values, "*" if it["alone"] else ""])
    return found


def remark(facts: Facts) -> str:
    """How it was measured."""
    group = f"groups of {facts['group']}" if facts["group"] else "a scale for each row"
    what = "KL(before || after) in nats" if facts["measured"] == "KL" else "mean square of what the score moved"
    return (
        f"{what}, on {facts['tokens']:,} predictions of {facts['rows']:,} held-out rows, with this layer alone in {facts['bits']} bits, "
        f"{group}. *: more than 10 times the median for each byte saved."
    )
