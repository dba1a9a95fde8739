"""The section on cost: what profile.json and metrics.jsonl have, for every setting and teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kernel import recipe

import limbeck
from limbeck.lab.data import joined
from limbeck.lab.data.run import read
from limbeck.lab.page import cost, report

PROFILING = 10.0  # seconds: latency is looked at here

LATENCY = {"p50": 0.0125, "p90": 0.02, "p99": 0.03}
PROFILE: dict[str, Any] = {
    "length": 64, "batches": [1, 32], "rounds": 10, "device": "cpu", "threads": 2, "precision": "fp32",
    "models": [
        {
            "name": "logit-seed0", "settings": ["logit", "multi"], "parameters": 4321, "parameters_without_embeddings": 321,
            "macs_per_token": 1.5e6, "macs_per_row": 9.6e7, "latency": {"1": LATENCY, "32": LATENCY | {"p50": 0.25}},
            "peak_memory": {"1": 2**20, "32": 3 * 2**20},
        },
        {
            "name": "teacher", "settings": [], "parameters": 87_654_321, "parameters_without_embeddings": 65_000_000,
            "macs_per_token": 2e9, "macs_per_row": 1.28e11, "latency": {"1": LATENCY | {"p50": 1.5}, "32": None},
            "peak_memory": {"1": 2**30, "32": None},
        },
    ],
}  # fmt: skip


def test_every_model_has_a_line(make_run: Any) -> None:
    folder = make_run()
    (folder / "profile.json").write_text(json.dumps(PROFILE))
    found = cost.of_run(read(folder))
    assert found.headings == [
        "model", "parameters", "without embeddings", "MACs a token", "latency, batch 1", "latency, batch 32",
        "peak memory, batch 1", "peak memory, batch 32", "training tokens/s", "training time",
    ]  # fmt: skip
    student = ["4,321", "321", "1.50 M", "12.5 ms", "250 ms", "1.00 MiB", "3.00 MiB"]
    assert found.lines == [
        ["teacher", "87,654,321", "65,000,000", "2.00 G", "1.50 s", "\u2013", "1.00 GiB", "\u2013", "\u2013", "\u2013"],
        ["logit", *student, "4,096", "20.0 s"],  # 2,048 tokens a step of 0.5 s
        ["multi", *student, "3,413", "24.0 s"],  # of 0.6 s
    ]
    assert "rows of 64 tokens" in found.remark and "on cpu with 2 threads, fp32" in found.remark
    page = report.write(folder).read_text()
    section = page.partition('<section id="cost">')[2].partition("</section>")[0]
    assert all(f">{text}</t" in section for line in found.lines for text in line)


def test_an_older_run_has_what_its_manifest_says(make_run: Any) -> None:
    folder = make_run(facts={"students": {f"logit-seed{seed}": {"parameters": 99} for seed in (0, 1)}})
    found = cost.of_run(read(folder))
    assert found.headings == [
        "model",
        "parameters",
        "without embeddings",
        "MACs a token",
        "training tokens/s",
        "training time",
    ]
    assert found.lines[0] == ["teacher", "1,234", *["\u2013"] * 4]
    assert found.lines[1] == ["logit", "99", "\u2013", "\u2013", "4,096", "20.0 s"]
    assert "no profile.json" in found.remark and '<section id="cost">' in report.write(folder).read_text()


def test_what_was_not_timed_is_a_dash(make_run: Any) -> None:
    folder = make_run(seeds=(0,))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines[3]["seconds"] = None
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [line[-2:] for line in cost.of_run(read(folder)).lines[1:]] == [["4,096", "20.0 s"], ["\u2013", "\u2013"]]


def test_runs_side_by_side_keep_their_own(make_run: Any, tmp_path: Path) -> None:
    folders = [make_run(name, settings=("logit",)) for name in ("one", "two")]
    for place, folder in enumerate(folders):
        told = json.loads(json.dumps(PROFILE))
        told["models"][0]["parameters"] += place
        (folder / "profile.json").write_text(json.dumps(told))
    found = cost.of_run(joined.several(folders, tmp_path))
    assert [line[:2] for line in found.lines] == [
        ["teacher", "87,654,321"],
        ["one", "4,321"],
        ["two", "4,322"],
    ]


# a real run


@pytest.fixture(scope="module")
def study(world: Path, tmp_path_factory: pytest.TempPathFactory) -> limbeck.Run:
    """Two arms with students of different depth, a pair of peers in each."""
    out = tmp_path_factory.mktemp("studies") / "study"
    kl: dict[str, Any] = {"loss": "forward_kl"}
    mutual = {"terms": [kl, kl | {"teacher": "peers"}], "peers": 2}
    table = recipe(
        world, out, settings={"logit": {"terms": [kl]}, "mutual": mutual}, train={"steps": 2, "eval_every": 2}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "figures", lambda run: [])
        return limbeck.run(table | {"vary": {"models.student.layers": [1, 2]}}, quiet=True)


@pytest.mark.slow
def test_a_run_writes_its_profile(study: limbeck.Run) -> None:
    for arm in study.arms.values():
        told = json.loads((arm.folder / "profile.json").read_text())
        assert (told["length"], told["batches"], told["device"], told["precision"]) == (10, [1, 32], "cpu", "fp32")
        student, teacher = told["models"]
        assert (student["name"], student["settings"]) == ("logit-seed0", ["logit", "mutual"])
        assert (teacher["name"], teacher["settings"]) == ("teacher", [])
        assert student["parameters"] == arm.manifest["students"]["logit-seed0"]["parameters"]
        assert teacher["parameters"] == arm.manifest["teacher"]["parameters"]
        for model in told["models"]:
            assert all(model["latency"][rows]["p50"] > 0 for rows in ("1", "32"))
            assert model["peak_memory"]["32"] > model["peak_memory"]["1"] > 4 * model["parameters"]


@pytest.mark.slow
def test_a_study_shows_those_of_its_arms(study: limbeck.Run) -> None:
    lines = {line[0]: line for line in cost.of_run(joined.gather(study.folder)).lines}
    assert list(lines) == [
        "teacher",
        *(f"{name} layers={n}" for n in (1, 2) for name in ("logit", "mutual-a", "mutual-b")),
    ]
    for number, arm in enumerate(study.arms.values(), start=1):
        facts = arm.manifest["students"]["logit-seed0"]
        assert lines[f"mutual-b layers={number}"][1] == lines[f"logit layers={number}"][1] == f"{facts['parameters']:,}"
    assert lines["logit layers=1"][3] != lines["logit layers=2"][3]
