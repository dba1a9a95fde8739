"""The part of a recipe that says how students are trained, and what is kept of the teachers' answers. No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from limbeck.recipe.fields import Device, Positive, Share, Strict, enum_of, known, wrong
from limbeck.recipe.keys import KEPT_BY


class Train(Strict):
    """Optimisation. One step is one update of every student."""

    steps: Positive = Field(default=1000, description="updates of every student")
    batch_size: Positive = Field(default=32, description="blocks of one update, over all micro-batches and processes")
    accumulate: Positive = Field(
        default=1, description="micro-batches into which an update is split; the update stays the same"
    )
    lr: Annotated[float, Field(gt=0)] = Field(default=1e-3, description="learning rate after the warm-up (AdamW)")
    warmup: Annotated[float, Field(ge=0)] = Field(
        default=0.05, description="updates of warm-up; below 1, a share of steps"
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="of the learning rate after the warm-up: linear and cosine go down to 0"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=0.01, description="AdamW's, of matrices; biases and norms have none"
    )
    betas: tuple[Share, Share] = Field(
        default=(0.9, 0.999), description="AdamW's decay of the means of gradients and of their squares"
    )
    eps: Annotated[float, Field(gt=0)] = Field(default=1e-8, description="what AdamW adds to its denominator")
    clip: Annotated[float, Field(gt=0)] | None = Field(
        default=1.0, description="largest gradient norm of a student; projections apart"
    )
    precision: Literal["auto", "fp32", "bf16", "fp64"] = Field(
        default="auto",
        description="of matrix products and teachers; auto: bf16 where the device multiplies it faster than fp32, else fp32",
    )
    teacher_precision: Literal["run", "int8"] = Field(
        default="run",
        description="int8: linear layers of teachers hold int8 weights (extra int8); its effect is measured",
    )
    eval_every: Positive = Field(default=100, description="updates between evaluations; the last update has one too")
    eval_blocks: Positive | None = Field(
        default=None,
        description="held-out blocks, and as many training blocks, of an evaluation; 64 when left out, of a task all",
    )
    reasons_blocks: Annotated[int, Field(ge=0)] = Field(
        default=16, description="held-out blocks on which an evaluation looks for reasons; of a task all rows; 0: none"
    )
    checkpoint_every: Positive = Field(
        default=500, description="updates between checkpoints, from which an interrupted run goes on"
    )
    keep: Literal["last", "best"] | Annotated[str, AfterValidator(known("measure", KEPT_BY)), enum_of(KEPT_BY)] = Field(
        default="last",
        description="weights of a student that are kept: the last, or those of its best evaluation on held-out data, by what the task is measured by or by a measure of that name",
    )
    patience: Positive | None = Field(
        default=None, description="evaluations in a row without a better one, after which a student stops"
    )
    skips: Positive = Field(
        default=10,
        description="updates in a row that are skipped, for numbers that are not finite, before a student stops",
    )
    probe_every: Positive = Field(
        default=100, description="updates between probes of each term alone: its share of the gradient, and its balance"
    )
    chunk: Positive | None = Field(
        default=None, description="tokens whose logits exist at a time; as many as make 64 MiB of logits when left out"
    )
    threads: Positive | None = Field(default=None, description="CPU threads; torch's own choice when left out")
    device: Device = Field(default="auto", description="auto, cpu, cuda, ...")
    deterministic: bool = Field(default=True, description="deterministic kernels on a GPU")

    @model_validator(mode="after")
    def _patience_waits_for_something(self) -> Train:
        if self.patience and self.keep == "last":
            raise wrong("patience", "waits for a better evaluation, and keep is last; set keep to best")
        return self

    @property
    def warmup_steps(self) -> int:
        """The warm-up in updates."""
        return round(self.warmup * self.steps) if self.warmup < 1 else round(self.warmup)


class Cache(Strict):
    """Fixed teachers read the training text once; their answers are kept on disk for all epochs and later studies."""

    top_k: Positive = Field(
        default=50, description="most probable tokens that are kept of a prediction, and the rest as one"
    )
    states: Literal["fp32", "bf16", "int8"] = Field(
        default="bf16",
        description="how hidden states, queries, keys and values are kept; int8: with a scale for each token",
    )
