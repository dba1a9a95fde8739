"""Settings and their terms: the part of a recipe that says who learns what from whom. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, model_validator

from limbeck.errors import KINDS, nearest
from limbeck.recipe.changes import OneChange, in_order
from limbeck.recipe.fields import Depth, LayerMap, Loss, Name, Positive, Strict, Tap, TextField, wrong
from limbeck.recipe.keys import LAYER_MAPS, LAYERED_TAPS, LOSS_KEYS, LossKeys

BEFORE = "bridge"  # what `projection` was called before 0.1, and still is in what is hashed
OF_RUN = {"of": "run"}  # context in which a recipe.yaml is read that a run wrote, maybe before 0.1


class Ramp(Strict):
    """A weight that goes from `start` to `end` in a straight line over `steps` updates."""

    start: Annotated[float, Field(ge=0)] = Field(description="the weight at first")
    end: Annotated[float, Field(ge=0)] = Field(description="the weight at last, and from then on")
    steps: Positive = Field(description="updates on the way")


class TermKeys(Strict):
    """One weighted loss of a setting: `{loss: forward_kl, temperature: 2, weight: 0.5}`.

    Keys beyond those below are hyper-parameters of the loss.
    """

    model_config = ConfigDict(extra="allow")

    loss: Loss = Field(description="a loss of limbeck, or one's own by its import path, package.module:function")
    name: Name | None = Field(default=None, description="its name in the metrics; the tap's name when left out")
    tap: Tap | Annotated[tuple[Tap, ...], Field(min_length=1)] = Field(
        default="logits", description="the place that is compared; a list for a loss that takes several at once"
    )
    layers: LayerMap = Field(default="uniform", description=f"{', '.join(LAYER_MAPS)}, or {{student: teacher}}")
    projection: Literal["auto", "each", "shared", "none"] = Field(
        default="auto",
        serialization_alias=BEFORE,
        description="widens the student's tensor; auto: one linear layer for each pair where widths differ",
    )
    weight: Annotated[float, Field(ge=0)] | Ramp = Field(
        default=1.0, description="multiplies the loss: a number, or a ramp {start, end, steps}"
    )
    teacher: TextField = Field(
        default="teacher",
        description="who teaches it: models.teacher, a name of models.teachers, peers, ema (the average of its own weights), self (its own deeper layers), or base (the student as it began, before its changes)",
    )

    @property
    def label(self) -> str:
        """The term's name in the metrics."""
        if self.name:
            return self.name
        return self._place if self.teacher == "teacher" else f"{self._place}-{self.teacher}"

    @property
    def _place(self) -> str:
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

    @model_validator(mode="before")
    @classmethod
    def _by_its_name(cls, said: Any, info: ValidationInfo) -> Any:
        if not isinstance(said, dict) or BEFORE not in said:
            return said
        if info.context != OF_RUN:
            raise wrong(BEFORE, "is called projection now; write projection in its place")
        return {"projection" if key == BEFORE else key: value for key, value in said.items()}

    @model_validator(mode="after")
    def _fits_its_loss(self) -> TermKeys:
        layered = [tap for tap in self.taps if tap in LAYERED_TAPS]
        if self.teacher == "self" and self.taps[0] not in (
            "exit",
            "hidden",
            "ffn",
            "scores",
            "probs",
            "query",
            "key",
            "value",
        ):
            raise wrong("tap", f"a model has one {self.taps[0]} and cannot teach it to itself; compare exit or a layer")
        if self.layers != "uniform" and not layered:
            raise wrong("layers", f"the tap {self.taps[0]} has no layers; leave the key out")
        if not isinstance(self.tap, str) and len(self.taps) == 1:
            raise wrong("tap", f"a list of one; write {self.taps[0]}")
        if len(set(self.taps)) < len(self.taps):
            raise wrong("tap", f"one place stands twice in {', '.join(self.taps)}; name each once")
        if len(self.taps) > 1 and len(layered) < len(self.taps):
            raise wrong("tap", "several taps at once must all have layers; name one")
        if self.loss in LOSS_KEYS:
            self._fits(LOSS_KEYS[self.loss])
            if self.teacher != "teacher" and "teacher" not in LOSS_KEYS[self.loss].needs:
                raise wrong("teacher", f"the loss {self.loss} learns from no teacher; leave the key out")
            if self.teacher == "self" and self.loss == "flow":
                raise wrong("teacher", "flow goes from layer to layer, and all exits learn from one; use mse or cosine")
            if self.teacher != "teacher" and self.loss == "factor_transfer":
                raise wrong("teacher", "a paraphraser is trained before the student; it needs the fixed teacher")
        return self

    def _fits(self, keys: LossKeys) -> None:
        kinds = keys.parameters | keys.made
        for name, value in self.parameters.items():
            if name not in kinds:
                near = nearest(name, (*type(self).model_fields, *kinds))
                raise wrong(name, f"unknown key for the loss {self.loss}; {near}")
            said, holds = KINDS[kinds[name]]
            if not holds(value):
                raise wrong(
                    name, f"must be {said}, not {str(value).lower() if isinstance(value, bool) else repr(value)}"
                )
        for tap in self.taps:
            if ("logits" if tap == "exit" else tap) not in keys.taps:
                compared = " or ".join(keys.taps)
                raise wrong("tap", f"the loss {self.loss} compares {compared}, not {tap}; change tap or loss")
        if len(self.taps) > 1 and not keys.bundle:
            raise wrong("tap", f"the loss {self.loss} compares one tap; name one, and write a term for each")
        if self.projection != "auto" and not keys.same_width:
            raise wrong("projection", f"the loss {self.loss} needs no projection; leave the key out")


