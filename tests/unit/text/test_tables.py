from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from places import SHARED

from limbeck.errors import UserError
from limbeck.recipe.data import Data
from limbeck.text import readers, tables
from limbeck.text.corpora import column_names, find_files, fingerprint, read_documents, read_rows
from limbeck.text.heldout import separate_rows
from limbeck.text.readers import kind_of

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}
PACKED = [f"{kind}{packing}" for kind in (".tsv", ".csv", ".jsonl", ".json") for packing in PACK] + [".parquet"]
PAIRS = {"text": "premise", "pair": "hypothesis", "label": "gold"}
ONE = {"text": "sentence", "label": "label"}
NUMBERS = {"text": 1, "pair": 2, "label": 0}

Lines = Sequence[dict[str, Any]]


def write(path: Path, rows: Lines) -> Path:
    """The rows as a file of the kind that its ending says."""
    ending, packing = kind_of(path) or ("", "")
    names = list(rows[0])
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
        return path
    text = io.StringIO()
    if ending == ".csv":
        table = csv.writer(text)
        table.writerows([names, *([row[name] for name in names] for row in rows)])
    elif ending == ".tsv":
        text.write("".join("\t".join(map(str, line)) + "\n" for line in [names, *(row.values() for row in rows)]))
    else:
        text.write("".join(json.dumps(row) + "\n" for row in rows))
    path.write_bytes(PACK[packing](text.getvalue().encode()))
    return path


def rows_of(spec: Path | str, columns: dict[str, Any] | None = None, **words: Any) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(str(spec), columns or ONE, **words)]


def message(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- files that are right ---


@pytest.mark.parametrize("ending", PACKED)
def test_every_kind_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    lines = [
        {"id": "0", "gold": "yes", "premise": 'a "wort" \u2028 still', "hypothesis": "zwei Geister"},
        {"id": "1", "gold": "no", "premise": "b, c", "hypothesis": ""},
        {"id": "2", "gold": "", "premise": '"d', "hypothesis": "e "},
    ]
    path = write(tmp_path / f"a{ending}", lines)
    assert rows_of(path, PAIRS) == [
        {"text": 'a "wort" \u2028 still', "pair": "zwei Geister", "label": "yes"},
        {"text": "b, c", "pair": "", "label": "no"},
        {"text": '"d', "pair": "e ", "label": None},
    ]
    assert rows_of(path, {"text": "hypothesis"})[0] == {"text": "zwei Geister", "pair": None, "label": None}
    assert column_names(str(path), PAIRS) == ["id", "gold", "premise", "hypothesis"]


@pytest.mark.parametrize("ending", [ending for ending in PACKED if not ending.startswith(".json")])
def test_a_plain_corpus_may_be_a_table(tmp_path: Path, ending: str) -> None:
    path = write(
        tmp_path / f"a{ending}", [{"id": "1", "body": "one spirit"}, {"id": "2", "body": " "}, {"id": "3", "body": "x"}]
    )
    assert [text for _, text in read_documents(str(path), field="body")] == ["one spirit", "x"]
    assert "no field 'text'; set data.field to one of: id, body" in message(lambda: list(read_documents(str(path))))


def test_a_csv_follows_rfc_4180(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfsentence,label\r\n"one\r\n\r\ntwo ""x"", y",1\r\n\r\nplain,0\r\n"",\r\nz,2')
    assert list(read_rows(str(path), ONE)) == [
        ("a.csv:2", {"text": 'one\r\n\r\ntwo "x", y', "pair": None, "label": "1"}),
        ("a.csv:6", {"text": "plain", "pair": None, "label": "0"}),
        ("a.csv:8", {"text": "z", "pair": None, "label": "2"}),
    ]


def test_a_tsv_knows_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b'\xef\xbb\xbfsentence\tlabel\r\n"open\t1\r\n\r\n""\t0\r\n \tx\r\n\'y\rz, "\t')
    assert list(read_rows(str(path), ONE)) == [
        ("a.tsv:2", {"text": '"open', "pair": None, "label": "1"}),
        ("a.tsv:4", {"text": '""', "pair": None, "label": "0"}),
        ("a.tsv:6", {"text": "'y\rz, \"", "pair": None, "label": None}),
    ]


@pytest.mark.parametrize("ending", [".tsv", ".csv"])
def test_columns_by_number_have_no_line_of_names_and_may_be_few_of_many(tmp_path: Path, ending: str) -> None:
    parts = {".tsv": "\t", ".csv": ","}[ending]
    lines = [["2.5", "a", "b", "more", "and more"], ["", "c", "d"], ["1", "e", "f", "g"]]
    path = tmp_path / f"a{ending}"
    path.write_text("\n".join(parts.join(line) for line in lines))
    assert rows_of(path, NUMBERS) == [
        {"text": "a", "pair": "b", "label": "2.5"},
        {"text": "c", "pair": "d", "label": None},
        {"text": "e", "pair": "f", "label": "1"},
    ]
    assert rows_of(path, {"text": 1, "label": 3})[1]["label"] is None  # the row ends before
    assert column_names(str(path), NUMBERS) == [0, 1, 2, 3, 4]


def test_labels_are_values_and_nulls_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    labels = ["1", '" yes "', "null", '""', '" "', "0", "false", "0.5"]
    path.write_text("\n".join(f'{{"sentence": "x", "label": {label}}}' for label in labels) + '\n{"sentence": "y"}')
    assert [row["label"] for row in rows_of(path)] == [1, "yes", None, None, None, 0, False, 0.5, None]
    missing = tmp_path / "b.parquet"
    pq.write_table(pa.table({"sentence": ["x", None], "label": pa.array([None, 1], pa.int64())}), missing)
    assert rows_of(missing) == [{"text": "x", "pair": None, "label": None}]
    for ending in (".tsv", ".parquet", ".csv"):
        assert rows_of(write(tmp_path / f"c{ending}", [{"sentence": "x"}]))[0]["label"] is None


def test_a_row_without_text_is_none_and_bytes_are_of_both_texts(tmp_path: Path) -> None:
    lines = [("a", "bb"), ("", " "), ("", "c"), ("d", "")]
    path = write(tmp_path / "a.tsv", [{"premise": a, "hypothesis": b} for a, b in lines])
    assert [row["text"] for row in rows_of(path, PAIRS)] == ["a", "", "d"]
    assert len(rows_of(path, PAIRS, max_bytes=3)) == 1
    assert len(rows_of(path, PAIRS, max_bytes=4)) == 2
    assert "no text in this corpus" in message(
        lambda: rows_of(write(tmp_path / "b.tsv", [{"sentence": " ", "label": 1}]))
    )


@given(
    st.lists(st.lists(st.text('ab",\n\r \té', max_size=6), min_size=2, max_size=2), min_size=1, max_size=9),
    st.integers(1, 20),
    st.sampled_from(["\n", "\r\n"]),
)
@settings(deadline=None, max_examples=150)
def test_a_streamed_csv_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, lines: list[list[str]], chunk: int, ending: str
) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator=ending, quoting=csv.QUOTE_ALL)
        table.writerows([["premise", "hypothesis"], ["x", "y"], *lines])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "CHUNK", chunk)
        found = list(read_rows(str(path), {"text": "premise", "pair": "hypothesis"}))
    assert [[row["text"], row["pair"]] for _, row in found[1:]] == [line for line in lines if "".join(line).strip()]
    raw = path.read_bytes().decode().split("\n")
    assert all(raw[int(name.partition(":")[2]) - 1].startswith('"') for name, _ in found)


