"""Whole runs through `limbeck.run`, tiny ones: what they leave behind, and that they are functions of their recipes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from kernel import STUDENT_DEPTH, TEACHER_WIDTH, recipe
from runfiles import same_run, tensors, untimed, weights
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

import limbeck
from limbeck.assemble import design
from limbeck.assemble.study import Study, build_study
from limbeck.assemble.text import read_text
from limbeck.models import fingerprint
from limbeck.recipe.load import load
from limbeck.system.processes import World
from limbeck.training import checkpoint

DRAWN = {"test_the_run_directory"}

METRIC = {
    "step", "stage", "setting", "seed", "learner", "loss", "terms", "weights", "logit_loss", "grad_norm",
    "grad_norm_mean", "grad_norm_layers", "lr", "tokens", "tokens_per_second", "seconds", "flops",
}  # fmt: skip
EVAL = {
    "step", "stage", "setting", "seed", "learner", "split", "logit_loss", "agreement", "label_loss", "label_accuracy",
    "tokens", "logit_grad_norm_layers", "update_ratio_layers", "teacher_label_loss", "teacher_label_accuracy",
}  # fmt: skip
DOCUMENT = ["setting", "seed", "learner", "split", "document", "tokens", "logit_loss_sum", "agreement_sum"]
MANIFEST = {
    "name", "recipe_sha256", "command", "limbeck", "versions", "machine", "teacher", "data", "students", "status",
    "started", "finished", "seconds",
}  # fmt: skip


# what is left behind


def test_the_run_directory(finished: limbeck.Run) -> None:
    found = {path.name for path in finished.folder.iterdir()}
    assert found == {
        "recipe.yaml", "manifest.json", "metrics.jsonl", "evals.jsonl", "evals", "checkpoints", "students", "figures",
        "report.html", "reasons.jsonl", "profile.json",
    }  # fmt: skip
    assert {path.name for path in (finished.folder / "checkpoints").iterdir()} == {"step-000004", "step-000006"}
    assert {path.name for path in (finished.folder / "evals").iterdir()} == {
        f"step-00000{step}.parquet" for step in (0, 3, 6)
    }
    assert not [path for path in finished.folder.rglob("*") if path.name.endswith(".tmp")]
    assert "logit" in finished.table() and "multi" in finished.table()


def test_metrics(finished: limbeck.Run) -> None:
    rows = finished.metrics
    learners = [f"{setting}-seed{seed}" for seed in (0, 1) for setting in ("logit", "multi")]
    assert [(row["step"], row["learner"]) for row in rows] == [(s, name) for s in range(1, 7) for name in learners]
    tokens = 4 * 10
    for row in rows:
        assert set(row) >= METRIC
        assert set(row["terms"]) == (
            {"logit"} if row["setting"] == "logit" else {"logit", "embedding", "hidden", "attention"}
        )
        assert row["loss"] == pytest.approx(sum(row["weights"][n] * v for n, v in row["terms"].items()))
        assert row["stage"] == "train" and row["learner"] == f"{row['setting']}-seed{row['seed']}"
        assert len(row["grad_norm_layers"]) == STUDENT_DEPTH and row["grad_norm"] > 0 and row["logit_loss"] > 0
        assert row["tokens"] == tokens * row["step"] and row["seconds"] > 0 and row["tokens_per_second"] > 0
    assert [row["lr"] for row in rows[::4]] == pytest.approx([5e-3, 1e-2, 1e-2, 7.5e-3, 5e-3, 2.5e-3])
    flops = {row["setting"]: row["flops"] / row["step"] for row in rows}
    assert flops["multi"] > flops["logit"] > 0


def test_the_table_shows_the_smallest_share_of_the_gradient(finished: limbeck.Run) -> None:
    """Of the last probe, the mean over the seeds; a setting of one term has none."""
    probed = {row["learner"]: row["gradient_share"] for row in finished.metrics if row["gradient_share"]}
    assert all(shares == {"logit": 1.0} for name, shares in probed.items() if name.startswith("logit"))
    least = [min(shares.values()) for name, shares in probed.items() if name.startswith("multi")]
    (line,) = [line for line in finished.table().splitlines() if line.startswith("smallest share")]
    assert f"{100 * sum(least) / len(least):#.3g}".rstrip(".") in line


def test_a_student_teaches_the_next_run(finished: limbeck.Run, train: Callable[..., limbeck.Run]) -> None:
    """An assistant, or a generation born again: its folder is a teacher like any other."""
    said = {"teacher": str(finished.students["multi-seed0"]), "student": {"layers": 1, "intermediate": 16}}
    run = train("next", models=said, settings={"next": {"terms": [{"loss": "forward_kl"}]}}, train={"steps": 12})
    assert run.manifest["teacher"]["source"] == said["teacher"]
    assert run.metrics[-1]["terms"]["logit"] < 0.9 * run.metrics[0]["terms"]["logit"]


def test_evals_and_their_documents(finished: limbeck.Run) -> None:
    rows = finished.evals
    assert len(rows) == 3 * 4 * 2 and {row["step"] for row in rows} == {0, 3, 6}
    for row in rows:
        assert set(row) >= EVAL
        assert row["split"] in ("train", "test") and row["logit_loss"] > 0 and 0 <= row["agreement"] <= 1
        assert len(row["logit_grad_norm_layers"]) == STUDENT_DEPTH
        assert (row["update_ratio_layers"] is None) == (row["step"] == 0)
        table = pq.read_table(finished.folder / "evals" / f"step-{row['step']:06d}.parquet")
        assert table.column_names[: len(DOCUMENT)] == DOCUMENT
        mine = [d for d in table.to_pylist() if (d["learner"], d["split"]) == (row["learner"], row["split"])]
        assert all(d["setting"] == row["setting"] and d["seed"] == row["seed"] for d in mine)
        assert len({d["document"] for d in mine}) == len(mine) > 1
        assert sum(d["tokens"] for d in mine) == row["tokens"]
        for name in ("logit_loss", "agreement"):
            assert sum(d[f"{name}_sum"] for d in mine) / row["tokens"] == pytest.approx(row[name])
    first = [row for row in rows if row["step"] == 0 and row["seed"] == 0 and row["split"] == "test"]
    assert first[0]["logit_loss"] == first[1]["logit_loss"], "both settings begin with the same student"
    assert len({row["tokens"] for row in rows if row["split"] == "test"}) == 1, "no seed changes the blocks"


def test_manifest(finished: limbeck.Run, world: Path) -> None:
    manifest = finished.manifest
    assert set(manifest) >= MANIFEST
    assert manifest["status"] == "done" and manifest["seconds"] > 0 and manifest["finished"] >= manifest["started"]
    teacher = AutoModelForMaskedLM.from_pretrained(world / "teacher")
    told = manifest["teacher"]
    assert told["source"] == str(world / "teacher") and told["parameters"] == teacher.num_parameters()
    assert told["sha256"] == fingerprint.digest(teacher.named_parameters()), (
        "the teacher of the run is that of the folder"
    )
    assert {"corpus", "sha256", "documents", "tokens", "heldout_documents"} <= set(manifest["data"])
    for name, told in manifest["students"].items():
        exported = AutoModelForMaskedLM.from_pretrained(finished.students[name])
        assert told["parameters"] == exported.num_parameters() and told["flops_per_step"] > 0
    assert load(str(finished.folder / "recipe.yaml")) == load(recipe(world, finished.folder, seeds=[0, 1]))


def test_initial_students_are_equal_over_settings_and_differ_over_seeds(finished: limbeck.Run) -> None:
    initial = {name: told["initial_sha256"] for name, told in finished.manifest["students"].items()}
    assert initial["logit-seed0"] == initial["multi-seed0"]
    assert initial["logit-seed1"] == initial["multi-seed1"] != initial["logit-seed0"]


@pytest.mark.parametrize("name", ["logit-seed0", "multi-seed1"])
def test_the_exported_student_is_the_learner(finished: limbeck.Run, name: str) -> None:
    """Loaded by transformers alone: the checkpoint's tensors, the checkpoint's logits, nothing of limbeck, no projection."""
    place = finished.students[name]
    exported = AutoModelForMaskedLM.from_pretrained(place).eval()
    assert exported.config._attn_implementation != "limbeck" and "limbeck" not in (place / "config.json").read_text()
    assert AutoTokenizer.from_pretrained(place).mask_token_id == 4
    assert (place / "README.md").is_file()
    state = load_file(finished.folder / "checkpoints" / "step-000006" / f"{name}.safetensors")
    learned = {key.removeprefix("model."): tensor for key, tensor in state.items() if key.startswith("model.")}
    assert {key for key, _ in exported.named_parameters()} == learned.keys()
    assert all(torch.equal(parameter, learned[key]) for key, parameter in exported.named_parameters())
    assert [key for key in state if key.startswith("bridges.")] or name.startswith("logit")
    assert not [key for key in load_file(place / "model.safetensors") if "bridge" in key]

    study = study_of(load(str(finished.folder / "recipe.yaml")))
    learner = next(one for one in study.learners if one.name == name)
    checkpoint.restore(finished.folder / "checkpoints" / "step-000006", [learner])
    learner.model.eval()
    ids = torch.randint(5, 60, (2, 10), generator=torch.Generator().manual_seed(0))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        torch.testing.assert_close(exported(**given).logits, learner.forward(given)["logits"], rtol=1e-5, atol=1e-5)


def study_of(table: Any) -> Study:
    plan = design.design(table)
    return build_study(plan, World(), read_text(plan, lambda line: None))


# a function of its recipe


@pytest.mark.parametrize(("dropout", "accumulate"), [(0.0, 1), (0.1, 1), (0.1, 2)])
def test_company_is_solo(train: Callable[..., limbeck.Run], dropout: float, accumulate: int) -> None:
    how = {"accumulate": accumulate}
    company = train("company", dropout, train=how)
    for setting in ("logit", "multi"):
        alone = train(setting, dropout, train=how, only=[setting])
        name = f"{setting}-seed0"
        assert list(alone.students) == [name]
        assert weights(alone, name) == weights(company, name)
        assert untimed(alone.metrics) == untimed([row for row in company.metrics if row["setting"] == setting])
        assert untimed(alone.evals) == untimed([row for row in company.evals if row["setting"] == setting])
        told = [run.manifest["students"][name] for run in (alone, company)]
        assert told[0] == told[1]


def test_a_seed_in_company_is_the_seed_alone(train: Callable[..., limbeck.Run], finished: limbeck.Run) -> None:
    alone = train("alone", seeds=[1])
    assert all(weights(alone, name) == weights(finished, name) for name in alone.students)


def test_same_recipe_same_bits_and_another_seed_others(train: Callable[..., limbeck.Run], through: limbeck.Run) -> None:
    one, again = through, train("again", 0.1)
    same_run(one, again)
    assert one.manifest["recipe_sha256"] == again.manifest["recipe_sha256"]
    other = train("other", 0.1, seeds=[7])
    assert weights(other, "logit-seed7") != weights(one, "logit-seed0")
    assert other.metrics[0]["loss"] != one.metrics[0]["loss"]


def test_dropout_is_really_there(train: Callable[..., limbeck.Run]) -> None:
    plain, noisy = (train(f"d{share}", share, train={"steps": 1}, only=["logit"]) for share in (0.0, 0.3))
    told = [run.manifest["students"]["logit-seed0"]["initial_sha256"] for run in (plain, noisy)]
    assert told[0] == told[1] and weights(plain, "logit-seed0") != weights(noisy, "logit-seed0")
    assert plain.evals[0] == noisy.evals[0], "evaluation is without dropout"


def test_accumulating_gives_the_same_update(train: Callable[..., limbeck.Run]) -> None:
    how = {"steps": 3, "precision": "fp64"}
    runs = [train(f"a{parts}", train=how | {"accumulate": parts}) for parts in (1, 2, 4)]
    for name in runs[0].students:
        whole = tensors(runs[0], name)
        assert all(tensor.dtype == torch.float64 for tensor in whole.values())
        for run in runs[1:]:
            for key, tensor in tensors(run, name).items():
                torch.testing.assert_close(tensor, whole[key], rtol=1e-10, atol=1e-10)
    for row, *others in zip(*(run.metrics for run in runs), strict=True):
        for other in others:
            assert other["tokens"] == row["tokens"]
            assert other["loss"] == pytest.approx(row["loss"], rel=1e-10)
            assert other["grad_norm_layers"] == pytest.approx(row["grad_norm_layers"], rel=1e-9)


def test_bf16_runs_and_keeps_fp32_students(train: Callable[..., limbeck.Run]) -> None:
    run = train("bf16", train={"precision": "bf16", "steps": 2})
    assert all(tensor.dtype == torch.float32 for tensor in tensors(run, "multi-seed0").values())
    assert all(row["loss"] > 0 for row in run.metrics)


# other casts


def test_without_a_teacher(train: Callable[..., limbeck.Run], world: Path) -> None:
    student = {"family": "bert", "tokenizer": str(world / "teacher"), "layers": 1, "hidden": 16, "heads": 2}
    run = train(
        "labels",
        models={"student": student | {"intermediate": 32}},
        settings={"plain": {"terms": [{"loss": "cross_entropy", "name": "label"}]}},
        train={"steps": 12, "eval_every": 12, "eval_blocks": 20, "warmup": 0},
    )
    assert run.manifest["teacher"] is None
    assert all(row["logit_loss"] is None and row["loss"] == row["terms"]["label"] for row in run.metrics)
    assert all(row["agreement"] is None and row["logit_grad_norm_layers"] is None for row in run.evals)
    first, last = (next(r for r in run.evals if (r["step"], r["split"]) == (s, "train")) for s in (0, 12))
    assert last["label_loss"] < first["label_loss"]
    assert pq.read_table(run.folder / "evals" / "step-000012.parquet").num_rows > 1
    AutoModelForMaskedLM.from_pretrained(run.students["plain-seed0"])


def test_labels_beside_a_teacher(train: Callable[..., limbeck.Run]) -> None:
    both = [{"loss": "forward_kl"}, {"loss": "cross_entropy", "name": "label", "weight": 0.5}]
    run = train("both", settings={"both": {"terms": both}}, train={"steps": 2})
    assert all(set(row["terms"]) == {"logit", "label"} for row in run.metrics)


def test_a_setting_without_logits_leaves_its_head_alone(train: Callable[..., limbeck.Run]) -> None:
    run = train("inside", settings={"inside": {"terms": [{"loss": "mse", "tap": "hidden"}]}})
    assert all(row["logit_loss"] is None for row in run.metrics)
    assert all(row["logit_loss"] > 0 for row in run.evals), "it is judged by the logit loss all the same"


def test_a_student_from_teacher_layers(world: Path, tmp_path: Path, train: Callable[..., limbeck.Run]) -> None:
    table = recipe(world, tmp_path / "copied", only=["logit"], train={"steps": 1})
    shape = {"layers": 2, "init": "teacher", "from_layers": {1: 2, 2: 4}}
    models = {"teacher": str(world / "teacher"), "student": shape}
    teacher = dict(AutoModelForMaskedLM.from_pretrained(world / "teacher").named_parameters())
    learner = study_of(load(table | {"models": models})).learners[0]
    assert learner.model.config.num_hidden_layers == 2 and learner.model.config.hidden_size == TEACHER_WIDTH
    for name, parameter in learner.model.named_parameters():
        source = name.replace("layer.1.", "layer.3.").replace("layer.0.", "layer.1.")
        assert torch.equal(parameter, teacher[source]), name
    run = train("copied", models=models, train={"steps": 1}, seeds=[0, 1])
    initial = {told["initial_sha256"] for told in run.manifest["students"].values()}
    assert initial == {fingerprint.digest(learner.model.named_parameters())}
