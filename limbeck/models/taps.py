"""Taps: a model's answer to a batch as named tensors, without slowing the model down.

Hidden states come from forward hooks; queries, keys and values from an attention function that calls the fast kernel and
remembers what it was given, after rotary embedding. Both last for one call. Scores and probabilities are computed from
them when they are asked for, and so are the logits: the model itself stops in front of its head.

B batch, T tokens, S keys, H width, h heads, d width of a head, V vocabulary. Layers count from 1; 0 is the embedding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from limbeck.errors import UserError, nearest
from limbeck.families import family
from limbeck.models import attention
from limbeck.models.attention import Attended, Recorder
from limbeck.recipe.keys import TAPS

_FROM_ATTENTION = ("query", "key", "value", "scores", "probs")
_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


class Recording(Recorder):
    """What the modules of one model leave behind during one call."""

    def __init__(self, layers: Mapping[nn.Module, int], valued: Collection[int] = ()) -> None:
        super().__init__(layers, valued)
        self.hidden: dict[int, Tensor] = {}
        self.ffn: dict[int, Tensor] = {}


class Readout(Mapping[str, Tensor]):
    """What a model answers: tap name -> tensor, derived ones computed when they are asked for.

    `features` is the input of the head, `[B, T, H]` (of a classifier `[B, H]`), and `head` maps any `[..., H]` of it to
    logits, so that a caller who wants the logits of few tokens never pays for all. `states` are the last ones, `[B, T, H]`;
    `recording` is what the modules left behind.
    """

    def __init__(
        self,
        taps: tuple[str, ...],
        depth: int,
        states: Tensor,
        attended: Tensor,
        head: Callable[[Tensor], Tensor],
        recorder: Recording,
        pool: Callable[[Tensor, Tensor], Tensor] = lambda states, attended: states,
    ):
        self.head = head
        self._taps, self._depth, self._attended, self.recording = taps, depth, attended, recorder
        self.states, self._pool = states, pool

    def __getitem__(self, tap: str) -> Tensor:
        if tap == "logits":
            return self.head(self.features)
        if tap == "pooled":
            return _mean_of_tokens(self.states, self._attended)
        kind, layer = parse(tap, self._depth)
        try:
            if kind == "exit":
                raise UserError(f"{tap} comes from the student that holds the head; ask for hidden.{layer}")
            if kind in ("hidden", "ffn"):
                return getattr(self.recording, kind)[layer]
            attended = self.recording.attended[layer]
        except KeyError:
            raise KeyError(f"{tap} was not tapped; this readout has {', '.join(self._taps)}") from None
        return _DERIVED[kind](attended)

    def queries(self, tap: str, some: slice) -> Tensor:
        """`scores.N` or `probs.N` of some of the queries: `[B, h, t, S]`."""
        kind, layer = parse(tap, self._depth)
        return _DERIVED[kind](self.recording.attended[layer].queries(some))

    def numbers(self, tap: str) -> tuple[int, int]:
        """B h T S and T of an attention map, known before it is made."""
        attended = self.recording.attended[parse(tap, self._depth)[1]]
        length = attended.query_BhTd.shape[2]
        return attended.query_BhTd[..., 0].numel() * attended.key_BhSd.shape[2], length

    @property
    def features(self) -> Tensor:
        """The input of the head."""
        return self._pool(self.states, self._attended)

    def inputs(self, tap: str) -> Tensor:
        """What the head behind `logits` takes, or that of an early exit behind `exit.N`: shaped as `features`."""
        if tap == "logits":
            return self.features
        return self._pool(self.recording.hidden[parse(tap, self._depth)[1]], self._attended)

    @property
    def last(self) -> str:
        """The name of `states` as a tap."""
        return f"hidden.{self._depth}"

    def visible(self, tap: str) -> Tensor | None:
        """Which key each query sees at an attention tap (padding, causal order, window): bool `[B, 1, T, S]`.

        None where every query sees every key.
        """
        return self.recording.attended[parse(tap, self._depth)[1]].visible()

    def __iter__(self) -> Iterator[str]:
        return iter(self._taps)

    def __len__(self) -> int:
        return len(self._taps)


def _mean_of_tokens(states: Tensor, attended: Tensor) -> Tensor:
    """The mean over the attended tokens: `[B, T, H]` -> `[B, H]`, 0 for a row without any."""
    kept = attended.bool().unsqueeze(-1)
    total = torch.where(kept, states, 0).sum(1, dtype=torch.promote_types(states.dtype, torch.float32))
    return (total / kept.sum(1).clamp(min=1)).to(states.dtype)


_DERIVED: dict[str, Callable[[Attended], Tensor]] = {
    "query": lambda attended: attended.query_BhTd,
    "key": lambda attended: attended.key_BhSd,
    "value": lambda attended: attended.value_BhSd,
    "scores": Attended.scores,
    "probs": Attended.probabilities,
}


def parse(tap: str, depth: int) -> tuple[str, int]:
    """A tap's kind and layer: `hidden.-1` of a model of 6 layers is ("hidden", 6); `embedding` is ("hidden", 0).

    Raises:
        UserError: no such tap, or no such layer.
    """
    kind, _, number = tap.partition(".")
    if tap == "embedding":
        return "hidden", 0
    if tap in ("logits", "pooled"):
        return tap, depth
    if kind not in ("hidden", "ffn", "exit", *_FROM_ATTENTION):
        raise UserError(f"unknown tap '{tap}'; {nearest(kind, TAPS)}")
    first = 0 if kind == "hidden" else 1
    try:
        layer = int(number)
    except ValueError:
        raise UserError(
            f"the tap '{tap}' names no layer; write {kind}.N with N from {first} to {depth}, or {kind}.-1"
        ) from None
    layer = depth + 1 + layer if layer < 0 else layer
    if not first <= layer <= depth:
        raise UserError(
            f"the tap '{tap}' names a layer that does not exist; this model has {kind}.{first} to {kind}.{depth}"
        )
    return kind, layer


def is_classifier(model: PreTrainedModel) -> bool:
    """Whether a model gives one answer for each row."""
    return type(model).__name__.endswith("ForSequenceClassification")


def _part(model: PreTrainedModel, name: str) -> Callable[[Tensor], Tensor]:
    """A step from features to logits: a module of the model, or a function of torch."""
    return getattr(torch, name.removeprefix("torch.")) if name.startswith("torch.") else model.get_submodule(name)


class Tapped:
    """A Hugging Face model that answers a batch with a readout of the named taps.

    Example:
        >>> tapped = Tapped(model, ["hidden.2", "probs.1", "logits"])        # doctest: +SKIP
        >>> readout = tapped({"input_ids": ids, "attention_mask": mask})     # doctest: +SKIP
        >>> readout["hidden.2"].shape                                        # doctest: +SKIP
        torch.Size([8, 128, 768])

    The model keeps fast attention. It may be wrapped by several `Tapped`s and used without them.

    Args:
        model: a masked or causal language model, or a sequence classifier, of a family in `limbeck.families`.
        taps: names such as `embedding`, `hidden.3`, `query.-1`, `scores.2`, `probs.2`, `ffn.2` (what the feed-forward
            activation is applied to), `pooled` (the mean of the last states over the attended tokens), `logits`.

        columns: how many columns the logits have; all when left out. Models whose embeddings are padded to different
            sizes over one tokenizer share the first ones.

    Raises:
        UserError: an unknown family, tap or layer; reentrant activation checkpointing.
    """

    def __init__(self, model: PreTrainedModel, taps: Iterable[str] = ("logits",), columns: int | None = None) -> None:
        self.model, self.columns = model, columns
        self.taps = tuple(dict.fromkeys(taps))
        self.family = family(model.config.model_type)
        self._base = model.get_submodule(self.family.base)
        self._stack = self._base.get_submodule(self.family.layers)
        self.layers = list(self._stack.children())
        self.depth = len(self.layers)
        self.classifies = is_classifier(model)
        self.heads = [_part(model, name) for name in (self.family.classifier if self.classifies else self.family.head)]
        places = {parse(tap, self.depth) for tap in self.taps}
        self._hidden = {layer for kind, layer in places if kind in ("hidden", "exit")}
        self._ffn = {layer for kind, layer in places if kind == "ffn"}
        self._valued = {layer for kind, layer in places if kind == "value"}
        attended = sorted({layer for kind, layer in places if kind in _FROM_ATTENTION})
        self._attention = {self.layers[i - 1].get_submodule(self.family.attention): i for i in attended}
        self._deepest = max((layer for kind, layer in places if kind not in ("logits", "exit")), default=0)
        norm = self.family.final_norm
        self.final_norm = self._base.get_submodule(norm) if norm else None
        taken = inspect.signature(self._base.forward).parameters
        self._inputs = [name for name in _INPUTS if name in taken]
        model.set_attn_implementation(attention.NAME)

    def everywhere(self) -> Tapped:
        """The same model, tapped at every hidden state."""
        return Tapped(self.model, [f"hidden.{layer}" for layer in range(self.depth + 1)], self.columns)

    def __call__(self, batch: Mapping[str, Tensor], whole: bool = True) -> Readout:
        """Runs the model up to its head; not `whole`, only as deep as it is tapped: then there are no logits.

        Gradients flow as the caller's grad mode says.
        """
        self._refuse_reentrant_checkpointing()
        inputs: dict[str, Any] = {name: batch[name] for name in self._inputs if name in batch}
        if self.family.causal:
            inputs["use_cache"] = False
        recorder = Recording(self._attention, self._valued)
        with self._recording(recorder), self._cut(self.depth if whole else self._deepest):
            states = self._base(**inputs).last_hidden_state
        attended = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        return Readout(self.taps, self.depth, states, attended, self.head, recorder, self.pool)

    def head(self, features: Tensor) -> Tensor:
        """The model's own head: `[..., H]` -> logits `[..., V]`."""
        for part in self.heads:
            features = part(features)
        return features if self.columns is None else features[..., : self.columns]

    def pool(self, states: Tensor, attended: Tensor) -> Tensor:
        """What the head takes of hidden states `[B, T, H]`: all of them, or of a classifier one for each row `[B, H]`."""
        if not self.classifies:
            return states
        if getattr(self.model.config, "classifier_pooling", "cls") == "mean":
            return _mean_of_tokens(states, attended)
        if not self.family.causal:
            return states[:, 0]
        last = attended.shape[1] - 1 - attended.flip(1).to(torch.uint8).argmax(1)
        return states[torch.arange(len(states), device=states.device), last]

    @contextmanager
    def _recording(self, recorder: Recording) -> Iterator[None]:
        with ExitStack() as stack:
            for layer in self._hidden:
                stack.enter_context(self._hook(layer, recorder))
            for layer in self._ffn:
                stack.enter_context(self._ffn_hook(layer, recorder))
            token = attention.active.set(recorder)
            stack.callback(attention.active.reset, token)
            yield

    @contextmanager
    def _cut(self, depth: int) -> Iterator[None]:
        """The model ends behind layer `depth` inside; behind the first at least, which is given the embedding."""
        layers = self._stack._modules
        self._stack._modules = dict(list(layers.items())[: max(depth, 1)])
        try:
            yield
        finally:
            self._stack._modules = layers

    def _hook(self, layer: int, recorder: Recording) -> Any:
        """A hook that remembers hidden state `layer`: 0 is what the first layer is given, L what the backbone returns."""

        def given(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            recorder.hidden[layer] = args[0] if args else kwargs["hidden_states"]

        def returned(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            recorder.hidden[layer] = output if isinstance(output, Tensor) else output[0]

        if layer == 0:
            return self.layers[0].register_forward_pre_hook(given, with_kwargs=True)
        module = (self.final_norm if layer == self.depth else None) or self.layers[layer - 1]
        return module.register_forward_hook(returned)

    def _ffn_hook(self, layer: int, recorder: Recording) -> Any:
        """A hook that remembers what the feed-forward activation of a layer is applied to."""

        def returned(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            here = output.chunk(2, dim=-1)[0] if self.family.ffn_halves else output
            before = [recorder.ffn[layer]] if layer in recorder.ffn else []  # chunk_size_feed_forward: piece by piece
            recorder.ffn[layer] = torch.cat([*before, here], dim=1) if before else here

        return self.layers[layer - 1].get_submodule(self.family.ffn).register_forward_hook(returned)

    def _refuse_reentrant_checkpointing(self) -> None:
        for layer in self.layers:
            how = getattr(layer, "_gradient_checkpointing_func", None)
            if getattr(layer, "gradient_checkpointing", False) and getattr(how, "keywords", {}).get("use_reentrant"):
                raise UserError(
                    "reentrant activation checkpointing cuts the taps off from the gradient; "
                    "use activation_checkpointing_enable({'use_reentrant': False})"
                )
