"""From a term of a recipe to a term of a lesson: its loss, its taps layer by layer, the modules in between."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any

from transformers import PretrainedConfig

from limbeck.assemble import own_losses
from limbeck.distil import contrastive, lessons, paraphraser, projections, schedules
from limbeck.errors import UserError
from limbeck.families import heads_of, width_of
from limbeck.losses import LOSSES
from limbeck.losses.sparse import K
from limbeck.models import layer_maps
from limbeck.recipe import settings
from limbeck.recipe.keys import LAYERED_TAPS, LOSS_KEYS
from limbeck.recipe.models import OF_STUDENTS

PARAPHRASER_STEPS = 500
Shapes = Mapping[str, PretrainedConfig]  # role -> shape of who plays it


def of_setting(
    setting: settings.Setting, student: PretrainedConfig, teachers: Shapes, where: str, top_k: int | None = None
) -> tuple[lessons.Term, ...]:
    """The terms of a setting for models of these shapes.

    With `top_k` a cache keeps so many tokens of a fixed teacher's prediction and all others as one: a divergence from it is
    taken over these, as the `topk_` loss of its kind.

    Raises:
        UserError: a term does not fit them; `where` is the setting's place in the recipe.
    """
    for layer in setting.exits:
        if student.num_hidden_layers == 1:
            raise UserError(
                f"{where}.exits: a student of one layer has no room for an exit; give it more layers, or leave the key out"
            )
        if layer >= student.num_hidden_layers:
            raise UserError(
                f"{where}.exits: {layer}, but an exit lies before the last of the student's {student.num_hidden_layers} layers; lower it"
            )
    return tuple(
        _Term(
            _kept(term, f"{where}.{term.label}", top_k),
            student,
            shape_of(term, student, teachers),
            f"{where}.{term.label}",
            setting.exits,
        ).build()
        for term in setting.terms
    )


def _kept(term: settings.TermKeys, where: str, top_k: int | None) -> settings.TermKeys:
    """The term as it can be taken from a cache.

    Raises:
        UserError: it looks at more than is kept.
    """
    keys = LOSS_KEYS.get(term.loss)
    fixed = term.teacher not in OF_STUDENTS and not (keys and "teacher" not in keys.needs)
    if top_k is None or not fixed or not set(term.taps) <= {"logits", "exit"}:
        return term
    if keys is None or keys.kept is None:
        raise UserError(
            f"{where}: {term.loss} looks at every column, and the cache keeps the {top_k} most probable tokens and the rest as one; "
            "use forward_kl or topk_kl, or leave cache out"
        )
    if term.parameters.get("k", top_k) > top_k:
        raise UserError(
            f"{where}: k is {term.parameters['k']}, and the cache keeps {top_k} tokens; raise cache.top_k to it"
        )
    converted = keys.kept != term.loss
    said = {"k": top_k, "tail": True} if converted else {"k": min(term.parameters.get("k", K), top_k)}
    return term.model_copy(update={"loss": keys.kept, "name": term.label, **said})


def shape_of(term: settings.TermKeys, student: PretrainedConfig, teachers: Shapes) -> PretrainedConfig | None:
    """The shape of who teaches a term: peers, averages and the student itself have the student's."""
    return student if term.teacher in OF_STUDENTS else teachers.get(term.teacher)


