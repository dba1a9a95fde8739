from __future__ import annotations

import ast
import hashlib
import inspect
import subprocess
import sys

import pytest

from limbeck.text import docs

DIGEST = """
import hashlib, sys
from limbeck.text.docs import documents
print(hashlib.sha256(repr(documents()).encode()).hexdigest())
packages = {"torch", "transformers", "numpy", "datasets", "accelerate", "huggingface_hub"}
print(*sorted(packages & set(sys.modules)))
"""

DOCSTRING = """
    Distil a :class:`Spirit` from the **wort** that is in the `pot still`, as it was done in the old days. See
    https://example.org/still for the drawings. The result is as strong as the wort is.

    Arguments
    ---------
    wort : array_like, optional
        The liquid that will be heated until the first of the vapours has reached the cold part of the still.
    heat (float, *optional*, defaults to `1.0`): how much of the fire is used while the liquid is
        still on its way to boil.
    :param time: the number of hours for which the fire will be kept, or none if it is to go out by itself.
    - ``copper``: the metal of which the pot is made, and which has to be cleaned [1]_ before it can be used.

    .. note::
        This is not to be done at home, since most of the states have [laws](https://example.org) against it.

    Short and dropped.

    Example::

        spirit = distil(wort, heat=2.0)  # this is the code that should not be in the output of the cleaner.

    >>> distil(wort)  # and this is a doctest that should not be in the output of the cleaner, either.
    The output of the doctest is not to be kept, even if it is a sentence that is as long as this one is.

    ```python
    # This is a comment in a fenced block. It is English, but it should not be in the output of the cleaner.
    ```

    | Column | This is a table, and it should not be in the output of the cleaner in any of its rows. |
"""

PROSE = [
    "Distil a Spirit from the wort that is in the pot still, as it was done in the old days. "
    "The result is as strong as the wort is.",
    "The liquid that will be heated until the first of the vapours has reached the cold part of the still.",
    "how much of the fire is used while the liquid is still on its way to boil.",
    "the number of hours for which the fire will be kept, or none if it is to go out by itself.",
    "the metal of which the pot is made, and which has to be cleaned before it can be used.",
    "This is not to be done at home, since most of the states have laws against it.",
]


@pytest.fixture(scope="module")
def corpus() -> list[tuple[str, str]]:
    return docs.documents()


def test_prose_of_a_handmade_docstring() -> None:
    assert docs.prose(DOCSTRING) == PROSE


@pytest.mark.parametrize(
    "text",
    [
        "Too short for it to be of any use.",
        "The first of the lines of a paragraph that does not end where its full stop would be, and",
        "Spirit, Wort, Still, Copper, Limbeck, Alembic, Retort, Cucurbit, Receiver, Condenser, Helm, Beak.",
        "(1, 2, 3, 4), (5, 6, 7, 8), (9, 10, 11, 12), the (13, 14) and the (15, 16) of a (17, 18) in it.",
    ],
    ids=["short", "no end", "names", "numbers"],
)
def test_what_is_not_prose(text: str) -> None:
    assert not docs.is_prose(text)


@pytest.mark.parametrize("module", ["argparse", "textwrap", "pytest"])
def test_docstrings_are_those_of_the_syntax_tree(module: str) -> None:
    source = inspect.getsource(__import__(module))
    found = {inspect.cleandoc(text) for text in docs.docstrings(source)}
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = (ast.get_docstring(node) for node in ast.walk(ast.parse(source)) if isinstance(node, nodes))
    assert {text for text in texts if text and len(text) >= docs.SHORTEST and "\\" not in text} <= found


def test_a_closing_quote_opens_nothing() -> None:
    between = "y = 'This is not a docstring, and the scan should not find it, long as it is.'"
    assert list(docs.docstrings(f'x = """\ncode\n"""\n{between}\n"""\n"""')) == []


@pytest.mark.slow
def test_size_and_order(corpus: list[tuple[str, str]]) -> None:
    names = [name for name, _ in corpus]
    assert 2e6 < sum(len(text.encode()) for _, text in corpus) < 8e6
    assert len(set(names)) == len(names) > 1000
    assert {name.split("/")[0] for name in names} == {"python", *docs.PACKAGES} == set(docs.sources())
    assert "torch/nn/modules/linear.py" in names


@pytest.mark.slow
def test_no_paragraph_twice(corpus: list[tuple[str, str]]) -> None:
    paragraphs = [paragraph for _, text in corpus for paragraph in text.split("\n\n")]
    assert len(set(paragraphs)) == len(paragraphs)
    assert all(docs.is_prose(paragraph) for paragraph in paragraphs)


@pytest.mark.slow
@pytest.mark.parametrize("leftover", [">>>", "```", "``", ":param", ":class:", ":return", "://", "::", "<Tip"])
def test_no_markup_is_left(corpus: list[tuple[str, str]], leftover: str) -> None:
    assert [name for name, text in corpus if leftover in text] == []


@pytest.mark.slow
def test_another_process_gets_the_same_corpus_and_imports_nothing(corpus: list[tuple[str, str]]) -> None:
    """The hash seed of the other process differs, and no package is imported for its documentation."""
    told = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True).stdout
    assert told.split() == [hashlib.sha256(repr(corpus).encode()).hexdigest()]