@given(
    st.lists(st.lists(st.text("ab\",\u2028'é ", max_size=6), min_size=2, max_size=2), min_size=1, max_size=9),
    st.integers(1, 20),
)
@settings(deadline=None, max_examples=80)
def test_a_streamed_tsv_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, lines: list[list[str]], chunk: int
) -> None:
    path = tmp_path_factory.mktemp("tsv") / "a.tsv"
    path.write_bytes("\n".join("\t".join(line) for line in [["x", "y"], *lines]).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "CHUNK", chunk)
        found = list(read_rows(str(path), {"text": 0, "pair": 1}))
    kept = [(i, line) for i, line in enumerate(lines, 2) if "".join(line).strip()]
    assert [(name, row["text"], row["pair"]) for name, row in found[1:]] == [(f"a.tsv:{i}", *line) for i, line in kept]


def test_a_long_field_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [{"sentence": "wort " * 100_000, "label": 1}])
    assert len(rows_of(path)[0]["text"]) == 500_000


def test_tables_in_folders_have_parts(tmp_path: Path) -> None:
    for name in ("train_b.tsv", "train_a.csv.gz", "dev.tsv", "test.tsv", "notes.tsv"):
        write(tmp_path / name, [{"sentence": name, "label": 1}])
    assert [p.name for p in find_files(str(tmp_path))] == ["train_a.csv.gz", "train_b.tsv"]
    assert [row["text"] for row in rows_of(tmp_path)] == ["train_a.csv.gz", "train_b.tsv"]
    assert [row["text"] for row in rows_of(tmp_path, split="heldout")] == ["dev.tsv"]
    assert fingerprint(str(tmp_path))[::3] == [".csv", ".tsv"]


# --- files that are wrong ---

