from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from limbeck.lab import svg
from limbeck.lab.numbers import number
from limbeck.lab.read import read
from limbeck.lab.report import write
from limbeck.lab.table import rows

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


def test_the_page_shows_the_numbers_of_the_files(report):
    words = " ".join(Page(report.read_text()).words)
    for row in rows(read(report.parent)):
        for key in ("test_logit_loss", "train_logit_loss", "equal_flops", "label_loss", "grad_norm_mean"):
            assert number(row[key].mean) in words, key
            assert f"{number(row[key].low)}..{number(row[key].high)}" in words or row[key].low == row[key].high
    assert "Does multi beat logit?" in words
    assert "question: Does multi" in words
    assert "lower in 2 of 2 seeds" in words
    assert "2.13.0" in words
    assert "limbeck run first.yaml" in words


def test_the_page_fetches_nothing_and_runs_nothing(report):
    text = report.read_text()
    found = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "img"} & set(found.tags)
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
    assert "script" not in found.tags
    assert "img" not in found.tags
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert '<img src=x onerror=alert(1)> & "more"' in "".join(found.words)
    inside = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert any("&lt;script&gt;alert(1)" in picture for picture in inside)


def test_notes_stand_on_the_page(make_run):
    folder = make_run(status="interrupted")
    with (folder / "evals.jsonl").open("a") as file:
        file.write('{"step": 5')
    words = " ".join(page(folder).words)
    assert "was interrupted" in words
    assert "The last line of evals.jsonl" in words


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
