"""`limbeck trim`: what a model with fewer tokens says of a text that is made of them is what it said before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from families import CAUSAL
from kernel import answer, recipe
from spelling import FAMILIES, STRANGE, lay_out, sentences

import limbeck
from limbeck.errors import UserError
from limbeck.tools.trim import trim

SIZES = {"wordpiece": 150, "roberta": 350, "bytes": 350, "unigram": 120}


def kind(name: str) -> Any:
    return tf.AutoModelForCausalLM if name in CAUSAL else tf.AutoModelForMaskedLM


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "train.jsonl"
    path.write_text("".join(json.dumps({"text": line, "other": "no"}) + "\n" for line in sentences()), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=FAMILIES)
def both(
    request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Any, Any]:
    """A family, its folder and the trimmed one."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    whole = lay_out(name, folder / "whole")
    trim(str(whole), folder / "small", SIZES[FAMILIES[name]], [str(corpus)])
    return name, whole, folder / "small"


@torch.no_grad()
def test_states_and_logits_are_what_they_were(both: tuple[str, Path, Path]) -> None:
    name, whole, small = both
    old, new = (kind(name).from_pretrained(folder).eval() for folder in (whole, small))
    before, after = (tf.AutoTokenizer.from_pretrained(folder) for folder in (whole, small))
    assert new.config.vocab_size == len(after) == SIZES[FAMILIES[name]] == new.get_input_embeddings().weight.shape[0]
    assert type(new) is type(old)
    tokens = after.convert_ids_to_tokens(range(len(after)))
    columns = before.convert_tokens_to_ids(tokens)
    same, other = 0, 0
    for text in [*sentences(60, seed=5), *(line[:8] for line in sentences(100, seed=6))]:
        told = before(text)["input_ids"]
        if not set(told) <= set(columns):
            other += 1
            assert len(after(text)["input_ids"]) >= len(told)
            continue
        same += 1
        ids = after(text)["input_ids"]
        assert after.convert_ids_to_tokens(ids) == before.convert_ids_to_tokens(told)
        a = old(torch.tensor([told]), output_hidden_states=True)
        b = new(torch.tensor([ids]), output_hidden_states=True)
        assert all(map(torch.equal, a.hidden_states, b.hidden_states))
        torch.testing.assert_close(b.logits, a.logits[..., columns], rtol=1e-6, atol=1e-5)
    assert same > 10 and other > 10


def test_any_text_can_be_spelled(both: tuple[str, Path, Path]) -> None:
    _, whole, small = both
    before, after = (tf.AutoTokenizer.from_pretrained(folder) for folder in (whole, small))
    unknown = [0, 0]
    for text in [*sentences(60, seed=9), *STRANGE, "漢 字 é"]:
        ids = [tokenizer(text)["input_ids"] for tokenizer in (before, after)]
        texts = [tokenizer.decode(each) for tokenizer, each in zip((before, after), ids, strict=True)]
        assert texts[0] == texts[1]
        for place, tokenizer in enumerate((before, after)):
            unknown[place] += ids[place].count(tokenizer.unk_token_id)
    assert unknown[1] <= unknown[0]


def test_special_tokens_keep_their_part(both: tuple[str, Path, Path]) -> None:
    name, whole, small = both
    before, after = (tf.AutoTokenizer.from_pretrained(folder) for folder in (whole, small))
    assert before.special_tokens_map == after.special_tokens_map
    ids = [tokenizer(*pair)["input_ids"] for tokenizer in (before, after) for pair in ((" ba", " de"), ("",))]
    words = [
        tokenizer.convert_ids_to_tokens(each)
        for tokenizer, each in zip((before, before, after, after), ids, strict=True)
    ]
    special = [[word for word in each if word in before.all_special_tokens] for each in words]
    assert special[:2] == special[2:]
    old, new = (tf.AutoConfig.from_pretrained(folder).to_dict() for folder in (whole, small))
    roles = [word for word in old if word.endswith("_token_id") and old[word] is not None]
    assert roles or name == "distilbert"
    for role in roles:
        assert before.convert_ids_to_tokens(old[role]) == after.convert_ids_to_tokens(new[role])
    if name == "roberta":  # whose positions begin behind padding
        assert old["pad_token_id"] == new["pad_token_id"]


def test_twice_is_the_same(both: tuple[str, Path, Path], corpus: Path, tmp_path: Path) -> None:
    name, whole, small = both
    trim(str(whole), tmp_path / "again", SIZES[FAMILIES[name]], [str(corpus)])
    for path in small.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("tied", [True, False])
def test_tied_matrices_stay_tied(corpus: Path, tmp_path: Path, tied: bool) -> None:
    whole = lay_out("llama", tmp_path / "whole", tie_word_embeddings=tied)
    found = trim(str(whole), tmp_path / "small", 300, [str(corpus)])
    old, new = (tf.AutoModelForCausalLM.from_pretrained(folder) for folder in (whole, tmp_path / "small"))
    assert (new.lm_head.weight is new.model.embed_tokens.weight) is tied
    gone = old.config.vocab_size - 300
    assert found.parameters == (old.num_parameters(), new.num_parameters())
    assert old.num_parameters() - new.num_parameters() == gone * 32 * (1 if tied else 2)


def test_a_classifier_stays_one(corpus: Path, tmp_path: Path) -> None:
    whole = lay_out("bert", tmp_path / "whole")
    tf.AutoModelForSequenceClassification.from_pretrained(whole, num_labels=3).save_pretrained(whole)
    trim(str(whole), tmp_path / "small", 150, [str(corpus)])
    assert tf.AutoConfig.from_pretrained(tmp_path / "small").architectures == ["BertForSequenceClassification"]
    old, new = (tf.AutoModelForSequenceClassification.from_pretrained(f).eval() for f in (whole, tmp_path / "small"))
    a, b = (tf.AutoTokenizer.from_pretrained(f)("ba", return_tensors="pt") for f in (whole, tmp_path / "small"))
    assert torch.equal(old(**a).logits, new(**b).logits)