WRONG = {
    "a.tsv": [
        (b"x\ty\na\tb\n", "{path}:1: no column 'sentence'; set data.task.text to one of: x, y"),
        (b"sentence\tlabel\na\tb\nc\n", "{path}:3: 1 fields under 2 names; mend the line (a tab parts two fields"),
        (b"sentence\tlabel\na\tb\tc\n", "{path}:2: 3 fields under 2 names; mend"),
        (b"sentence\tlabel\tlabel\na\tb\tc\n", "{path}:1: the name 'label' stands over 2 columns; rename all but one"),
        (b"sentence\tlabel\na\t1\nb\0\t1\n", "{path}:3: a NUL character, which is no text; convert the file to UTF-8"),
        ("sentence\tlabel\na\t1\n".encode("utf-16-le"), "{path}:1: a NUL character"),
        (b"sentence\tlabel\na\t1\n\xff\t1\n", "{path}:3: not UTF-8 (invalid start byte); convert the file"),
        (b"sentence\tlabel\n", "{path}: no text in this corpus"),
        (b"", "{path}: no text in this corpus"),
    ],
    "a.csv": [
        (b'sentence,label\n"a\nb",1\n"open,2\nx,3\n', "{path}:4: not a row of a .csv (unexpected end of data); quote"),
        (b'sentence,label\na,1\n"b"c,2\n', "{path}:3: not a row of a .csv (',' expected after '\"')"),
        (
            b"sentence,label\na,b,1\n",
            "{path}:2: 3 fields under 2 names; mend the line (quote a text that holds a comma)",
        ),
        (b"sentence,label\na,1\nb\0,1\n", "{path}:3: a NUL character"),
        (b'sentence,label\n"a\n\n\xff",1\n', "{path}:4: not UTF-8"),
        (b"x,label\na,1\n", "{path}:1: no column 'sentence'; set data.task.text to one of: x, label"),
    ],
    "a.jsonl": [
        (
            b'{"sentence": "x"}\n{"x": "y", "label": 1}',
            "{path}:2: no column 'sentence'; set data.task.text to one of: x, label",
        ),
        (b'\n{"sentence": 3}', "{path}:2: the column 'sentence' holds no text but a int; set data.task.text"),
        (b'{"sentence": "x"}\n{"sentence"', "{path}:2: not JSON"),
        (b'{"sentence": "x\0"}', "{path}:1: a NUL character"),
        (b"[1]", "{path}:1: not an object with the column 'sentence'; write one object per line"),
        (b'{"sentence": "\\ud800"}', "{path}:1: the column 'sentence' holds half a surrogate pair"),
    ],
    "a.parquet": [(b"PAR1 no", "{path}: cannot be read to its end (not a whole parquet file")],
    "a.txt": [
        (b"text", "{path}: running text has no columns; name a file that ends in .tsv, .csv, .jsonl or .parquet")
    ],
}


