"""Recipes: strict, torch-free types of everything that a run is a function of, and how a file becomes one.

Precedence: defaults < YAML < command line (`key=value`). An unknown word stops before anything is loaded.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from limbeck.words import LAYER_MAPS, LAYERED_TAPS, LOSSES, TAPS, nearest

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]


class Strict(BaseModel):
    """A table of a recipe: no unknown word, no change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Strict):
    """Where a pretrained model comes from: a folder, `embedded`, or a Hub id (`org/name`, or `org/name@revision`)."""

    source: str
    revision: str | None = Field(
        None, description="branch, tag or commit of a Hub id; recorded as a commit in the manifest"
    )


def _source(value: Any) -> Any:
    if isinstance(value, str):
        name, _, revision = value.partition("@")
        return {"source": name, "revision": revision or None}
    return value


class Student(Strict):
    """The student's shape. What is left out is taken from the teacher."""

    family: str | None = Field(default=None, description="bert, roberta, ...; the teacher's when left out")
    layers: Positive | None = None
    hidden: Positive | None = None
    heads: Positive | None = None
    kv_heads: Positive | None = Field(default=None, description="heads of keys and values (grouped-query attention)")
    intermediate: Positive | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    init: Literal["random", "teacher"] = Field(
        default="random", description="teacher: copy the weights of teacher layers"
    )
    from_layers: str | dict[int | str, int | str] = Field(
        "uniform", description="which teacher layers `init: teacher` copies"
    )
    tokenizer: str | None = Field(default=None, description="folder or Hub id; the teacher's when left out")

    @model_validator(mode="after")
    def _heads_divide(self) -> Student:
        if self.hidden and self.heads and self.hidden % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.hidden}; choose heads that do")
        return self


class Models(Strict):
    """Who teaches and who learns."""

    teacher: Annotated[Source | None, BeforeValidator(_source)] = None
    student: Student = Student()


class Masking(Strict):
    """BERT's masking of the input (masked language models only): of the chosen tokens 80 % become [MASK], 10 % another."""

    mode: Literal["dynamic", "static", "none"] = Field(
        default="dynamic", description="static: the same masks in every epoch"
    )
    probability: Share = 0.15


class Data(Strict):
    """The text and how it becomes batches."""

    corpus: str = Field(
        default="docs",
        description="docs, a file, folder or glob, or hub:ID[:CONFIG][@REVISION]; several joined by ' + '",
    )
    heldout: Share | str = Field(default=0.02, description="share of the documents, or a corpus of its own")
    field: str = Field(default="text", description="column of .jsonl and .parquet files")
    separator: str = Field(default="\n\n", description="what stands between the documents of a .txt file")
    max_bytes: Positive | None = Field(
        default=None, description="stop reading the training corpus after so many bytes of text"
    )
    max_length: Annotated[int, Field(ge=4)] = Field(
        default=128, description="tokens of a block, special tokens included"
    )
    masking: Masking = Masking()
    positions: Literal["all", "masked"] = Field(default="all", description="the tokens on which logit losses are taken")
    cache: str | None = Field(default=None, description="folder of the token cache; ~/.cache/limbeck when left out")

    @model_validator(mode="after")
    def _masked_positions(self) -> Data:
        if self.positions == "masked" and self.masking.mode == "none":
            raise ValueError(
                "positions: masked needs masking; set masking.mode to dynamic or static, or positions: all"
            )
        return self


class Ramp(Strict):
    """A weight that goes from `start` to `end` in a straight line over `steps` updates."""

    start: float
    end: float
    steps: Positive


