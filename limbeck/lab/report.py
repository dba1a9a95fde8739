"""Writes report.html: one page that holds everything and fetches nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from limbeck.lab import exits, facts, heat, reasons, stages, style, svg
from limbeck.lab.captions import Caption, caption
from limbeck.lab.figures import draw
from limbeck.lab.joined import gather, several
from limbeck.lab.judged import HEADINGS, judged
from limbeck.lab.read import Run
from limbeck.lab.summary import findings, question
from limbeck.lab.table import best, cells, rows, title
from limbeck.rundir import REPORT, write_text

TEMPLATE = "report.html.j2"


def write(folder: str | Path, *others: str | Path) -> Path:
    """Draw the figures of a run, a study, or several of them, and write report.html, whole or not at all; returns its path.

    The page of several lies in a folder `compared` beside the first.

    Raises UserError for a folder that is no run.
    """
    run = gather(folder)
    if others:
        out = Path(folder).resolve().parent / "compared"
        out.mkdir(exist_ok=True)
        run = several([folder, *others], out)
    why = reasons.of(run)
    if why is not None:
        run = replace(run, notes=(*run.notes, *why.notes))
    page = render(run, figures(run), explained(why) if why is not None and why.learners else None)
    path = run.folder / REPORT
    write_text(path, page)
    return path


def figures(run: Run) -> list[dict[str, Any]]:
    """Draw the figures; for each its name, title, text of reading, and the picture as an inline `<svg>`."""
    return [_shown(path, caption(path.stem, run)) for path in draw(run) if path.suffix == ".svg"]


def explained(why: reasons.Reasons) -> dict[str, Any]:
    """Draw the figures of the section on reasons, and make its tables."""
    return {
        "introduction": reasons.introduction(why),
        "figures": [_shown(path, reasons.caption(path.stem, why)) for path in heat.draw(why)],
        "tables": {
            "Do the terms pull together?": reasons.pulls(why.run),
            "How far the settings went apart": reasons.couples(why),
        },
    }


def _shown(path: Path, said: Caption) -> dict[str, Any]:
    picture = svg.inline(path.read_text(encoding="utf-8"), path.stem, f"{said.title}. {said.alt}")
    return {"name": path.stem, "svg": Markup(picture), **said._asdict()}


def render(run: Run, figures: list[dict[str, Any]], why: dict[str, Any] | None = None) -> str:
    """The page as text. Whatever comes from the run is escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    results = rows(run)
    return environment.get_template(TEMPLATE).render(
        run=run,
        question=question(run),
        findings=findings(results),
        seeds=max(len(row["seeds"]) for row in results),
        title=title(results),
        heads=[(row["setting"], style.colour(run.settings, row["setting"])) for row in results],
        table=[(column, list(zip(texts, best(results, column), strict=True))) for column, texts in cells(results)],
        measure=results[0]["measure"],
        words=results[0]["words"],
        judged=judged(run),
        headings=HEADINGS,
        exits=exits.lines(results),
        stage=stages.here(run),
        stages=stages.earlier(run),
        made_of=facts.lines(run),
        figures=figures,
        why=why,
        manifest=run.manifest,
    )
