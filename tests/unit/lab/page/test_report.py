from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from limbeck.lab.figures import svg
from limbeck.lab.page import report as report_module
from limbeck.lab.page.report import write

DRAWN = {
    "test_ids_do_not_collide_and_every_reference_is_met",
    "test_the_same_run_gives_the_same_page_and_leaves_no_other_file",
    "test_a_copied_run_gives_the_same_bytes",
}

NAMESPACES = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


class Page(HTMLParser):
    """Ids, tags, attributes and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]
        self.ids += [value or "" for key, value in attrs if key == "id"]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page(folder: Path) -> Page:
    return Page(write(folder).read_text(encoding="utf-8"))


def test_the_page_says_what_was_asked_and_answered(report):
    words = " ".join(Page(report.read_text()).words)
    assert "Does multi beat logit?" in words
    assert "question: Does multi" in words
    assert "multi is better than logit: held-out logit loss 3.479 against 4.111 (2 seeds, p 0.003 after Holm)." in words
    assert "2.13.0" in words
    assert "limbeck run first.yaml" in words


def test_the_page_fetches_nothing_and_runs_only_its_own_script(report):
    text = report.read_text()
    found = Page(text)
    assert not {"link", "iframe", "object", "embed", "img"} & set(found.tags)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    (policy,) = [value for key, value in found.attributes if key == "content" and "default-src" in value]
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{allowed}'"
    for key, value in found.attributes:
        assert not key.startswith("on")
        if "://" in value:
            assert key.startswith("xmlns")
            assert value in NAMESPACES
        if key in ("href", "xlink:href", "src"):
            assert value.startswith(("#", "data:image/png;base64,"))
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_ids_do_not_collide_and_every_reference_is_met(report):
    found = Page(report.read_text())
    assert len(found.ids) == len(set(found.ids)) > 100
    references = [value[1:] for key, value in found.attributes if key in ("href", "xlink:href") and value[0] == "#"]
    references += re.findall(r"url\(#([^)]+)\)", " ".join(value for _, value in found.attributes))
    assert references
    assert set(references) <= set(found.ids)


def test_a_hostile_name_stays_text(make_run):
    folder = make_run(settings=("logit", "<script>alert(1)</script>"))
    (folder / "recipe.yaml").write_text("question: '<img src=x onerror=alert(1)> & \"more\"'\n")
    text = write(folder).read_text()
    found = Page(text)
    assert found.tags.count("script") == 1
    assert "img" not in found.tags
    assert "<script>alert" not in text
    assert "&lt;script&gt;" in text
    assert '<img src=x onerror=alert(1)> & "more"' in "".join(found.words)
    inside = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert any("&lt;script&gt;alert(1)" in picture for picture in inside)


def notes(folder: Path) -> list[str]:
    """What stands in the box of notes."""
    section = re.search(r'<section class="notes".*?</section>', write(folder).read_text(), re.DOTALL)
    return re.findall(r"<li>(.*?)</li>", section[0]) if section else []


@pytest.mark.parametrize(("status", "how"), [("interrupted", "was interrupted"), ("running", "has not ended")])
def test_a_page_of_a_run_that_did_not_end_says_so(make_run, status, how):
    folder = make_run(status=status)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[: 4 * 25]))  # two settings of two seeds, 25 steps
    (note,) = notes(folder)
    assert f"The run {how}" in note and note.endswith("shown is what it left, up to step 25.")


@pytest.mark.parametrize(("name", "line"), [("metrics", 161), ("evals", 41)])
def test_a_page_of_a_run_with_a_damaged_last_line_says_so_and_is_otherwise_the_same(make_run, name, line):
    folder = make_run()
    before = write(folder).read_text()
    with (folder / f"{name}.jsonl").open("a") as file:
        file.write('{"step": 41, "sta')
    said = notes(folder)
    assert said == [f"The last line of {name}.jsonl (line {line}) is damaged and was skipped."]
    assert re.sub(r'<section class="notes".*?</section>\n', "", write(folder).read_text(), flags=re.DOTALL) == before


def test_a_page_of_a_whole_run_has_no_notes(make_run):
    assert notes(make_run()) == []


def test_a_page_without_teacher_evaluations_or_recipe(make_run):
    folder = make_run(teacher=False, seeds=(0,))
    assert "held-out label loss" in " ".join(page(folder).words)
    for name in ("evals.jsonl", "recipe.yaml"):
        (folder / name).unlink()
    words = " ".join(page(folder).words)
    assert "no evaluation yet" in words
    assert "recipe.yaml is missing" in words


def test_the_same_run_gives_the_same_page_and_leaves_no_other_file(report):
    first = report.read_bytes()
    assert write(report.parent).read_bytes() == first
    names = {path.name for path in report.parent.iterdir()}
    assert names == {"manifest.json", "metrics.jsonl", "evals.jsonl", "recipe.yaml", "figures", "report.html"}


@pytest.mark.slow
def test_a_copied_run_gives_the_same_bytes(report, tmp_path):
    copy = shutil.copytree(report.parent, tmp_path / "elsewhere" / "other")
    shutil.rmtree(copy / "figures")
    (copy / "report.html").unlink()
    for path in copy.iterdir():
        os.utime(path, (1e9, 1e9))
    assert write(copy).read_bytes() == report.read_bytes()
    figures = sorted((report.parent / "figures").iterdir())
    assert [path.name for path in sorted((copy / "figures").iterdir())] == [path.name for path in figures]
    for path in figures:
        assert (copy / "figures" / path.name).read_bytes() == path.read_bytes(), path.name


def test_pictures_have_words_for_those_who_do_not_see_them(report):
    found = Page(report.read_text())
    assert found.tags.count("svg") == found.tags.count("figcaption") == found.attributes.count(("role", "img")) == 7
    assert all(value for key, value in found.attributes if key == "aria-label")


def test_inline_renames_ids_but_not_words():
    source = (
        '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9pt" viewBox="0 0 9 9">'
        '<style>*{fill: red}</style><g id="a" clip-path="url(#c)"/><text>id="a" url(#c)</text></svg>'
    )
    found = svg.inline(source, "fig", "a & b")
    assert 'id="fig-a"' in found
    assert 'clip-path="url(#fig-c)"' in found
    assert 'aria-label="a &amp; b"' in found
    assert '>id="a" url(#c)</' in found
    assert "<style" not in found
    assert "width=" not in found


@pytest.mark.parametrize(
    ("text", "value"),
    [("\u22120.0359", "-0.0359"), ("+1.234e-04", "1.234e-04"), ("\u22120.12 .. +0.30", "-0.12"), ("< 0.001", "0"), ("\u2013", "")],
)  # fmt: skip
def test_verdicts_are_sorted_by_the_number_that_is_shown(text, value):
    assert report_module._value(text) == value