class Setting(Strict):
    """One way of distilling: the terms that its student minimises."""

    terms: Annotated[tuple[TermKeys, ...], Field(min_length=1)] = Field(description="the losses that are added up")
    peers: Annotated[int, Field(ge=1, le=26)] = Field(
        default=1, description="students that learn together, each from the others' terms `teacher: peers`"
    )
    alternate: bool = Field(
        default=False, description="peers are updated one after another, each on the batch read anew"
    )
    ema: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="decay of the average of the student's weights that teaches the terms `teacher: ema`"
    )
    exits: tuple[Depth, ...] = Field(
        default=(), description="layers behind which the student has an early exit, for terms on the tap `exit`"
    )
    changes: Annotated[tuple[OneChange, ...], AfterValidator(in_order)] | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="what is done to its student, in place of models.student.changes; []: nothing",
    )
    changes_at: Literal["start", "end"] = Field(
        default="start",
        exclude_if=lambda value: value == "start",
        description="start: the student trains with its changes; end: they are made when it has been trained",
    )
    balance: Literal["none", "initial", "gradient", "uncertainty"] = Field(
        default="none",
        description="multiplies the weights: initial, by 1 / first value; gradient, to equal gradient norms; uncertainty, learned",
    )

    @model_validator(mode="after")
    def _can_be_balanced(self) -> Setting:
        for number, term in enumerate(self.terms):
            unbounded = term.loss == "topk_reverse_kl" and term.parameters.get("tail") is False
            if self.balance in ("initial", "uncertainty") and unbounded:
                raise wrong(
                    "balance", f"{self.balance} divides by values, and term {number} can be below 0; keep its tail"
                )
        return self

    @model_validator(mode="after")
    def _roles_are_cast(self) -> Setting:
        roles = {term.teacher for term in self.terms}
        if "peers" in roles and self.peers < 2:
            raise wrong("peers", "a term learns from peers, and there is one student; set peers to 2 or more")
        if "peers" not in roles and self.peers > 1:
            raise wrong("terms", f"{self.peers} peers, and none learns from the others; give a term teacher: peers")
        if "ema" in roles and self.ema is None:
            raise wrong("ema", "missing; a term learns from the average of the weights; set its decay, such as 0.999")
        if "ema" not in roles and self.ema is not None:
            raise wrong("terms", "the average of the weights teaches nobody; give a term teacher: ema")
        if self.ema is not None and self.peers > 1:
            raise wrong("ema", "peers have no averages; leave ema or peers out")
        if "base" in roles and self.peers > 1:
            raise wrong("peers", "peers begin as different models, and base is one; leave peers or teacher: base out")
        if self.alternate and self.peers < 2:
            raise wrong("alternate", "one student has nobody to alternate with; set peers, or leave the key out")
        return self

    @model_validator(mode="after")
    def _exits_are_used(self) -> Setting:
        if len(set(self.exits)) < len(self.exits):
            raise wrong("exits", f"one layer stands twice: {list(self.exits)}; name each once")
        at_exit = any("exit" in term.taps for term in self.terms)
        if at_exit and not self.exits:
            raise wrong("exits", "missing; a term learns at early exits; set their layers, such as [2, 4]")
        if self.exits and not at_exit:
            raise wrong("terms", "no term learns at the exits; give one tap: exit")
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> Setting:
        labels = [term.label for term in self.terms]
        for label in labels:
            if labels.count(label) > 1:
                raise wrong("terms", f"two terms are named '{label}'; give one of them another name")
        return self