class _Term:
    """One term of a recipe on its way; `modules` collects those that its pairs name."""

    def __init__(
        self,
        said: settings.TermKeys,
        student: PretrainedConfig,
        teacher: PretrainedConfig | None,
        where: str,
        at: tuple[int, ...],
    ) -> None:
        self.said, self.student, self.teacher, self.where, self.exits = said, student, teacher, where, at
        self.keys = LOSS_KEYS.get(said.loss) or own_losses.keys(said, where, self._tried_on())
        self.modules: dict[str, projections.Make] = {}

    def build(self) -> lessons.Term:
        said, given = self.said, {k: v for k, v in self.said.parameters.items() if k in self.keys.parameters}
        plain = LOSSES.get(said.loss) or own_losses.load(said.loss, self.where)
        loss = partial(plain, **given) if given else plain
        if self.teacher is None and "teacher" in self.keys.needs:
            raise UserError(f"{self.where}: {said.loss} learns from a teacher; set models.teacher")
        needs = (*self.keys.needs, "mask") if said.loss in LOSSES else self.keys.needs
        pairs = self._pairs()
        return lessons.Term(
            said.label,
            loss,
            pairs,
            _weight(said.weight),
            needs,
            self.keys.per,
            self.modules,
            said.teacher,
            self.keys.padding,
        )

    def _pairs(self) -> tuple[lessons.Pair, ...]:
        said, teacher, label = self.said, self.teacher, self.said.label
        taps = said.taps
        if taps == ("exit",):
            self.modules |= {f":exit:{layer}": projections.head for layer in self.exits}
            return tuple(lessons.Pair(f"exit.{layer}", "logits") for layer in self.exits)
        if taps == ("logits",) or teacher is None:
            return (lessons.Pair("logits", "logits"),)
        self._heads_fit(teacher)
        if said.loss == "contrastive":
            name = _key(label)
            self.modules[name] = contrastive.contrastive_memory(*self._widths("pooled"), **self._made())
            return (lessons.Pair("pooled", "pooled", memory=name),)
        if not set(taps) & set(LAYERED_TAPS):
            return (lessons.Pair(taps[0], taps[0], self._projection(_key(label), taps[0])),)
        mapped = layer_map(said, self.student, teacher, self.where, self.exits)
        if said.loss == "flow":
            return self._flow(sorted(mapped.items()))
        return tuple(self._pair(taps, s, t) for s, t in mapped.items())

    def _pair(self, taps: tuple[str, ...], s: int, t: int) -> lessons.Pair:
        """One layer of the student and one of the teacher."""
        tap, *more = taps
        if more:
            return lessons.Pair(tuple(f"{each}.{s}" for each in taps), tuple(f"{each}.{t}" for each in taps))
        name = _key(self.said.label, s)
        if self.said.loss == "factor_transfer":
            return self._factors(tap, s, t)
        return lessons.Pair(f"{tap}.{s}", f"{tap}.{t}", self._projection(name, tap))

    def _factors(self, tap: str, s: int, t: int) -> lessons.Pair:
        made, (mine, theirs) = self._made(), self._widths(tap)
        count = max(1, round(made.get("rate", 0.5) * theirs))
        name = _key(self.said.label, s)
        self.modules[name] = paraphraser.translator(mine, count)
        steps = made.get("paraphraser_steps", PARAPHRASER_STEPS)
        self.modules[f"{name}:paraphraser"] = paraphraser.paraphraser(theirs, count, steps)
        return lessons.Pair(f"{tap}.{s}", f"{tap}.{t}", name, teacher_module=f"{name}:paraphraser")

    def _flow(self, mapped: list[tuple[int, int]]) -> tuple[lessons.Pair, ...]:
        """Between each mapped layer and the next."""
        if len(mapped) < 2:
            raise UserError(f"{self.where}: flow goes between mapped layers; map at least two, such as layers: uniform")
        found = []
        for (s, t), (s_next, t_next) in pairwise(mapped):
            names = [self._projection(_key(self.said.label, layer), "hidden") for layer in (s, s_next)]
            between = tuple(name for name in names if name)
            taps = [(f"hidden.{a}", f"hidden.{b}") for a, b in ((s, s_next), (t, t_next))]
            found.append(lessons.Pair(*taps, projection=between or None))
        return tuple(found)

    def _made(self) -> dict[str, Any]:
        return {name: value for name, value in self.said.parameters.items() if name in self.keys.made}

    def _widths(self, tap: str) -> tuple[int, int]:
        assert self.teacher is not None
        return width_of(self.student, tap), width_of(self.teacher, tap)

    def _tried_on(self) -> tuple[int, int]:
        """The widths of what a loss of one's own is given: the teacher's on both sides where a projection may stand between."""
        tap, *more = self.said.taps
        if self.teacher is None or more or tap in ("logits", "exit", "scores", "probs"):
            return own_losses.D, own_losses.D
        mine, theirs = self._widths(tap)
        return (mine if self.said.projection == "none" else theirs), theirs

    def _projection(self, name: str, tap: str) -> str | None:
        """The name of the linear layer that widens the student's tensor, None where there is none."""
        mine, theirs = self._widths(tap)
        how = self.said.projection
        if not self.keys.same_width:
            if how != "auto":
                raise UserError(f"{self.where}: projection: {how} has nothing to widen; leave the key out")
            return None
        if how == "none" or (how == "auto" and mine == theirs):
            if mine != theirs and self.said.loss in LOSSES:
                raise UserError(f"{self.where}: widths {mine} and {theirs} differ; set projection to each or shared")
            return None
        if how == "shared":
            name = ":shared:ffn" if tap == "ffn" else ":shared"  # another width: another layer
        self.modules[name] = projections.linear(mine, theirs)
        return name

    def _heads_fit(self, teacher: PretrainedConfig) -> None:
        """Whether maps can be compared head by head or group by group, and relations cut into relation heads."""
        taps = self.said.taps
        mine, theirs = heads_of(self.student, "query"), heads_of(teacher, "query")
        if {"scores", "probs"} & set(taps) and max(mine, theirs) % min(mine, theirs):
            raise UserError(
                f"{self.where}: {mine} student heads and {theirs} teacher heads cannot be grouped; "
                f"set models.student.heads to a divisor of {theirs}, or use relation_kl on query, key or value"
            )
        if self.said.loss != "relation_kl":
            return
        every = [width for tap in taps for width in self._widths(tap)]
        common = [n for n in range(1, min(every) + 1) if not any(width % n for width in every)]
        for tap in taps:
            widths = self._widths(tap)
            count = self.said.parameters.get("relation_heads") or heads_of(teacher, tap)
            if any(width % count for width in widths):
                raise UserError(
                    f"{self.where}: {count} relation heads do not divide the widths of {tap}, {widths[0]} (student) and "
                    f"{widths[1]} (teacher); set relation_heads to one of {', '.join(map(str, common))}"
                )


