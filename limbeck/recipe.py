"""Recipes: strict, torch-free types of everything that a run is a function of, and how a file becomes one.

Precedence: defaults < YAML < command line (`key=value`). An unknown word stops before anything is loaded.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from limbeck.anatomy import FAMILIES
from limbeck.kinds import (
    Device,
    LayerMap,
    Loss,
    Name,
    Positive,
    Share,
    Tap,
    Text,
    enum_of,
    known,
    listed,
    seed_list,
    wrong,
)
from limbeck.words import KINDS, LAYER_MAPS, LAYERED_TAPS, LOSSES, LossWords, nearest


class Strict(BaseModel):
    """A table of a recipe: no unknown word, no number that is not finite, no change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: Any) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError(f"{str(value).lower()} is no value here; write a number or text")
        return value


class Source(Strict):
    """Where a pretrained model comes from: a folder, `embedded`, or a Hub id (`org/name`, or `org/name@revision`)."""

    source: Text
    revision: Text | None = Field(
        default=None, description="branch, tag or commit of a Hub id; recorded as a commit in the manifest"
    )


def _source(value: Any) -> Any:
    if isinstance(value, str):
        name, _, revision = value.partition("@")
        return {"source": name, "revision": revision or None}
    return value


class Student(Strict):
    """The student's shape. What is left out is taken from the teacher."""

    family: Annotated[str, AfterValidator(known("model family", FAMILIES)), enum_of(FAMILIES)] | None = Field(
        default=None, description="bert, roberta, ...; the teacher's when left out"
    )
    layers: Positive | None = None
    hidden: Positive | None = None
    heads: Positive | None = None
    kv_heads: Positive | None = Field(default=None, description="heads of keys and values (grouped-query attention)")
    intermediate: Positive | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    init: Literal["random", "teacher"] = Field(
        default="random", description="teacher: copy the weights of teacher layers"
    )
    from_layers: LayerMap = Field(default="uniform", description="which teacher layers `init: teacher` copies")
    tokenizer: Text | None = Field(default=None, description="folder or Hub id; the teacher's when left out")

    @model_validator(mode="after")
    def _heads_divide(self) -> Student:
        if self.hidden and self.heads and self.hidden % self.heads:
            raise wrong("heads", f"{self.heads} heads do not divide the width {self.hidden}; choose heads that do")
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

    corpus: Text = Field(
        default="docs",
        description="docs, a file, folder or glob, or hub:ID[:CONFIG][@REVISION]; several joined by ' + '",
    )
    heldout: Share | Text = Field(default=0.02, description="share of the documents, or a corpus of its own")
    field: Text = Field(default="text", description="column of .jsonl and .parquet files")
    separator: Text = Field(default="\n\n", description="what stands between the documents of a .txt file")
    max_bytes: Positive | None = Field(
        default=None, description="stop reading the training corpus after so many bytes of text"
    )
    max_length: Annotated[int, Field(ge=4)] = Field(
        default=128, description="tokens of a block, special tokens included"
    )
    masking: Masking = Masking()
    positions: Literal["all", "masked"] = Field(default="all", description="the tokens on which logit losses are taken")
    cache: Text | None = Field(default=None, description="folder of the token cache; ~/.cache/limbeck when left out")

    @model_validator(mode="after")
    def _masked_positions(self) -> Data:
        if self.positions == "masked" and self.masking.mode == "none":
            raise wrong("positions", "masked needs masking; set masking.mode to dynamic or static, or positions to all")
        return self


class Ramp(Strict):
    """A weight that goes from `start` to `end` in a straight line over `steps` updates."""

    start: Annotated[float, Field(ge=0)]
    end: Annotated[float, Field(ge=0)]
    steps: Positive


