"""Words as vectors, and the words nearest to one: from a file in GloVe's format, or from any matrix of embeddings.

W words, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from limbeck.errors import UserError
from limbeck.system.files import file_sha256

REMEDY = "every line holds a word and as many numbers as the first one; mend the file"
MOST = 100_000  # vectors that are read of a file, as published: the most frequent words stand first


class Vectors:
    """Words and their directions.

    Args:
        words: W different words.
        matrix: their vectors `[W, D]`.
    """

    def __init__(self, words: Sequence[str], matrix: np.ndarray) -> None:
        self.words = list(words)
        self._rows = {word: number for number, word in enumerate(self.words)}
        matrix = np.asarray(matrix, np.float32)
        self._unit = matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), np.finfo(np.float32).tiny)

    def __contains__(self, word: str) -> bool:
        return word in self._rows

    def of(self, word: str) -> np.ndarray:
        """The direction of a word that is there: float32 `[D]`."""
        return self._unit[self._rows[word]]

    def nearest(self, query: np.ndarray, count: int, without: str) -> list[str]:
        """The words of the largest cosine, the largest first; of equal ones the first in the file.

        Args:
            query: a vector `[D]` of any length.
            count: how many, at most.
            without: the word that is left out.

        >>> some = Vectors(["good", "fine", "bad"], np.array([[1, 0], [1, 0.1], [-1, 0]]))
        >>> some.nearest(some.of("good"), 2, without="good")
        ['fine', 'bad']
        """
        closeness = self._unit @ np.asarray(query, np.float32)
        order = np.argsort(-closeness, kind="stable")[: count + 1]
        return [word for word in (self.words[number] for number in order) if word != without][:count]


def read(path: Path, most: int = MOST) -> Vectors:
    """The first vectors of a file in GloVe's format: a line for each word, the word and D numbers with a space between.

    A word may hold spaces, as some of GloVe's 840B do; of a word that stands twice the first line counts.

    Raises:
        UserError: no such file, no vectors in it, a line of another width, or something that is no number.
    """
    words: dict[str, np.ndarray] = {}
    width = 0
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(islice(file, most), 1):
                if not (fields := line.rstrip().split(" "))[0]:
                    raise UserError(f"{path}:{number}: no word and its numbers; {REMEDY}")
                width = width or len(fields) - 1
                word, vector = _parsed(fields, width, f"{path}:{number}")
                words.setdefault(word, vector)
    except OSError as error:
        raise _unread(path, error) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); convert the file") from None
    if not words:
        raise UserError(f"{path}: no vectors in this file; name another, or teacher")
    return Vectors(list(words), np.stack(list(words.values())))


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        UserError: no such file.
    """
    try:
        return file_sha256(path)
    except OSError as error:
        raise _unread(path, error) from None


def _unread(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be read ({error.strerror}); name a file of word vectors, or teacher")


def _parsed(fields: list[str], width: int, where: str) -> tuple[str, np.ndarray]:
    """A word and its vector `[width]`."""
    spaced = len(fields) > width + 1 and width and not _is_number(fields[1])
    if not width or (len(fields) != width + 1 and not spaced):
        raise UserError(f"{where}: {len(fields) - 1} numbers, and the first line has {width}; {REMEDY}")
    wrong = next((field for field in fields[-width:] if not _is_number(field)), None)
    if wrong is not None:
        raise UserError(f"{where}: {wrong[:40]!r} is not a number; {REMEDY}")
    return " ".join(fields[:-width]), np.array(fields[-width:], np.float32)


def _is_number(field: str) -> bool:
    try:
        return bool(np.isfinite(float(field)))
    except ValueError:
        return False
