"""An ensemble gives one prediction: the average that it is asked for, of the logits of its members."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kernel import LOGIT, batch, bert, frozen, lay_out, learner, recipe, tokenizer, views
from torch import Tensor

import limbeck
from limbeck import api
from limbeck.distil import schemes
from limbeck.distil.teachers import Average, Ensemble, Frozen
from limbeck.errors import UserError
from limbeck.recipe.load import load


def members() -> list[Frozen]:
    """Two teachers of different widths and depths over one vocabulary."""
    return [frozen("a", seed=1), Frozen("b", bert(16, 2, seed=2), ["logits"])]


def whole(model: Frozen, given: dict[str, Tensor]) -> Tensor:
    return model.model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits


@pytest.mark.parametrize("average", ["logits", "probabilities", "log_probabilities"])
def test_the_average_is_what_it_is_called(average: Average) -> None:
    both, given = members(), batch()
    ensemble = Ensemble("teacher", both, average, [3.0, 1.0])
    prediction = ensemble.logits(ensemble.forward(given).features).softmax(-1)
    first, second = (whole(one, given) for one in both)
    expected = {
        "logits": (0.75 * first + 0.25 * second).softmax(-1),
        "probabilities": 0.75 * first.softmax(-1) + 0.25 * second.softmax(-1),
        "log_probabilities": (0.75 * first.log_softmax(-1) + 0.25 * second.log_softmax(-1)).softmax(-1),
    }[average]
    torch.testing.assert_close(prediction, expected, rtol=1e-9, atol=1e-12)


def test_averages_of_logits_and_of_log_probabilities_predict_the_same() -> None:
    both, given = members(), batch()
    averages = [Ensemble("teacher", both, average) for average in ("logits", "log_probabilities")]
    mine, theirs = (prediction.logits(prediction.forward(given).features).softmax(-1) for prediction in averages)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_an_ensemble_of_one_teacher_twice_is_that_teacher() -> None:
    """The student's gradient is that of learning from the one."""
    one, twice, batches = frozen("t"), Ensemble("t", [frozen("t"), frozen("t")], "probabilities"), [batch()]
    found = []
    for teacher in (one, twice):
        student = learner("s", (LOGIT,))
        still = schemes.together([schemes.offline(student, {"teacher": teacher}, (LOGIT,))], chunk=5)
        still.gradients(*views(batches), 0)
        found.append([p.grad for p in student.model.parameters() if p.grad is not None])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


def test_it_has_no_inside() -> None:
    with pytest.raises(KeyError, match="its members have"):
        Ensemble("teacher", members(), "logits").forward(batch())["hidden.1"]


# from recipes


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world with two further teachers: one of other width whose embedding is padded to 64 rows, one of other words."""
    folder = lay_out(tmp_path_factory.mktemp("several"))
    padded = bert(32, 3, seed=5, noise=0.1).float()
    padded.resize_token_embeddings(64)
    padded.save_pretrained(folder / "padded")
    tokenizer().save_pretrained(folder / "padded")
    other = tokenizer()
    other.add_tokens(["another"])
    bert(24, 4, seed=6).float().save_pretrained(folder / "other")
    other.save_pretrained(folder / "other")
    return folder


def test_teachers_by_name_and_padded_vocabularies(several: Path, tmp_path: Path) -> None:
    """An ensemble beside a named teacher; where embeddings are padded to 64 rows, 60 columns are compared."""
    said = recipe(several, tmp_path / "run", train={"probe_every": 2})
    said["models"] |= {
        "teacher": {"ensemble": [str(several / "teacher"), str(several / "padded")], "average": "probabilities"},
        "teachers": {"wide": str(several / "padded")},
    }
    said["settings"] = {
        "both": {
            "terms": [{"loss": "forward_kl"}, {"loss": "mse", "tap": "hidden", "layers": "last", "teacher": "wide"}]
        },
        "wide": {"terms": [{"loss": "reverse_kl", "teacher": "wide"}]},
    }
    run = limbeck.run(said, quiet=True)
    assert [teacher["name"] for teacher in [run.manifest["teacher"], *run.manifest["teachers"]]] == [
        "teacher-1", "teacher-2", "wide",
    ]  # fmt: skip
    last = {row["setting"]: row for row in run.metrics}
    assert set(last["both"]["terms"]) == {"logit", "hidden-wide"} and set(last["wide"]["terms"]) == {"logit-wide"}
    first = {row["setting"]: row for row in reversed(run.metrics)}
    assert last["both"]["terms"]["logit"] < first["both"]["terms"]["logit"]
    assert "an ensemble of 2, averaging probabilities" in "\n".join(api.check(said))


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"teacher": {"ensemble": ["a"]}}, "models.teacher.ensemble"),
        ({"teacher": {"ensemble": ["a", "b"], "weights": [1.0]}}, "1 weights for 2 members; give one for each"),
        ({"teacher": {"ensemble": ["a", "b"], "average": "mean"}}, "models.teacher.average"),
        ({"teacher": "a", "teachers": {"peers": "b"}}, "peers has a meaning of its own"),
        ({"teacher": "a", "teachers": {"teacher-1": "b"}}, "teacher-1 has a meaning of its own"),
        ({"teacher": "a", "teachers": {"multi-seed0": "b"}}, "multi-seed0 has a meaning of its own"),
        ({"teachers": {"b": "b"}}, "models.teacher: missing"),
    ],
)
def test_what_cannot_be(several: Path, tmp_path: Path, models: dict[str, object], message: str) -> None:
    said = recipe(several, tmp_path / "run")
    said["models"] = {"student": said["models"]["student"], **models}
    with pytest.raises(UserError, match=message):
        load(said)


def test_an_ensemble_is_asked_for_its_logits_alone(several: Path, tmp_path: Path) -> None:
    said = recipe(several, tmp_path / "run")
    said["models"]["teacher"] = {"ensemble": [str(several / "teacher"), str(several / "padded")]}
    with pytest.raises(UserError, match="an ensemble has nothing but logits"):
        load(said)


def test_another_vocabulary_stops(several: Path, tmp_path: Path) -> None:
    said = recipe(several, tmp_path / "run")
    said["models"]["teachers"] = {"other": str(several / "other")}
    with pytest.raises(UserError, match="other has another vocabulary than teacher"):
        api.check(said)
