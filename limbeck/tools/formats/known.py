"""The formats that there are."""

from __future__ import annotations

from limbeck.errors import UserError, nearest
from limbeck.tools.formats.format import Format
from limbeck.tools.formats.gguf import GGUF
from limbeck.tools.formats.onnx import ONNX, ONNX_INT8
from limbeck.tools.formats.torchao import TORCHAO

FORMATS: dict[str, Format] = {each.name: each for each in (ONNX, ONNX_INT8, TORCHAO, GGUF)}


def format_of(name: str) -> Format:
    """The format of a name.

    Raises:
        UserError: there is none.
    """
    if name not in FORMATS:
        raise UserError(f"--to: {name} is no format; {nearest(name, FORMATS)}")
    return FORMATS[name]
