"""`limbeck export`: a student as a file for another runtime, held against the model in memory before it is believed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from limbeck import rundir
from limbeck.assemble import tasks
from limbeck.errors import UserError
from limbeck.families import family
from limbeck.measure import profile
from limbeck.models import compressed, pretrained
from limbeck.recipe.data import Data
from limbeck.recipe.models import Source, source_of
from limbeck.system import environment, files
from limbeck.system.files import appearing, path_of, require_free
from limbeck.system.progress import doing
from limbeck.tools import parity
from limbeck.tools.formats import card, exported
from limbeck.tools.formats.format import Batch, Format, Runner, input_names, require
from limbeck.tools.formats.known import format_of
from limbeck.tools.formats.memory import of_model

ROUNDS, SECONDS = 30, 20.0  # passes of each model that are timed, and seconds for them in all
BATCHES = (1, 32)
CONFIGS = ("config.json", "generation_config.json")  # beside the weights

Facts = dict[str, Any]


@dataclass(frozen=True)
class Exported:
    """What an export made, and what was found.

    Attributes:
        folder: that was made.
        facts: what its export.json says.
    """

    folder: Path
    facts: Facts

    @property
    def held(self) -> bool:
        """Whether it answers as the model in memory."""
        return self.facts["parity"]["held"]

    def lines(self) -> list[str]:
        """For people."""
        return [f"{'export':14} {self.folder}", *card.lines(self.facts)]

    def refusal(self) -> str:
        """The line of one that does not."""
        found = self.facts["parity"]
        return (
            f"{self.folder}: a logit is {card.share(found['relative'])} of the largest one from the model's in memory, and the bound "
            f"is {found['bound']:g}; its files are named .refused"
        )


def export(
    student: str | Path,
    to: str,
    out: str | Path | None = None,
    *,
    data: Data | None = None,
    threads: int | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Writes a model as a file for another runtime, runs it there, and compares: whole or not at all.

    A file that answers otherwise than the model in memory is kept under the name `FILE.refused`, and `Exported.held` is false.

    Args:
        student: a folder, `embedded` or a Hub id: a masked or causal language model, or a sequence classifier.
        to: `onnx`, `onnx-int8`, `torchao` or `gguf`.
        out: the folder that is made; beside the student, with the format behind its name, when left out.
        data: on whose held-out part both are compared; when left out the run's that the student lies in, else texts that every
            installation has.
        threads: of torch and of the runtime; as they are when left out.
        tell: takes a line for people.

    Raises:
        UserError: no usable model, no such format, a format that has no place for the model, a package that is not installed, or
            `out` is there already.

    Example:
        >>> export("runs/classify/students/logit-seed0", "onnx-int8").facts["parity"]["agreement"]   # doctest: +SKIP
        1.0
    """
    form, source = format_of(to), source_of(str(student))
    config, where = pretrained.config_of(source), Path(pretrained.place(source.source))
    place = path_of(out) if out is not None else _beside(where, str(student), to)
    require_free(place)
    require(f"--to {to}", form.packages)
    if refused := form.refusal(config, said := compressed.read(where)):
        raise UserError(f"{student}: {refused}")
    if threads:
        torch.set_num_threads(threads)
    tokenizer = pretrained.tokenizer_of(source)
    model = _model(source, config, tokenizer)
    heldout = parity.heldout(str(student), config, tokenizer, data, tell)
    with appearing(place) as folder:
        with doing(f"writing {to}"):
            memory = form.twin(copy.deepcopy(model), said)
            form.write(memory, tokenizer, folder)
        written = sorted(path for path in folder.iterdir() if path.name not in CONFIGS)
        tokenizer.save_pretrained(folder)
        if not (folder / CONFIGS[0]).exists():
            config.save_pretrained(folder)
        runners = {"student": of_model(model), **_teacher(where), "export": form.runner(folder)}
        facts = _sizes(str(student), to, model, written)
        facts |= _parity(form, of_model(memory), runners, heldout)
        facts |= {"latency": _latency(runners, config, heldout.length), "versions": environment.versions()}
        usage = form.usage(config, input_names(config, tokenizer))
        (folder / "README.md").write_text(card.text(facts, form, usage), encoding="utf-8")
        files.write_json(folder / exported.FACTS, facts)
        if not facts["parity"]["held"]:
            _refuse(written)
    return Exported(place, facts)


def _refuse(written: Sequence[Path]) -> None:
    for path in written:
        path.rename(path.with_name(f"{path.name}.refused"))


def _beside(where: Path, student: str, to: str) -> Path:
    """The student's folder with the format behind its name; of a model that is in no folder, here."""
    folder = path_of(student).is_dir()
    return where.absolute().with_name(f"{where.name}-{to}") if folder else Path(f"{Path(student).name}-{to}")


def _model(source: Source, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """In fp32; a causal classifier knows padding, at which it does not answer."""
    model = pretrained.model_of(source, torch.float32, config=config).eval()
    if config.problem_type and family(config.model_type).causal and config.pad_token_id is None:
        model.config.pad_token_id = tasks.padding(tokenizer)
    return model.requires_grad_(False)


def _teacher(student: Path) -> dict[str, Runner]:
    """The teacher of the run that a student lies in, where it is on this disk."""
    manifest = student.absolute().parent.parent / rundir.MANIFEST
    if student.absolute().parent.name != rundir.STUDENTS or not manifest.is_file():
        return {}
    try:
        told = files.read_json(manifest).get("teacher") or {}
        source = source_of(told.get("source", ""))
        where = pretrained.place(source.source)
        return {"teacher": of_model(pretrained.model_of(source, torch.float32).eval())} if Path(where).is_dir() else {}
    except (UserError, ValueError, AttributeError):
        return {}  # it is shown beside, where it can be


def _sizes(student: str, to: str, model: PreTrainedModel, written: Sequence[Path]) -> Facts:
    count = sum(each.numel() for each in model.parameters())
    size = sum(path.stat().st_size for path in written)
    told = {"format": to, "student": rundir.shared(student), "parameters": count}
    return {**told, "bytes": size, "student_bytes": 4 * count}


def _parity(form: Format, memory: Runner, runners: Mapping[str, Runner], heldout: parity.HeldOut) -> Facts:
    found = parity.compare(memory, runners["export"], heldout, {"student": runners["student"]})
    said: Facts = {
        "text": rundir.shared(heldout.said),
        "compared": found.compared,
        "difference": found.difference,
        "relative": found.relative,
        "bound": form.bound,
        "held": found.relative <= form.bound,
        "agreement": found.agreement,
    }
    return {"parity": said, "scores": found.scores if heldout.data else {}}


def _latency(runners: Mapping[str, Runner], config: PretrainedConfig, length: int) -> Facts:
    """Seconds of a pass of each over rows of equal length; in each round every one has its turn."""
    timed: Facts = {"length": length, "threads": torch.get_num_threads(), "batches": {}}
    for rows in BATCHES:
        batch: Batch = profile.tokens(config, [length] * rows)
        with doing("latency", "") as now:
            now.at(f"rows: {rows}")
            passes = [lambda run=run, batch=batch: run(batch) for run in runners.values()]
            times = profile.latencies(passes, ROUNDS, SECONDS / len(BATCHES))
        if times:
            timed["batches"][str(rows)] = {
                name: profile.percentiles(each) for name, each in zip(runners, times, strict=True)
            }
    return timed
