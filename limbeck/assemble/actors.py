"""Actors from the keys of a recipe: fixed teachers, students, averages, and the scheme that ties them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from limbeck import rundir
from limbeck.assemble import changes, own
from limbeck.assemble.design import Design, named_sources
from limbeck.batch import Batch
from limbeck.distil import lessons, projections, schedules, schemes
from limbeck.distil.actors import Actor
from limbeck.distil.balance import Balance
from limbeck.distil.learner import Learner, Optimisation
from limbeck.distil.teachers import Ema, Ensemble, Frozen
from limbeck.families import family
from limbeck.models import inherit, pretrained, students
from limbeck.models.changes import Change, Dropout
from limbeck.models.int8 import Int8
from limbeck.models.taps import Tapped
from limbeck.recipe import actor_names, models, recipe, settings
from limbeck.recipe.stage_texts import stage_of
from limbeck.recipe.stages import folder_of, student_of
from limbeck.system import seeds
from limbeck.system.precision import DTYPES
from limbeck.system.processes import World
from limbeck.training import checkpoint

Tell = Callable[[str], None]


class ActorMaker:
    """Makes the actors of a study. A pretrained model is read once, however many learn from it or begin as it."""

    def __init__(
        self,
        plan: Design,
        world: World,
        sample: Batch | None = None,
        tell: Tell = lambda line: None,
        calibration: changes.Calibration = tuple,
    ) -> None:
        self.plan, self.world, self.sample, self.tell, self.calibration = plan, world, sample, tell, calibration
        self.said, self.learned = plan.recipe.models, [term for terms in plan.terms.values() for term in terms]
        self._fixed: dict[str, Actor] = {}
        self._ensembles: dict[str, Ensemble] = {}
        self._origins: dict[str, PreTrainedModel] = {}
        self._bases: dict[str, Frozen] = {}

    def teachers(self, setting: str, seed: int) -> schemes.Teachers:
        """Role -> who plays it for a setting and a seed; students of an earlier stage teach those of their own seed."""
        made = {name: self._teacher(name, source, setting, seed) for name, source in named_sources(self.said).items()}
        if not isinstance(self.said.teacher, models.EnsembleKeys):
            return dict(made)
        members = [made.pop(name) for name in list(made) if name not in self.said.teachers]
        how = self.said.teacher
        key = " ".join(member.name for member in members)
        if key not in self._ensembles:
            several = any(actor_names.role_and_student(member.name)[1] for member in members)
            name = actor_names.from_stage("teacher", str(len(self._ensembles))) if several else "teacher"
            self._ensembles[key] = Ensemble(name, members, how.average, how.weights)
        return {"teacher": self._ensembles[key], **made}

    def _teacher(self, role: str, source: models.Source, setting: str, seed: int) -> Actor:
        trained = self._trained(source, setting, seed)
        name = actor_names.from_stage(role, trained.name) if trained else role
        if name not in self._fixed:
            where = models.Source(source=str(trained)) if trained else source
            config = pretrained.config_of(where) if trained else self.plan.teachers[role]
            made = self._changes(source)
            for change in made:
                config = change.shaped(config)
            model = pretrained.model_of(where, DTYPES[self.plan.recipe.train.precision], config=config, bare=True)
            self.world.place(model)
            self._apply(name, model, made)
            taps = read_of(role, self.learned)
            fixed = Frozen(name, model, taps, self.plan.columns, made)
            self._fixed[name] = own.actor(source.actor, fixed, f"models.{role}.actor") if source.actor else fixed
        return self._fixed[name]

    def _changes(self, source: models.Source) -> list[Change]:
        """What is done to a teacher."""
        found: list[Change] = [Dropout(source.dropout)] if source.dropout else []
        if self.plan.recipe.train.teacher_precision == "int8" and self.sample is not None:
            found.append(Int8(self.sample, self.plan.autocast))
        return found

    def _apply(self, name: str, model: PreTrainedModel, changes: Sequence[Change]) -> None:
        for change in changes:
            change.apply(model)
            if said := change.said():
                self.tell(f"{name} {said}")

    def _trained(self, source: models.Source, setting: str, seed: int) -> Path | None:
        """The folder of the student that a stage trained, None for any other model."""
        stage = stage_of(source.source)
        if stage is None:
            return None
        return folder_of(self.plan.earlier[stage].recipe, source.source, setting, seed)

    def learner(self, setting: str, number: int, making: projections.Making) -> Learner:
        """A learner of one setting; all settings of a seed begin with the same parameters, and so do their n-th peers."""
        plan, how, learned = self.plan, self.plan.recipe.train, self.plan.terms[setting]
        dtype = self._dtype
        model = self._beginning(setting, making.seed, number)
        making = replace(making, tapped=Tapped(model, columns=plan.columns))
        built = projections.build({name: make for term in learned for name, make in term.modules.items()}, making)
        torch.nn.Module.to(built, dtype)
        self._take_modules(built, setting, making.seed)
        balance = Balance(plan.recipe.settings[setting].balance, [term.name for term in learned])
        for module in (model, built, balance):
            self.world.place(module, dtype)
        taps = {
            *(tap for term in learned for tap in term.taps("student")),
            *read_of("peers", learned),
            *read_of("self", learned),
        }
        name = plan.recipe.learner(setting, making.seed, number)
        made, finishing = changes.of_setting(plan.recipe, setting, self.calibration)
        made = [*self._kept_zeros(setting, making.seed), *made]
        self._apply(name, model, made)
        return Learner(
            name,
            model,
            sorted(taps),
            seed=making.seed,
            modules=built,
            optimisation=_optimisation(how),
            balance=balance,
            columns=plan.columns,
            changes=made,
            finishing=finishing,
        )

    @property
    def _dtype(self) -> torch.dtype:
        """Of the weights of students."""
        return torch.float64 if self.plan.recipe.train.precision == "fp64" else torch.float32

    def _beginning(self, setting: str, seed: int, number: int = 0) -> PreTrainedModel:
        """The model as which a student begins, before its changes."""
        draw = [number, self.said.student.draw] if self.said.student.draw else [number] if number else []
        model = students.build(self.plan.student, seeds.derive_seed(seed, "student", *draw))
        torch.nn.Module.to(model, self._dtype)
        origin = self._origin(setting, seed, self._dtype)
        if origin is not None:
            inherit.inherit(model, origin, self.said.student.from_layers)
        return model

    def _kept_zeros(self, setting: str, seed: int) -> list[Change]:
        """What keeps the zeros of what a student begins as."""
        source, origin = self.said.beginning, self.plan.origin
        if source is None or origin is None:
            return []
        folder = self._trained(source, setting, seed) or Path(pretrained.place(source.source))
        which = self.said.student.from_layers
        return changes.kept_zeros(folder, origin, self.plan.student, which) if folder.is_dir() else []

    def base(self, setting: str, seed: int) -> schemes.Teachers:
        """Who plays the role `base` for a setting: its student as it began, before its changes; nobody where no term asks."""
        if not read_of("base", self.plan.terms[setting]):
            return {}
        source = self.said.beginning
        trained = self._trained(source, setting, seed) if source else None
        name = actor_names.from_stage("base", trained.name if trained else f"seed{seed}")
        if name not in self._bases:
            model = self._beginning(setting, seed)
            self.world.place(model, DTYPES[self.plan.recipe.train.precision])
            self._bases[name] = Frozen(name, model, read_of("base", self.learned), self.plan.columns)
        return {"base": self._bases[name]}

    def _origin(self, setting: str, seed: int, dtype: torch.dtype) -> PreTrainedModel | None:
        """The weights that a student begins with, in the precision of its own."""
        source = self.said.beginning
        if source is None:
            return None
        trained = self._trained(source, setting, seed)
        where = models.Source(source=str(trained)) if trained else source
        if str(where) not in self._origins:
            self._origins[str(where)] = pretrained.model_of(where, dtype)
        return self._origins[str(where)]

    @torch.no_grad()
    def _take_modules(self, built: torch.nn.ModuleDict, setting: str, seed: int) -> None:
        """A student that goes on from an earlier stage keeps the projections of the terms that go on with it."""
        origin = self.said.student.origin
        stage = stage_of(origin.source) if origin else None
        if origin is None or stage is None or not built:
            return
        earlier, trained = self.plan.earlier[stage].recipe, self._trained(origin, setting, seed)
        assert trained is not None
        last = Path(earlier.run_dir) / rundir.CHECKPOINTS / rundir.step_name(earlier.train.steps)
        kept = checkpoint.modules(last, trained.name)
        for name, parameter in built.named_parameters():
            if name in kept and kept[name].shape == parameter.shape:
                parameter.copy_(kept[name])

    def cast(
        self, setting: settings.Setting, terms: Sequence[lessons.Term], peers: list[Learner], teachers: schemes.Teachers
    ) -> schemes.Cast:
        """The scheme that a setting asks for."""
        if setting.peers > 1:
            return schemes.mutual(peers, teachers, terms, setting.alternate)
        if setting.ema is not None:
            average = Ema(actor_names.average(peers[0].name), peers[0], read_of("ema", terms), setting.ema)
            return schemes.averaged(peers[0], average, teachers, terms)
        return schemes.offline(peers[0], teachers, terms)


def trained_head(plan: Design, setting: str) -> bool:
    """Whether the head with which the students of a setting begin was trained before, for what this recipe trains it for.

    A student of an earlier stage has such a head where a term of that stage looked at its logits, or it began with one.
    """
    source, student, shape = plan.recipe.models.beginning, plan.student, plan.origin
    if source is None or shape is None or shape.problem_type != student.problem_type:
        return False
    one, other = (family(it.model_type).classifier[-1] for it in (student, shape))
    if student.problem_type and (shape.num_labels != student.num_labels or one != other):  # such a head is not taken
        return False
    if (stage := stage_of(source.source)) is None:
        return True
    earlier = plan.earlier[stage]
    learner = student_of(earlier.recipe, source.source, setting, plan.recipe.seeds[0])
    taken = next(
        name
        for name in earlier.terms
        if learner in {earlier.recipe.learner(name, seed) for seed in earlier.recipe.seeds}
    )
    return any("logits" in term.taps("student") for term in earlier.terms[taken]) or trained_head(earlier, taken)


def read_of(role: str, terms: Sequence[lessons.Term]) -> list[str]:
    """The taps that terms read of who plays a role."""
    return sorted({tap for term in terms if term.teacher == role for tap in term.taps("teacher")})


def _optimisation(how: recipe.Train) -> Optimisation:
    schedule = schedules.learning_rate(how.lr, how.steps, how.warmup_steps, how.schedule)
    return Optimisation(schedule, how.weight_decay, how.betas, how.eps, how.clip)
