"""Layer maps: which teacher layer each student layer learns from. Pure integers, counted from 1.

Layer 0 is the embedding output, layer i the output of the i-th transformer layer.
"""

from __future__ import annotations

from typing import Literal

from limbeck.errors import UserError, nearest
from limbeck.recipe.keys import LAYER_MAPS

LayerMap = str | dict[int | Literal["last"], int | Literal["last"]]


def resolve(spec: LayerMap, student: int, teacher: int) -> dict[int, int]:
    """The map {student layer: teacher layer} that `spec` means for models of so many layers.

    - `uniform`: i -> round(i * teacher / student), Python's rounding (halves go to the even layer); in a
      student twice as deep as its teacher or deeper the first layers get 0, the embedding;
    - `skip`: i -> i * teacher / student, as in TinyBERT (arXiv 1909.10351);
      the student's depth must divide the teacher's;
    - `last`: the last student layer from the last teacher layer;
    - `top`: the student's layers from the teacher's topmost ones, in order;
    - `all-to-one`: every student layer from the teacher's last;
    - a mapping such as `{1: 2, last: last}`; negative numbers count from the end, -1 is the last layer.

    Raises:
        UserError: the map does not fit models of these depths.

    >>> resolve("uniform", 3, 6)
    {1: 2, 2: 4, 3: 6}
    """
    if isinstance(spec, dict):
        pairs = [(_layer(s, student, "student"), _layer(t, teacher, "teacher")) for s, t in spec.items()]
        if len(dict(pairs)) < len(pairs):
            raise UserError("layers: one layer of the student stands twice; name each once")
        return dict(pairs)
    if spec == "uniform":
        return {i: round(i * teacher / student) for i in range(1, student + 1)}
    if spec == "skip":
        if teacher % student:
            raise UserError(
                f"layers: skip (TinyBERT) needs a teacher depth divisible by the student's: {teacher} layers over {student}; "
                "use layers: uniform, or a mapping such as {1: 2, 2: 4}"
            )
        return {i: i * teacher // student for i in range(1, student + 1)}
    if spec == "last":
        return {student: teacher}
    if spec == "all-to-one":
        return dict.fromkeys(range(1, student + 1), teacher)
    if spec == "top":
        if student > teacher:
            raise UserError(
                f"layers: top needs a teacher at least as deep as the student ({teacher} < {student}); use layers: uniform"
            )
        return {i: teacher - student + i for i in range(1, student + 1)}
    raise UserError(f"layers: unknown layer map '{spec}'; {nearest(str(spec), LAYER_MAPS)}")


def _layer(word: int | str, depth: int, whose: str) -> int:
    number = depth if word == "last" else int(word)
    layer = depth + 1 + number if number < 0 else number
    if not 0 <= layer <= depth:
        raise UserError(
            f"layers: the {whose} has no layer {word}; name one from 1 to {depth} (0 is the embedding, -1 the last)"
        )
    return layer


def describe(pairs: dict[int, int]) -> str:
    """`1<-2 2<-4 3<-6`: student layer <- teacher layer."""
    return " ".join(f"{s}<-{t}" for s, t in pairs.items())