def layer_map(
    term: settings.TermKeys,
    student: PretrainedConfig,
    teacher: PretrainedConfig | None,
    where: str,
    at: tuple[int, ...] = (),
) -> dict[int, int]:
    """The layers that a layered term compares: {student layer: teacher layer}."""
    assert teacher is not None
    spec: layer_maps.LayerMap = term.layers
    if term.teacher == "self" and spec == "uniform":  # the last layer teaches those behind which it exits
        spec = dict.fromkeys(at or (1,), "last")
    try:
        pairs = layer_maps.resolve(spec, student.num_hidden_layers, teacher.num_hidden_layers)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if term.teacher == "self" and any(mine >= theirs for mine, theirs in pairs.items()):
        raise UserError(f"{where}: a layer learns from a deeper one; map so, such as layers: {{1: last}}")
    if term.taps != ("hidden",) and 0 in (*pairs, *pairs.values()):
        raise UserError(
            f"{where}: layer 0 is the embedding and has no {term.taps[0]}; map layers from 1 on, such as layers: {{1: 1}}"
        )
    return pairs


def reads_first_token(term: settings.TermKeys) -> bool:
    """Whether a term reads the first token of a row alone."""
    return term.loss == "patient" and term.taps != ("pooled",) and term.parameters.get("position", "first") == "first"


def _weight(weight: float | settings.Ramp) -> schedules.Schedule:
    if isinstance(weight, settings.Ramp):
        return schedules.ramp(weight.start, weight.end, weight.steps)
    return schedules.constant(weight)


def _key(label: str, layer: int | None = None) -> str:
    """The name of a term's module, at a layer of the student; no two terms of a setting share one."""
    return f"{label.replace('.', '::')}:{'' if layer is None else layer}"
