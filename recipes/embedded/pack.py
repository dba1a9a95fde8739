"""Packs the student of a finished `embedded-teacher` run as limbeck's embedded teacher: bf16 safetensors in the package.

python recipes/embedded/pack.py runs/embedded-teacher/students/labels-seed0 limbeck/data/embedded
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM


def pack(student: Path, place: Path) -> None:
    """Writes config.json and model.safetensors beside the tokenizer that is already there."""
    model = AutoModelForMaskedLM.from_pretrained(student, dtype=torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for name in ("config.json", "model.safetensors"):
            (place / name).write_bytes((Path(folder) / name).read_bytes())


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]))
