"""The commands on models: what they cost, what they reach, what few bits do to them, as other files, with fewer tokens.

Words only: nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbeck.errors import Failed, UserError
from limbeck.system import files
from limbeck.system.progress import doing, shown, tell

if TYPE_CHECKING:
    from pathlib import Path

    from limbeck.recipe.data import Data

HEAVY = "loading torch and transformers"  # takes seconds, and is said

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes, such as train.lr=3e-4 seeds=[0,1] out=DIR."),
]


class Precision(StrEnum):
    """Of a profile."""

    fp32 = "fp32"
    bf16 = "bf16"


def data_of(recipe: str, overrides: list[str] | None = None) -> Data:
    """The table `data` of a recipe, whose keys are all looked at; no torch."""
    from limbeck.recipe.arms import asked

    return asked(recipe, overrides or []).arms()[0].data


def file_of(option: str, name: str | None) -> Path | None:
    """The file that an option names, before work that would be for nothing."""
    path = None if name is None else files.path_of(name)
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        what = "is a folder;" if path.is_dir() else "its folder is not there; make it, or"
        raise UserError(f"{path}: {what} choose another file with {option}")
    return path


def profile(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL", help="Folders or Hub ids; the first is compared with.")
    ],
    length: Annotated[int, typer.Option(min=1, help="Tokens of a row.")] = 128,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Rows of a pass; give it again for more.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed passes of each model.")] = 30,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; torch's own number when left out.")] = None,
    precision: Annotated[Precision, typer.Option(help="Of the parameters and of the computation.")] = Precision.fp32,
    task: Annotated[
        str | None,
        typer.Option(metavar="RECIPE", help="Rows as long as the held-out ones of its task, not of --length."),
    ] = None,
    json_file: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Also write the numbers.")] = None,
) -> None:
    """Show what models cost when they answer. Parameters, MACs, size, memory and latency, side by side."""
    from limbeck.lab.terminal import profiles

    path = file_of("--json", json_file)
    data = None if task is None else data_of(task)
    how: dict[str, Any] = {"length": length, "batches": batch or [1, 32], "rounds": rounds, "threads": threads}
    with shown():
        with doing(HEAVY):
            from limbeck.tools.profile import of_sources
        found = of_sources(models, precision=precision.value, tell=tell, data=data, **how)
    profiles.show(found)
    if path is not None:
        files.write_json(path, found)


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model folder, such as an exported student, or a Hub id.")
    ],
    task: Annotated[
        str, typer.Option(metavar="RECIPE", help="Whose `data` it is measured on: a recipe's name or file.")
    ],
    overrides: Overrides = None,
    predictions: Annotated[str | None, typer.Option(metavar="FILE", help="Also write the answer to every row.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp64.")] = "fp32",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
) -> None:
    """Measure any model on the held-out part of a recipe's data. Its metrics, its loss, its answers as a file."""
    path, data = file_of("--predictions", predictions), data_of(task, overrides)
    if precision not in ("fp32", "bf16", "fp64"):
        raise UserError(f"--precision: {precision} is none; give fp32, bf16 or fp64")
    with shown():
        with doing(HEAVY):
            from limbeck.tools import evaluate_model
        found = evaluate_model.examine(model, data, precision=precision, device=device, answering=path is not None)
    if path is not None:
        evaluate_model.write_answers(found, path)
    noun, where = "rows" if data.task else "tokens", data.heldout if isinstance(data.heldout, str) else data.corpus
    print(f"{'held out':14} {found.rows:,} {noun} of {where}")
    for name, value in {"label loss": found.label_loss, **found.metrics}.items():
        print(f"{name:14} {'-' if value is None else f'{value:.4f}'}")


def sensitivity(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, or a Hub id.")],
    task: Annotated[str, typer.Option(metavar="RECIPE", help="On whose held-out text it is measured.")],
    overrides: Overrides = None,
    bits: Annotated[int, typer.Option(min=2, max=8, help="Of a weight.")] = 8,
    group: Annotated[int | None, typer.Option(min=1, help="Inputs that share a scale. [a whole row]")] = None,
    json_file: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Also write the numbers.")] = None,
) -> None:
    """Show which layers of a model suffer from few bits. Each is quantised alone; the last line is for a recipe."""
    from limbeck.lab.terminal import sensitivities

    path, data = file_of("--json", json_file), data_of(task, overrides)
    with shown():
        with doing(HEAVY):
            from limbeck.tools.sensitivity import of_model
        found = of_model(model, data, bits=bits, group=group)
    sensitivities.show(found)
    if path is not None:
        files.write_json(path, found)


def export(
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="A model folder, such as a student of a run.")],
    to: Annotated[str, typer.Option(metavar="FORMAT", help="onnx, onnx-int8, torchao or gguf.")],
    out: Annotated[str | None, typer.Argument(metavar="OUT", help="The folder that is made. [STUDENT-FORMAT]")] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="RECIPE", help="On whose held-out data it is compared; its run's when left out."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; torch's own number when left out.")] = None,
) -> None:
    """Write a model as a file for another runtime. Its answers are compared with the model's; size and latency beside."""
    data = None if task is None else data_of(task)
    with shown():
        with doing(HEAVY):
            from limbeck.tools import export as exports
        found = exports.export(student, to, out, data=data, threads=threads, tell=tell)
    print("\n".join(found.lines()))
    if not found.held:
        raise Failed([found.refusal()])


def trim(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, or a Hub id.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The folder that is made.")],
    vocabulary: Annotated[int, typer.Option(min=1, help="How many tokens stay, special tokens included.")],
    corpus: Annotated[list[str], typer.Option(help="Where tokens are counted: a file, folder, ...; again for more.")],
    field: Annotated[
        list[str] | None,
        typer.Option(
            "--field",
            "--column",
            metavar="NAME",
            help="Where a corpus has its text, or its number (from 0); again for more. [text]",
        ),
    ] = None,
) -> None:
    """Give a model a smaller vocabulary. Its most frequent tokens stay, with their rows of its weights."""
    from limbeck.tools import trim as tools_trim

    print("\n".join(tools_trim.trim(model, out, vocabulary, corpus, field or ["text"]).lines()))