class Term(BaseModel):
    """One weighted loss of a setting: `{loss: forward_kl, temperature: 2, weight: 0.5}`.

    Words beyond those below are hyper-parameters of the loss.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    loss: str
    name: str | None = Field(default=None, description="its name in the metrics; the tap's name when left out")
    tap: str = Field(default="logits", description=", ".join(TAPS))
    layers: str | dict[int | str, int | str] = Field(
        "uniform", description=f"{', '.join(LAYER_MAPS)}, or {{student: teacher}}"
    )
    bridge: Literal["auto", "each", "shared", "none"] = Field(
        "auto", description="widens the student's tensor; auto: one linear layer for each pair where widths differ"
    )
    weight: float | Ramp = 1.0

    @property
    def label(self) -> str:
        """The term's name in the metrics."""
        return self.name or {"logits": "logit", "scores": "attention"}.get(self.tap, self.tap)

    @property
    def parameters(self) -> dict[str, Any]:
        """The hyper-parameters of the loss."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _known_words(self) -> Term:
        if self.loss not in LOSSES:
            raise ValueError(f"unknown loss '{self.loss}'; {nearest(self.loss, tuple(LOSSES))}")
        words = LOSSES[self.loss]
        for extra in self.parameters:
            if extra not in words.parameters:
                known = (*type(self).model_fields, *words.parameters)
                raise ValueError(f"unknown word '{extra}' for the loss {self.loss}; {nearest(extra, known)}")
        if self.tap not in TAPS:
            raise ValueError(f"unknown tap '{self.tap}'; {nearest(self.tap, TAPS)}")
        if self.tap not in words.taps:
            raise ValueError(
                f"the loss {self.loss} compares {' or '.join(words.taps)}, not {self.tap}; change tap or loss"
            )
        if isinstance(self.layers, str) and self.tap in LAYERED_TAPS and self.layers not in LAYER_MAPS:
            raise ValueError(f"unknown layer map '{self.layers}'; {nearest(self.layers, LAYER_MAPS)}")
        temperature = self.parameters.get("temperature", 1.0)
        if not isinstance(temperature, int | float) or temperature <= 0:
            raise ValueError(f"temperature must be a number above 0, not {temperature!r}")
        return self


class Setting(Strict):
    """One way of distilling: the terms that its student minimises."""

    terms: Annotated[tuple[Term, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_differ(self) -> Setting:
        labels = [term.label for term in self.terms]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"two terms are named '{label}'; give one of them a name")
        return self


class Train(Strict):
    """Optimisation. One step is one update of every learner."""

    steps: Positive = 1000
    batch_size: Positive = Field(default=32, description="blocks of one update, over all micro-batches and processes")
    accumulate: Positive = Field(
        1, description="micro-batches into which an update is split; the update stays the same"
    )
    lr: Annotated[float, Field(gt=0)] = 1e-3
    warmup: Annotated[float, Field(ge=0)] = Field(
        default=0.05, description="updates of warm-up; below 1, a share of steps"
    )
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    clip: Annotated[float, Field(gt=0)] | None = Field(
        1.0, description="largest gradient norm of a student; bridges apart"
    )
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    eval_every: Positive = 100
    eval_blocks: Positive = Field(
        default=64, description="held-out blocks, and as many training blocks, of an evaluation"
    )
    checkpoint_every: Positive = 500
    chunk: Positive = Field(default=1024, description="tokens whose logits exist at a time")
    threads: Positive | None = Field(default=None, description="CPU threads; torch's own choice when left out")
    device: str = Field(default="auto", description="auto, cpu, cuda, ...")
    deterministic: bool = Field(default=True, description="deterministic kernels on a GPU")

    @property
    def warmup_steps(self) -> int:
        """The warm-up in updates."""
        return round(self.warmup * self.steps) if self.warmup < 1 else round(self.warmup)


def _names(value: dict[str, Setting]) -> dict[str, Setting]:
    for name in value:
        if not name or not all(c.isalnum() or c in "_-." for c in name) or name.startswith("."):
            raise ValueError(f"'{name}' is no name for a setting: use letters, digits, '_', '-' and '.'")
    return value


class Recipe(Strict):
    """Everything that a run is a function of."""

    name: str
    question: str | None = Field(default=None, description="what the study asks; heads the report")
    models: Models = Models()
    data: Data = Data()
    settings: Annotated[dict[str, Setting], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    only: tuple[str, ...] | None = Field(default=None, description="train these settings only")
    train: Train = Train()
    out: str | None = Field(default=None, description="the run directory; runs/NAME when left out")

    @model_validator(mode="after")
    def _hangs_together(self) -> Recipe:
        _names(self.settings)
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds name one seed twice: {list(self.seeds)}")
        for name in self.only or ():
            if name not in self.settings:
                raise ValueError(f"only: there is no setting '{name}'; {nearest(name, tuple(self.settings))}")
        for setting, table in self.settings.items():
            for term in table.terms:
                needs = LOSSES[term.loss].needs
                if "teacher" in needs and self.models.teacher is None:
                    raise ValueError(f"settings.{setting}: the loss {term.loss} needs a teacher; set models.teacher")
        if self.models.teacher is None and not (self.models.student.family and self.models.student.tokenizer):
            raise ValueError(
                "models: without a teacher the student needs a family and a tokenizer; set models.student.*"
            )
        return self

    @property
    def chosen(self) -> dict[str, Setting]:
        """The settings that are trained: all, or those that `only` names."""
        return {name: table for name, table in self.settings.items() if self.only is None or name in self.only}

    @property
    def run_dir(self) -> str:
        """The run directory."""
        return self.out or f"runs/{self.name}"