class Term(Strict):
    """One weighted loss of a setting: `{loss: forward_kl, temperature: 2, weight: 0.5}`.

    Words beyond those below are hyper-parameters of the loss.
    """

    model_config = ConfigDict(extra="allow")

    loss: Loss = Field(description="a loss of limbeck, or one's own by its import path, package.module:function")
    name: Name | None = Field(default=None, description="its name in the metrics; the tap's name when left out")
    tap: Tap | Annotated[tuple[Tap, ...], Field(min_length=1)] = Field(
        default="logits", description="the place that is compared; a list for a loss that takes several at once"
    )
    layers: LayerMap = Field(default="uniform", description=f"{', '.join(LAYER_MAPS)}, or {{student: teacher}}")
    bridge: Literal["auto", "each", "shared", "none"] = Field(
        default="auto",
        description="widens the student's tensor; auto: one linear layer for each pair where widths differ",
    )
    weight: Annotated[float, Field(ge=0)] | Ramp = 1.0

    @property
    def label(self) -> str:
        """The term's name in the metrics."""
        if self.name:
            return self.name
        return (
            {"logits": "logit", "scores": "attention"}.get(self.taps[0], self.taps[0])
            if len(self.taps) == 1
            else "relation"
        )

    @property
    def taps(self) -> tuple[str, ...]:
        """The places that it compares."""
        return (self.tap,) if isinstance(self.tap, str) else self.tap

    @property
    def parameters(self) -> dict[str, Any]:
        """The hyper-parameters of the loss."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _fits_its_loss(self) -> Term:
        layered = [tap for tap in self.taps if tap in LAYERED_TAPS]
        if self.layers != "uniform" and not layered:
            raise wrong("layers", f"the tap {self.taps[0]} has no layers; leave the word out")
        if not isinstance(self.tap, str) and len(self.taps) == 1:
            raise wrong("tap", f"a list of one; write {self.taps[0]}")
        if len(set(self.taps)) < len(self.taps):
            raise wrong("tap", f"one place stands twice in {', '.join(self.taps)}; name each once")
        if len(self.taps) > 1 and len(layered) < len(self.taps):
            raise wrong("tap", "several taps at once must all have layers; name one")
        if self.loss in LOSSES:
            self._fits(LOSSES[self.loss])
        return self

    def _fits(self, words: LossWords) -> None:
        kinds = words.parameters | words.made
        for name, value in self.parameters.items():
            if name not in kinds:
                near = nearest(name, (*type(self).model_fields, *kinds))
                raise wrong(name, f"unknown word for the loss {self.loss}; {near}")
            said, holds = KINDS[kinds[name]]
            if not holds(value):
                raise wrong(
                    name, f"must be {said}, not {str(value).lower() if isinstance(value, bool) else repr(value)}"
                )
        for tap in self.taps:
            if tap not in words.taps:
                compared = " or ".join(words.taps)
                raise wrong("tap", f"the loss {self.loss} compares {compared}, not {tap}; change tap or loss")
        if len(self.taps) > 1 and not words.bundle:
            raise wrong("tap", f"the loss {self.loss} compares one tap; name one, and write a term for each")
        if self.bridge != "auto" and not words.same_width:
            raise wrong("bridge", f"the loss {self.loss} needs no bridge; leave the word out")


class Setting(Strict):
    """One way of distilling: the terms that its student minimises."""

    terms: Annotated[tuple[Term, ...], Field(min_length=1)]
    balance: Literal["none", "initial", "gradient", "uncertainty"] = Field(
        default="none",
        description="multiplies the weights: initial, by 1 / first value; gradient, to equal gradient norms; uncertainty, learned",
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Setting:
        labels = [term.label for term in self.terms]
        for label in labels:
            if labels.count(label) > 1:
                raise wrong("terms", f"two terms are named '{label}'; give one of them another name")
        return self


class Train(Strict):
    """Optimisation. One step is one update of every learner."""

    steps: Positive = 1000
    batch_size: Positive = Field(default=32, description="blocks of one update, over all micro-batches and processes")
    accumulate: Positive = Field(
        default=1, description="micro-batches into which an update is split; the update stays the same"
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
        default=1.0, description="largest gradient norm of a student; bridges apart"
    )
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    eval_every: Positive = 100
    eval_blocks: Positive = Field(
        default=64, description="held-out blocks, and as many training blocks, of an evaluation"
    )
    checkpoint_every: Positive = 500
    probe_every: Positive = Field(
        default=100, description="updates between probes of each term alone: its share of the gradient, and its balance"
    )
    chunk: Positive = Field(default=1024, description="tokens whose logits exist at a time")
    threads: Positive | None = Field(default=None, description="CPU threads; torch's own choice when left out")
    device: Device = Field(default="auto", description="auto, cpu, cuda, ...")
    deterministic: bool = Field(default=True, description="deterministic kernels on a GPU")

    @property
    def warmup_steps(self) -> int:
        """The warm-up in updates."""
        return round(self.warmup * self.steps) if self.warmup < 1 else round(self.warmup)


class Recipe(Strict):
    """Everything that a run is a function of."""

    name: Name
    question: str | None = Field(default=None, description="what the study asks; heads the report")
    models: Models = Models()
    data: Data = Data()
    settings: Annotated[dict[Name, Setting], Field(min_length=1)]
    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], BeforeValidator(seed_list), Field(min_length=1)
    ] = (0,)
    only: Annotated[tuple[str, ...], BeforeValidator(listed), Field(min_length=1)] | None = Field(
        default=None, description="train these settings only"
    )
    train: Train = Train()
    out: Text | None = Field(default=None, description="the run directory; runs/NAME when left out")

    @model_validator(mode="after")
    def _hangs_together(self) -> Recipe:
        if len(set(self.seeds)) < len(self.seeds):
            raise wrong("seeds", f"one seed stands twice: {list(self.seeds)}; give each once")
        for name in self.only or ():
            if name not in self.settings:
                raise wrong("only", f"there is no setting '{name}'; {nearest(name, self.settings)}")
        return self

    @model_validator(mode="after")
    def _teaches(self) -> Recipe:
        if self.models.teacher is not None:
            return self
        for setting, table in self.settings.items():
            for number, term in enumerate(table.terms):
                if term.loss in LOSSES and "teacher" in LOSSES[term.loss].needs:
                    place = f"settings.{setting}.terms.{number}"
                    raise wrong("models.teacher", f"missing; {place} ({term.loss}) learns from a teacher; set it")
        for word in ("family", "tokenizer"):
            if getattr(self.models.student, word) is None:
                raise wrong(f"models.student.{word}", "missing; without a teacher the student needs it; set it")
        if self.models.student.init == "teacher":
            raise wrong("models.student.init", "there is no teacher to copy; set models.teacher, or init to random")
        return self

    @property
    def chosen(self) -> dict[str, Setting]:
        """The settings that are trained: all, or those that `only` names."""
        return {name: table for name, table in self.settings.items() if self.only is None or name in self.only}

    @property
    def run_dir(self) -> str:
        """The run directory."""
        return self.out or f"runs/{self.name}"
