"""What is said of an export: lines for a terminal, and the card beside the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from limbeck.lab.numbers import latency
from limbeck.tools.formats.format import Format

NAMES = {"memory": "the model in memory", "export": "the file"}


def share(value: float | None) -> str:
    """A small share.

    >>> share(0.0123), share(1e-7), share(None)
    ('0.012', '1e-07', 'infinitely far')
    """
    return "infinitely far" if value is None else f"{value:.2g}"


def lines(facts: Mapping[str, Any]) -> list[str]:
    """The numbers of an export, a line each."""
    found = facts["parity"]
    held = "held" if found["held"] else "not held"
    said = [
        _line(
            "parity",
            f"largest difference {share(found['relative'])} of the largest logit, bound {found['bound']:g}: {held}",
        ),
        _line("compared", f"{found['compared']:,} predictions, {found['text']}"),
    ]
    if found["agreement"] is not None:
        said.append(_line("same first", f"{found['agreement']:.2%} of the predictions"))
    for name in next(iter(facts["scores"].values()), {}):
        values = [f"{_score(scores.get(name))} {NAMES.get(who, who)}" for who, scores in facts["scores"].items()]
        said.append(_line(name.replace("_", " "), ", ".join(values)))
    ratio = facts["bytes"] / facts["student_bytes"]
    said.append(_line("bytes", f"{facts['bytes']:,}; the student in fp32 {facts['student_bytes']:,}: x{ratio:.3f}"))
    how = facts["latency"]
    for rows, times in how["batches"].items():
        each = ", ".join(f"{NAMES.get(who, who)} {latency(time['p50'])}" for who, time in times.items())
        faster = times["student"]["p50"] / times["export"]["p50"]
        said.append(_line(f"batch {rows}", f"{each}: {faster:.2f} times as fast as the student"))
    said.append(_line("", f"medians over rows of {how['length']} tokens, {how['threads']} threads, in turn"))
    return said


def text(facts: Mapping[str, Any], form: Format, usage: str) -> str:
    """The card, a README.md."""
    title = PurePath(facts["student"]).name
    numbers = "\n".join(lines(facts))
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return f"""---
tags: [limbeck, {form.name}]
---

# {title} as {form.name}

{form.about} Exported with limbeck from the student `{title}` ({facts["parameters"]:,} parameters).

## Usage

In this folder:

```python
{usage}
```

## Numbers

```
{numbers}
```

Versions: {versions}.
"""


def _line(what: str, said: str) -> str:
    return f"{what:14} {said}"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
