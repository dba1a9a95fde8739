"""What is done to a student beside its training: `quantise`, `prune`, `factorise`, and changes of one's own. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from limbeck.recipe.fields import Own, Positive, Strict, TextField, wrong

Share = Annotated[float, Field(gt=0, lt=1)]
Bits = Literal["int8", "int4", "int3", "int2"]


def _as(key: str, plain: Any) -> BeforeValidator:
    """A plain value stands for a table with this key; `plain` is what an editor offers."""
    return BeforeValidator(
        lambda said: said if isinstance(said, (dict, Strict)) else {key: said}, json_schema_input_type=plain
    )


class Quantise(Strict):
    """Weights of few bits: products use the rounded ones while the student trains."""

    weights: Bits | None = Field(default="int8", description="of linear layers; null: they stay as they are")
    embedding: Bits | Literal["same"] | None = Field(
        default="same", description="of the token embedding, and of a head that is tied to it; null: as it is"
    )
    head: Bits | Literal["same"] | None = Field(
        default="same", description="of the layers behind the last state; null: as they are"
    )
    group: Positive | None = Field(
        default=None, description="inputs that share a scale; one for each output when left out"
    )
    activations: Literal["int8"] | None = Field(
        default=None, description="int8: the inputs of quantised layers too, each token for itself"
    )
    skip: tuple[TextField, ...] = Field(
        default=(), description="layers that stay as they are, by a part of their names"
    )


class Prune(Strict):
    """Weights, neurons, heads, layers or widths that become 0 and stay it."""

    weights: Share | Literal["2:4"] | None = Field(
        default=None, description="the share of single weights of each matrix that go; 2:4: two of every four inputs"
    )
    neurons: Share | None = Field(default=None, description="the share of feed-forward neurons that go, in every layer")
    heads: Share | None = Field(default=None, description="the share of attention heads that go, in every layer")
    hidden: Share | None = Field(default=None, description="the share of hidden units that go, in the whole model")
    layers: Share | None = Field(default=None, description="the share of layers that go")
    by: Literal["magnitude", "movement", "activations", "taylor"] = Field(
        default="magnitude",
        description="what is least important: smallest weights; weights that move to 0 (movement: learned scores); smallest activations; smallest (weight x gradient)^2",
    )
    begin: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="when cutting begins, a share of the training"
    )
    end: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="when all is cut, a share of the training, in between the cubic schedule; left out: at once",
    )
    every: Positive = Field(default=1, description="updates between two cuts")
    rate: Annotated[float, Field(gt=0)] = Field(default=1e-2, description="learning rate of the scores of movement")

    @model_validator(mode="after")
    def _one_of_them(self) -> Prune:
        units = [name for name in ("neurons", "heads", "hidden", "layers") if getattr(self, name) is not None]
        if self.weights is None and not units:
            raise wrong("", "nothing to prune; give a share of weights, neurons, heads, hidden or layers")
        if self.weights is not None and units:
            raise wrong(units[0], "single weights and whole units are pruned by two changes; make two of it")
        if self.by == "movement" and (units or self.weights == "2:4"):
            raise wrong("by", "movement ranks single weights; give weights a share, or choose magnitude")
        if self.by in ("activations", "taylor") and not units:
            raise wrong(
                "by", f"{self.by} ranks neurons, heads, hidden or layers; for weights choose magnitude or movement"
            )
        if self.until < self.begin:
            raise wrong("end", f"{self.end} lies before begin, {self.begin}; set it to that, or to more")
        if self.by == "movement" and self.until == 0:
            raise wrong("end", "movement needs updates in which weights move; set it above 0, such as 0.7")
        if self.weights == "2:4" and self.until > self.begin:
            raise wrong("end", "2:4 is cut at once; leave the key out, begin says when")
        if self.by != "movement" and "rate" in self.model_fields_set:
            raise wrong("rate", f"{self.by} has no scores that learn; leave the key out, or set by: movement")
        if self.by == "taylor" and self.begin == 0:
            raise wrong(
                "begin", "taylor needs gradients of some updates before the first cut; set it above 0, such as 0.1"
            )
        return self

    @property
    def until(self) -> float:
        """When all is cut, a share of the training."""
        return self.begin if self.end is None else self.end


class Factorise(Strict):
    """Matrices as products of two of a low rank."""

    share: Share | None = Field(
        default=None, description="the share of a matrix's parameters that its two factors have"
    )
    energy: Share | None = Field(default=None, description="the share of the squared singular values that is kept")
    rank: Positive | None = Field(default=None, description="the rank itself")
    by: Literal["weights", "activations"] = Field(
        default="weights", description="what is kept best: the weights, or what they make of training text"
    )
    embedding: bool = Field(default=True, description="whether the token embedding is factorised")
    layers: bool = Field(default=True, description="whether the linear layers before the last state are factorised")
    head: bool = Field(
        default=False,
        description="whether those behind it are; a head that is tied to the embedding always goes with it",
    )
    skip: tuple[TextField, ...] = Field(
        default=(), description="layers that stay as they are, by a part of their names"
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Factorise:
        said = [name for name in ("share", "energy", "rank") if getattr(self, name) is not None]
        if len(said) != 1:
            raise wrong("", f"{' and '.join(said) or 'no size'} given; give one of share, energy and rank")
        if not (self.embedding or self.layers or self.head):
            raise wrong("", "nothing to factorise; set embedding, layers or head to true")
        if self.by == "activations" and not (self.layers or self.head):
            raise wrong("by", "activations are inputs of linear layers; the embedding is factorised by its weights")
        return self


class ChangeKeys(Strict):
    """One change: `{quantise: int8}`, `{prune: {neurons: 0.5}}`, `{factorise: 0.25}`."""

    quantise: Annotated[Quantise, _as("weights", Bits | Quantise)] | None = Field(
        default=None, exclude_if=lambda value: value is None, description="weights of few bits, in training"
    )
    prune: Annotated[Prune, _as("weights", Share | Literal["2:4"] | Prune)] | None = Field(
        default=None, exclude_if=lambda value: value is None, description="weights or units that become 0 and stay it"
    )
    factorise: Annotated[Factorise, _as("share", Share | Factorise)] | None = Field(
        default=None, exclude_if=lambda value: value is None, description="matrices as products of two of a low rank"
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> ChangeKeys:
        if sum(it is not None for it in (self.quantise, self.prune, self.factorise)) != 1:
            raise wrong("", "a change is one of quantise, prune and factorise; make an item of each")
        return self

    @property
    def said(self) -> Quantise | Prune | Factorise:
        """What it is."""
        found = self.quantise or self.prune or self.factorise
        assert found is not None
        return found


def _kind(value: Any) -> str:
    return "own" if isinstance(value, str) else "known"


OneChange = Annotated[Annotated[Own, Tag("own")] | Annotated[ChangeKeys, Tag("known")], Discriminator(_kind)]


def in_order(changes: tuple[OneChange, ...]) -> tuple[OneChange, ...]:
    """Factorising comes first: it would undo what stood before it."""
    kinds = [type(it.said) for it in changes if isinstance(it, ChangeKeys)]
    if Factorise in kinds[kinds.count(Factorise) :]:
        raise ValueError("factorise makes new matrices, and undoes what stands before it; write it first")
    return changes
