"""What a terminal shows of a finished run: the verdict in words, the table of results, the verdicts in numbers."""

from __future__ import annotations

from limbeck.lab.data.run import RunData
from limbeck.lab.page.baselines import of_baselines
from limbeck.lab.page.results import as_text, rows
from limbeck.lab.page.summary import findings
from limbeck.lab.page.verdicts import sentences


def text(run: RunData) -> str:
    """The page's first sentence, and its tables of results and of verdicts, as plain text."""
    results = rows(run)
    table = as_text([*results, *of_baselines(run)])
    return "\n".join([*findings(run, results)[:1], "", table, *sentences(run)])