@pytest.mark.parametrize(
    ("name", "content", "words"), [(name, *case) for name, cases in WRONG.items() for case in cases]
)
def test_what_is_wrong_is_named_by_file_and_line(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert message(lambda: rows_of(path)).startswith(words.format(path=path))


def test_a_missing_pair_names_its_own_word(tmp_path: Path) -> None:
    lines = [{"premise": "a", "gold": 1}]
    for ending in (".tsv", ".csv", ".jsonl", ".parquet"):
        path = write(tmp_path / f"a{ending}", lines)
        said = message(lambda path=path: rows_of(path, PAIRS))
        assert said.endswith("no column 'hypothesis'; set data.task.pair to one of: premise, gold")
        assert said.startswith(str(path))


def test_a_row_that_ends_before_a_number_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("1\ta\tb\n2\tc\n")
    assert (
        message(lambda: rows_of(path, NUMBERS))
        == f"{path}:2: no column 2 (from 0); set data.task.pair to one of: 0 to 1"
    )


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_numbers_are_for_tables(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a{ending}", [{"sentence": "a"}])
    expected = f"{path}: column 1: only .tsv and .csv have numbered ones; name it in data.task.text"
    assert message(lambda: rows_of(path, NUMBERS)) == expected
    assert message(lambda: rows_of("hub:org/name", NUMBERS)).startswith("hub:org/name: column 1: only .tsv")


def test_the_embedded_corpus_has_no_rows() -> None:
    assert "docs: running text has no columns" in message(lambda: rows_of("docs"))


@pytest.mark.parametrize("ending", [".tsv", ".csv", ".jsonl"])
@pytest.mark.parametrize("packing", [".gz", ".xz", ".zst"])
def test_a_truncated_archive_is_named(tmp_path: Path, ending: str, packing: str) -> None:
    path = write(tmp_path / f"a{ending}{packing}", [{"sentence": f"wort {i * i}", "label": i} for i in range(500)])
    path.write_bytes(path.read_bytes()[:-9])
    assert message(lambda: rows_of(path)).startswith(f"{path}: cannot be read to its end (")


def test_an_error_does_not_quote_a_whole_text(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("wort " * 500 + "\t1\n")
    assert len(message(lambda: rows_of(path))) < 400


def test_an_open_quote_does_not_read_on_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = csv.field_size_limit(1000)
    monkeypatch.setattr(tables, "FIELD_LIMIT", 1000)
    try:
        path = tmp_path / "a.csv"
        path.write_text('sentence,label\nx,1\n"y,2\n' + "z,3\n" * 1000)
        assert message(lambda: rows_of(path)).startswith(
            f"{path}:3: not a row of a .csv (field larger than field limit"
        )
    finally:
        csv.field_size_limit(before)


def test_rows_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = [{"sentence": "x", "label": 1, "idx": 0}, {"sentence": "y", "label": None, "idx": 1}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    spec = f"hub:org/name@{'a1' * 20}"
    assert list(read_rows(spec, ONE)) == [
        ("org/name:1", {"text": "x", "pair": None, "label": 1}),
        ("org/name:2", {"text": "y", "pair": None, "label": None}),
    ]
    assert column_names(spec, ONE) == ["sentence", "label", "idx"]
    expected = f"{spec}:1: no column 'premise'; set data.task.text to one of: sentence, label, idx"
    assert message(lambda: rows_of(spec, PAIRS)) == expected


# --- what is held out ---


def parts(data: Data) -> dict[str, list[tuple[str, str | None]]]:
    found: dict[str, list[tuple[str, str | None]]] = {"train": [], "heldout": [], "both": []}
    for part, _, row in separate_rows(data):
        found[part].append((row["text"], row["pair"]))
    return found


def table(corpus: Path, **words: Any) -> Data:
    task = {"kind": "classification", **(PAIRS if words.pop("pairs", False) else ONE)}
    return Data.model_validate({"corpus": str(corpus), "task": task, **words})


def test_a_share_of_rows_is_held_out_by_both_texts(tmp_path: Path) -> None:
    lines = [{"premise": f"p{i % 30}", "hypothesis": f"h{i % 20}", "gold": i} for i in range(600)]
    path = write(tmp_path / "a.tsv", lines)
    found = parts(table(path, pairs=True, heldout=0.3))
    assert len(found["train"]) + len(found["heldout"]) == 600
    assert not {*found["train"]} & {*found["heldout"]}
    assert {a for a, _ in found["train"]} & {a for a, _ in found["heldout"]}  # a text alone is no row
    assert 5 < len({*found["heldout"]}) < 30


def test_a_share_of_single_texts_is_that_of_documents(tmp_path: Path) -> None:
    """A row of one text falls on the side on which the same document of running text falls."""
    from limbeck.text.heldout import separate

    path = write(tmp_path / "a.jsonl", [{"sentence": f"text {i}", "label": 1} for i in range(200)])
    rows = parts(table(path, heldout=0.2))
    documents = Data.model_validate({"corpus": str(path), "field": "sentence", "heldout": 0.2})
    assert [text for part, _, text in separate(documents) if part == "heldout"] == [a for a, _ in rows["heldout"]]


def test_held_out_rows_are_never_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", [{"premise": a, "hypothesis": b, "gold": 1} for a, b in ("xy", "yz", "zz")])
    write(tmp_path / "dev.csv", [{"premise": a, "hypothesis": b, "gold": 0} for a, b in ("yz", "yx")])
    assert parts(table(tmp_path, pairs=True)) == {
        "train": [("x", "y"), ("z", "z")],
        "heldout": [("y", "z"), ("y", "x")],
        "both": [("y", "z")],
    }


# --- real tables ---


@pytest.mark.skipif(not (SHARED / "data/glue/SST-2").is_dir(), reason="no SST-2 beside the project")
def test_sst2_is_read_as_it_is() -> None:
    folder = SHARED / "data/glue/SST-2"
    for split, pattern in (("train", "train_*.tsv"), ("heldout", "dev.tsv")):
        expected = []
        for path in sorted(folder.glob(pattern)):
            with open(path, encoding="utf-8", newline="\n") as file:
                lines = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
            expected += [{"text": line["sentence"], "pair": None, "label": line["label"]} for line in lines]
        assert rows_of(folder, split=split) == expected


@pytest.mark.skipif(not (SHARED / "data/glue/STS-B").is_dir(), reason="no STS-B beside the project")
def test_stsb_is_read_as_it_is() -> None:
    path = SHARED / "data/glue/STS-B/sts-train.tsv"
    lines = [line.split("\t") for line in path.read_bytes().decode().removesuffix("\n").split("\n")]
    expected = [{"text": line[5], "pair": line[6].rstrip("\r"), "label": line[4]} for line in lines]
    assert rows_of(path, {"text": 5, "pair": 6, "label": 4}) == expected
    assert len(expected) == 5749
