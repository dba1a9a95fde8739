"""Writes report.html: one page that holds everything and fetches nothing."""

from __future__ import annotations

import math
import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from limbeck.errors import UserError, printable
from limbeck.lab.data import reasons as data_reasons
from limbeck.lab.data.joined import gather, several
from limbeck.lab.data.run import RunData
from limbeck.lab.figures import reasons as figures_reasons
from limbeck.lab.figures import style, svg
from limbeck.lab.figures.captions import Caption, caption
from limbeck.lab.figures.training import draw
from limbeck.lab.page import capacity, cost, exits, made_of, stages
from limbeck.lab.page import reasons as page_reasons
from limbeck.lab.page.baselines import of_baselines
from limbeck.lab.page.results import Column, best, cells, rows, title
from limbeck.lab.page.summary import findings, question
from limbeck.lab.page.verdicts import HEADINGS, judged, rows_of
from limbeck.rundir import REPORT, shared, shared_recipe
from limbeck.system.files import path_of, write_text
from limbeck.system.progress import doing

TEMPLATE, SCRIPT = "report.html.j2", "sort.js"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def gathered(folders: Sequence[str | Path], against: str | None = None) -> RunData:
    """A run or a study; of several all in one, in a folder `compared` beside the first.

    Raises:
        UserError: a folder is no run, or `against` no setting of it.
    """
    run = gather(folders[0])
    if len(folders) > 1:
        out = path_of(folders[0]).resolve().parent / "compared"
        out.mkdir(exist_ok=True)
        run = several(folders, out)
    names = dict.fromkeys(row["setting"] for row in rows_of(run))
    if against is not None and against not in names:
        raise UserError(f"{against}: no such setting; there are {', '.join(names)}")
    return replace(run, against=against)


def write(folder: str | Path) -> Path:
    """The page of a run or a study, as `page` writes it. Errors are those of `gathered`."""
    return page(gathered([folder]))


def page(run: RunData) -> Path:
    """Draw the figures of what was gathered, and write report.html, whole or not at all; returns its path."""
    with doing("drawing the figures and writing the report"):
        why = data_reasons.of(run)
        if why is not None:
            run = replace(run, notes=(*run.notes, *why.notes))
        path = run.folder / REPORT
        write_text(path, render(run, figures(run), section(why) if why is not None and why.learners else None))
    return path


def figures(run: RunData) -> list[dict[str, Any]]:
    """Draw the figures; for each its name, title, text of reading, and the picture as an inline `<svg>`."""
    return [_shown(path, caption(path.stem, run)) for path in draw(run) if path.suffix == ".svg"]


def section(why: data_reasons.ToldReasons) -> dict[str, Any]:
    """Draw the figures of the section on reasons, and make its tables."""
    pictures = [path for path in figures_reasons.draw(why) if path.suffix == ".svg"]
    return {
        "introduction": page_reasons.introduction(why),
        "figures": [_shown(path, page_reasons.caption(path.stem, why)) for path in pictures],
        "tables": {
            "Do the terms pull together?": page_reasons.pulls(why.run),
            "How far the settings went apart": page_reasons.couples(why),
        },
    }


def _shown(path: Path, said: Caption) -> dict[str, Any]:
    picture = svg.inline(path.read_text(encoding="utf-8"), path.stem, f"{said.title}. {said.alt}")
    return {"name": path.stem, "svg": Markup(picture), **said._asdict()}


def render(run: RunData, figures: list[dict[str, Any]], why: dict[str, Any] | None = None) -> str:
    """The page as text. Whatever comes from the run is escaped, and of files and folders it tells the names alone."""
    run = replace(run, manifest=shared(run.manifest), recipe=shared_recipe(run.recipe))
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.finalize = _text
    environment.filters["value"] = _value
    script = (Path(__file__).parent / SCRIPT).read_text(encoding="utf-8")
    results = rows(run)
    shown = [*results, *of_baselines(run)]
    return environment.get_template(TEMPLATE).render(
        run=run,
        question=question(run),
        findings=findings(run, results),
        seeds=max(len(row["seeds"]) for row in results),
        title=title(results),
        heads=[(row["setting"], _hue(run, row)) for row in shown],
        table=[
            (column, list(zip(texts, best(shown, column), _means(shown, column), strict=True)))
            for column, texts in cells(shown)
        ],
        measure=results[0]["measure"],
        words=results[0]["words"],
        judged=judged(run),
        headings=HEADINGS,
        capacity=capacity.of_ladder(run),
        exits=exits.lines(results),
        stage=stages.here(run),
        stages=stages.earlier(run),
        made_of=made_of.lines(run),
        cost=cost.of_run(run),
        figures=figures,
        why=why,
        manifest=run.manifest,
        script=Markup(script),
        script_hash="sha256-" + b64encode(sha256(script.encode()).digest()).decode(),
    )


def _hue(run: RunData, row: dict[str, Any]) -> str:
    return style.TEACHER_COLOUR if row["baseline"] else style.colour(run.settings, row["setting"])


def _means(results: list[dict[str, Any]], column: Column) -> list[str]:
    """What the settings are sorted by: "" for what is missing or not finite."""
    means = [row[column.key].mean if row[column.key] else math.nan for row in results]
    return [repr(mean) if math.isfinite(mean) else "" for mean in means]


def _text(value: Any) -> Any:
    """What is put into the page: of a text from the run, what can be shown."""
    shown = isinstance(value, Markup) or not isinstance(value, str)
    return value if shown else CONTROL.sub(lambda found: printable(found[0]), value)


def _value(text: str) -> str:
    """The first number in a text that people read, as programs read it: "\u22120.12 .. +0.30" -> "-0.12"; "" without one."""
    found = re.search(r"-?\d[\d.]*(e[+-]\d+)?", text.replace("\u2212", "-"))
    return "" if found is None else "0" if text.startswith("<") else found[0]
