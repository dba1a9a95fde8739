"""Early exits: one line for each, and the last layer."""

from __future__ import annotations

import pytest

from limbeck.lab.data.run import read
from limbeck.lab.page import exits
from limbeck.lab.page.report import write
from limbeck.lab.page.results import as_markdown, as_text, rows


def test_a_line_for_each_exit_in_the_order_of_the_layers_and_one_for_the_last(make_run):
    head, *body = exits.lines(rows(read(make_run(exits=("multi",), seeds=(0,)))))
    assert head == ["setting", "exit", "logit loss", "agreement", "label loss", "label accuracy"]
    assert [line[:2] for line in body] == [
        ["multi", "after layer 2"],
        ["multi", "after layer 10"],
        ["multi", "last layer"],
    ]
    last = 9 / 2.6
    assert [line[2] for line in body] == [f"{times * last:.3f}" for times in (1.5, 1.1, 1)]
    assert body[0][4] == f"{1.5 * (last + 0.5):.3f}"


def test_exits_of_rows_have_metrics_and_ranges(make_run):
    results = rows(read(make_run(exits=("logit", "multi"), task="regression")))
    head, first, *_ = exits.lines(results)
    assert head[2:] == [
        "Pearson correlation",
        "Spearman correlation",
        "squared error against the teacher",
        "squared error against the labels",
    ]
    assert first[:3] == ["logit", "after layer 2", "0.595 (0.590..0.600)"]
    assert results[1]["exits"]["after layer 10"]["metrics.pearson"].mean == pytest.approx(0.825 - 0.03)


def test_without_a_teacher_only_labels_are_told(make_run):
    head, *_ = exits.lines(rows(read(make_run(exits=("multi",), teacher=False))))
    assert head[2:] == ["label loss", "label accuracy"]


def test_runs_without_exits_show_nothing_of_them(make_run):
    run = make_run()
    assert exits.lines(rows(read(run))) == []
    assert "exit" not in as_text(rows(read(run)))
    assert "Early exits" not in write(run).read_text()


def test_the_table_stands_in_text_markdown_and_page(make_run):
    folder = make_run(exits=("multi",))
    results = rows(read(folder))
    text = as_text(results).partition("\nearly exits, test text\n\n")[2].splitlines()
    assert len(text) == 5 and len({len(line) for line in text}) == 1
    markdown = as_markdown(results).partition("\nearly exits, test text\n\n")[2].splitlines()
    assert markdown[1] == "| --- | --- | ---: | ---: | ---: | ---: |"
    page = write(folder).read_text()
    assert "<h2>Early exits, test text</h2>" in page
    exits = page.partition("<h2>Early exits")[2].partition("<h2>")[0]
    assert exits.count('<th scope="row">multi</th>') == 1  # its name stands on its first line only
    assert [page.count(f"<td>after layer {layer}</td>") for layer in (2, 10)] == [1, 1]