def test_the_numbers_are_those_of_the_text(corpus: Path, tmp_path: Path) -> None:
    whole = lay_out("gpt2", tmp_path / "whole")
    found = trim(str(whole), tmp_path / "small", 350, [str(corpus)]).growth
    before, after = (tf.AutoTokenizer.from_pretrained(folder) for folder in (whole, tmp_path / "small"))
    counts = [
        sum(len(it(line, add_special_tokens=False)["input_ids"]) for line in sentences()) for it in (before, after)
    ]
    assert list(found.tokens) == counts and counts[1] > counts[0]
    words = [word if place == 0 else f" {word}" for line in sentences() for place, word in enumerate(line.split(" "))]
    changed = sum(before.tokenize(word) != after.tokenize(word) for word in words)
    assert found.words == (len(words), changed) and found.characters == sum(map(len, sentences()))


def test_all_tokens_may_stay(corpus: Path, tmp_path: Path) -> None:
    whole = lay_out("bert", tmp_path / "whole", spare=0)
    size = len(tf.AutoTokenizer.from_pretrained(whole))
    trim(str(whole), tmp_path / "small", size, [str(corpus)])
    old, new = (tf.AutoModelForMaskedLM.from_pretrained(folder).state_dict() for folder in (whole, tmp_path / "small"))
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_mistakes_are_one_line_and_leave_nothing(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = lay_out("bert", tmp_path / "whole")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "rows.tsv").write_text("sentence\tlabel\nba de\t1\n", encoding="utf-8")
    there = sorted(path.name for path in tmp_path.iterdir())

    def told(out: str, size: int, *corpora: str, more: tuple[str, ...] = ()) -> str:
        words = [word for spec in corpora for word in ("--corpus", spec)]
        status, _, error = answer(
            monkeypatch, capsys, "trim", str(whole), out, "--vocabulary", str(size), *words, *more
        )
        assert status == 2 and error.count("\n") == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == there
        return error

    assert "taken: is there already" in told("taken", 150, str(corpus))
    assert "there are only" in told("out", 10_000, str(corpus))
    assert "no text in this corpus" in told("out", 150, "empty.txt")
    assert "no such file" in told("out", 150, "nowhere.txt")
    assert "no column text; set --field to one of: sentence, label" in told("out", 150, "rows.tsv")
    assert "no column a or b" in told("out", 150, "rows.tsv", more=("--field", "a", "--column", "b"))
    least = int(told("out", 5, str(corpus)).partition("come to ")[2].partition(",")[0])
    assert f"--vocabulary {least - 1}: too few" in told("out", least - 1, str(corpus))
    assert trim(str(whole), tmp_path / "out", least, [str(corpus)]).vocabulary[1] == least


def test_the_command_reads_each_corpus_by_its_columns(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = lay_out("bert", tmp_path / "whole")
    (tmp_path / "rows.tsv").write_text("first\tsecond\nba de\tfi\n", encoding="utf-8")
    words = ["--corpus", str(tmp_path / "rows.tsv"), "--corpus", str(corpus), "--field", "text"]
    words += ["--column", "first", "--column", "second", "--vocabulary", "150"]
    status, out, _ = answer(monkeypatch, capsys, "trim", str(whole), str(tmp_path / "out"), *words)
    assert status == 0 and f"of {sum(len(line.split()) for line in sentences()) + 3:,} are spelled anew" in out
    assert "-> 150" in out and out.splitlines()[2] in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_columns_without_names_are_numbered(corpus: Path, tmp_path: Path) -> None:
    whole = lay_out("bert", tmp_path / "whole")
    lines = sentences()
    (tmp_path / "rows.tsv").write_text("".join(f"7\t{line}\t{line}\n" for line in lines), encoding="utf-8")
    by_name = trim(str(whole), tmp_path / "a", 150, [str(corpus), str(corpus)])
    by_number = trim(str(whole), tmp_path / "b", 150, [str(tmp_path / "rows.tsv")], ["2", "text", "1"])
    assert by_number == by_name
    with pytest.raises(UserError, match="no column 3; set --field to one of: 0 to 2"):
        trim(str(whole), tmp_path / "c", 150, [str(tmp_path / "rows.tsv")], ["3"])


def test_a_tokenizer_that_cannot_be_trimmed(corpus: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    whole = lay_out("bert", tmp_path / "whole")
    plain = Tokenizer(models.WordLevel({"[UNK]": 0, "ba": 1, "de": 2}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tf.PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]").save_pretrained(whole)
    with pytest.raises(UserError, match="kind WordLevel cannot be trimmed"):
        trim(str(whole), tmp_path / "small", 2, [str(corpus)])


@pytest.mark.usefixtures("fast")
def test_a_trimmed_teacher_teaches(corpus: Path, tmp_path: Path) -> None:
    trim(str(lay_out("bert", tmp_path / "whole")), tmp_path / "teacher", 150, [str(corpus)])
    (tmp_path / "corpus.txt").write_text("\n\n".join(sentences(60)), encoding="utf-8")
    done = limbeck.run(recipe(tmp_path, tmp_path / "run"), quiet=True)
    for folder in done.students.values():
        student = tf.AutoModelForMaskedLM.from_pretrained(folder)
        assert student.get_input_embeddings().weight.shape[0] == 150
        assert len(tf.AutoTokenizer.from_pretrained(folder)) == 150
