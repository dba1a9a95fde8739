"""What `limbeck check` says: everything that can be known before training, as aligned lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from limbeck.assemble import actors, costs, design, tasks, teacher_caches, terms
from limbeck.assemble.kinds import kind_of
from limbeck.assemble.model_files import ModelFiles
from limbeck.assemble.text import feed_of, read_text
from limbeck.models import pretrained
from limbeck.recipe import stage_texts, stages
from limbeck.recipe.arms import Arm
from limbeck.recipe.keys import LAYERED_TAPS, LOSS_KEYS
from limbeck.recipe.models import EnsembleKeys
from limbeck.recipe.recipe import Recipe
from limbeck.recipe.settings import Setting, TermKeys
from limbeck.recipe.study_keys import StudyKeys
from limbeck.running import changed
from limbeck.system import precision
from limbeck.system.processes import World
from limbeck.text.heldout import lying
from limbeck.text.readers import unasked
from limbeck.text.tokenise import Encoder

Row = Sequence[object]

TIMES = {"days": 86400.0, "hours": 3600.0, "minutes": 60.0, "seconds": 1.0}
SIZES = {"TiB": 2.0**40, "GiB": 2.0**30, "MiB": 2.0**20}


def lines(
    tables: Sequence[Recipe], world: World, require: Callable[[design.Design], None], files: ModelFiles
) -> list[str]:
    """The study on a page, or on one for each stage. The Hub is only asked whether it has a name; what is on this disk is read and
    held together.

    Args:
        tables: the recipes of the stages.
        require: raises where the machine does not hold a stage; asked before its text is read.
        files: what several designs read, without asking the Hub.

    Raises:
        UserError: what a run would stop with.
    """
    last, plans, found = tables[-1], {}, []
    for number, table in enumerate(tables):
        title = f"{last.name}: {last.question}" if last.question else last.name
        found += [""] if number else []
        found += [
            f"{title}, stage {table.stage}"
            if len(tables) > 1 and number == 0
            else f"stage {table.stage}"
            if number
            else title,
            "",
        ]
        found += _stage(table, plans, len(tables) > 1, world, require, files)
        if table.stage not in plans:  # not downloaded: nothing can be known of what follows, but whether the Hub has it
            for later in tables[number + 1 :]:
                _far_models(later)
                _far_corpora(later)
            break
    return found


def study(keys: StudyKeys, arms: Sequence[Arm], trials: int) -> list[str]:
    """What a study of several arms trains, arm by arm."""
    rows: list[Row] = [("arms", "settings", "updates")]
    rows += [(f"  {arm.name or '-'}", ", ".join(arm.last.chosen), arm.last.train.steps) for arm in arms]
    if keys.equal:
        rows.append(("", f"updates at equal {keys.equal} are counted when it runs"))
    if keys.tune:
        rows.append(("", f"tuned first: {trials} trials of every setting, on a validation part"))
    return _aligned(rows)


def _stage(
    table: Recipe,
    plans: design.Plans,
    several: bool,
    world: World,
    require: Callable[[design.Design], None],
    files: ModelFiles,
) -> list[str]:
    """One stage on a page; its design is put to those before it."""
    away = _far_corpora(table)
    try:
        with design.naming(table, several):
            plan = design.design(table, files, dict(plans))
            inherited = design.weights_fit(plan, files)
    except pretrained.NotDownloaded as notice:
        return [*_settings(table, None), "", *_downloads({**notice.far, **_far_models(table), **away})]
    plans[table.stage] = plan
    require(plan)
    Encoder(plan.teacher_tokenizer, plan.student_tokenizer)
    if table.write:
        return [*_models(plan, inherited), "", *_aligned([("writes a text", table.write), ("ok", "")])]
    text, load = ([], None) if away else _unwritten(plan) if plan.unwritten else _text(plan)
    told = changed.rows(plan)
    body = [*_models(plan, inherited), "", *_settings(table, plan), "", *([*_aligned(told), ""] if told else [])]
    body += _cost(plan, world, load)
    return [*body, *(_downloads(away) if away else _aligned([*text, ("ok", "")]))]


def _unwritten(plan: design.Design) -> tuple[list[Row], None]:
    """What is said of texts that stages will write."""
    waits = [(place, name) for place, name in stage_texts.named(plan.recipe.data) if name in plan.unwritten]
    return [("text", f"{place}: ${name} is not written yet") for place, name in waits], None


def _far_models(table: Recipe) -> dict[str, str | None]:
    """The models that a run downloads -> why the Hub could not be asked for one; None where it has it.

    Raises:
        UserError: the Hub has no such model, or must not be asked.
    """
    said = [source for _, source in stages.placed_sources(table) if stage_texts.stage_of(source.source) is None]
    found: dict[str, str | None] = {}
    for source in said:
        try:
            pretrained.config_of(source, offline=True)
        except pretrained.NotDownloaded as notice:
            found |= notice.far
    return found


def _far_corpora(table: Recipe) -> dict[str, str | None]:
    """The corpora that are on the Hub, as `_far_models`; those on this disk are looked for."""
    return {spec: unasked(spec) for spec in lying(table.data) if spec.startswith("hub:")}


def _downloads(far: Mapping[str, str | None]) -> list[str]:
    rows = [("a run downloads" if i == 0 else "", name) for i, name in enumerate(far)]
    rows += [("", f"the Hub could not be asked for {name} ({why})") for name, why in far.items() if why]
    return _aligned([*rows, ("ok", "checked up to the download")])


def _text(plan: design.Design) -> tuple[list[Row], costs.Load]:
    """What is read, and the mean load of an update."""
    notes: list[str] = []
    material = read_text(plan, notes.append)
    load = costs.mean(plan, feed_of(plan, material, plan.recipe.seeds[0]))
    facts, noun = material.facts, kind_of(plan.recipe).unit
    rows = [
        ("text", f"{facts['corpus']}: {facts['documents']:,} {noun}, {facts['tokens']:,} tokens"),
        ("held out", f"{facts['heldout_documents']:,} {noun}, {facts['heldout_tokens']:,} tokens"),
    ]
    if plan.classes:
        rows.append(("classes", tasks.listed(plan.classes)))
    if said := kind_of(plan.recipe).added(plan):
        rows.append(("augmented", said))
    others = {"unlabelled": it} if (it := facts.get("unlabelled")) else {}
    for name, more in (others | {f"with {name}": it for name, it in facts.get("mixture", {}).items()}).items():
        rows.append((name, f"{more['corpus']}: {more['documents']:,} {noun}, {more['tokens']:,} tokens"))
    return [*rows, *(("" if i else "note", note) for i, note in enumerate(facts["notes"]))], load


def _models(plan: design.Design, inherited: Sequence[str]) -> list[str]:
    cost = costs.of_study(plan)
    rows: list[Row] = [("models", "family", "layers", "width", "heads", "vocabulary", "parameters", "MFLOP a token")]
    share = (
        1.0 if kind_of(plan.recipe).one_length else 1 / plan.recipe.data.max_length
    )  # of the tokens that a head looks at
    sizes = {name: (config, cost.teachers[name]) for name, config in plan.teachers.items()}
    for who, (config, size) in {**sizes, "student": (plan.student, cost.student)}.items():
        if config is not None:
            shape = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.vocab_size)
            flops = f"{(size.backbone_flops + size.head_flops * share) / 1e6:,.3g}"
            rows.append((f"  {who}", config.model_type, *shape, size.parameters, flops))
    rows += [("", line) for line in inherited]
    average = plan.recipe.models.teacher
    if isinstance(average, EnsembleKeys):
        rows.append(("", f"an ensemble of {len(average.ensemble)}, averaging {average.average.replace('_', '-')}"))
    said = {f"{name} is": source.source for name, source in design.named_sources(plan.recipe.models).items()}
    said["student begins as"] = plan.recipe.models.student.init
    taken: list[Row] = [("", f"{what} the student of {it}") for what, it in said.items() if it.startswith("$")]
    for name, source in design.named_sources(plan.recipe.models).items():
        taken += [("", f"{name} teaches with dropout {source.dropout:g}")] if source.dropout else []
    return [*_aligned(rows), *(_aligned(taken) if taken else [])]


def _settings(table: Recipe, plan: design.Design | None) -> list[str]:
    rows: list[Row] = [("settings", "term", "loss", "weight", "modules", "layers, student<-teacher")]
    maps = design.facts(plan) if plan else {}
    for name, setting in table.chosen.items():
        for i, term in enumerate(setting.terms):
            layers = maps.get(name, {}).get(term.label, term.layers if set(term.taps) & set(LAYERED_TAPS) else "")
            modules = _modules(plan, name, i) if plan else ""
            rows.append(
                ("" if i else f"  {name}", term.label, _loss(term, plan, name, i), _weight(term), modules, layers)
            )
        rows += [("", "", note) for note in _notes(setting, table)]
    return _aligned(rows)


def _notes(setting: Setting, table: Recipe) -> list[str]:
    """What a setting says beside its terms."""
    notes = []
    if setting.peers > 1:
        notes.append(f"{setting.peers} peers, {'one after the other' if setting.alternate else 'together'}")
    if setting.exits:
        several = "s" * (len(setting.exits) > 1)
        notes.append(f"exit{several} behind layer{several} {', '.join(map(str, sorted(setting.exits)))}")
    if setting.ema is not None:
        notes.append(f"average of decay {setting.ema:g}")
    if setting.balance != "none":
        notes.append(f"balance {setting.balance}, probed every {table.train.probe_every:,} updates")
    return notes


def _loss(term: TermKeys, plan: design.Design | None, setting: str, number: int) -> str:
    """The loss with its hyper-parameters, and what becomes of heads and of batches."""
    words = [f"{name} {value}" for name, value in term.parameters.items()]
    if plan and plan.terms[setting][number].per == "batch":
        words.append(f"of {plan.recipe.train.batch_size // plan.recipe.train.accumulate} rows")
    if plan and plan.terms[setting][number].per != "token" and "mask" not in plan.terms[setting][number].needs:
        words.append("takes no mask: padding counts")
    if term.loss in LOSS_KEYS and LOSS_KEYS[term.loss].padding:
        words.append("padding counts")
    teacher = terms.shape_of(term, plan.student, plan.roles) if plan else None
    if plan and teacher and {"scores", "probs"} & set(term.taps):
        few, many = sorted((plan.student.num_attention_heads, teacher.num_attention_heads))
        words += [f"{many} heads in {few} groups"] if many > few else []
    return ", ".join([term.loss, *words])


def _weight(term: TermKeys) -> str:
    weight = term.weight
    if isinstance(weight, int | float):
        return f"{weight:g}"
    return f"{weight.start:g} to {weight.end:g} in {weight.steps:,}"


def _modules(plan: design.Design, setting: str, number: int) -> str:
    """The modules of a term: `2 of 192->384` for projections, other kinds by their names."""
    made = plan.modules[setting][number]
    kinds = Counter(
        f"{module.in_features}->{module.out_features}" if isinstance(module, torch.nn.Linear) else _kind(module)
        for module in made.values()
    )
    return ", ".join(f"{count} of {kind}" for kind, count in kinds.items())


def _kind(module: torch.nn.Module) -> str:
    return {"Sequential": "translator", "ContrastiveMemory": "memory"}.get(
        type(module).__name__, type(module).__name__.lower()
    )


def _cost(plan: design.Design, world: World, load: costs.Load | None) -> list[str]:
    """What training costs; where no text is there yet, with rows of full length and without copies."""
    how, cost, kind = plan.recipe.train, costs.of_study(plan, load), kind_of(plan.recipe)
    copies = kind.added_flops(plan) if load else 0.0
    rate = precision.matrix_rate(how.precision) * costs.EFFICIENCY
    included: list[Row] = [("", f"{_scaled(copies / rate, TIMES)} of it for copies of rows, once")] if copies else []
    cast = f"settings {len(plan.terms)} x seeds {len(plan.recipe.seeds)}"
    alone = ", ".join(f"{name} {flops / 1e9:,.1f}" for name, flops in cost.flops_per_step.items())
    size = f"{how.batch_size} x {plan.recipe.data.max_length} tokens"
    if load and not kind.one_length:
        size = f"{how.batch_size} rows, on average {load.tokens:,.0f} tokens with padding"
    note = precision.emulated(how.precision, world.device)
    return _aligned(
        [
            ("training", f"{cast}, {how.steps:,} updates of {size}"),
            ("precision", how.precision),
            *([("note", note)] if note else []),
            ("compute", f"GFLOP of an update alone: {alone}"),
            (
                "time",
                f"about {_scaled((cost.total_flops + copies) / rate, TIMES)} on this processor, evaluations apart",
            ),
            *included,
            ("memory", f"about {_scaled(cost.memory, SIZES)}"),
            ("disk", f"about {_scaled(cost.disk, SIZES)}"),
            *_cache(plan),
        ]
    )


def _cache(plan: design.Design) -> list[Row]:
    """What the teacher cache keeps of a token."""
    if plan.recipe.cache is None:
        return []
    found = []
    for name, config in plan.teachers.items():
        terms = [term for setting in plan.terms.values() for term in setting]
        said, states = teacher_caches.kept_of(plan, config, actors.read_of(name, terms)).bytes(config)
        found.append((f"cache of {name}", f"{said:,.0f} bytes a selected token, {states:,.0f} a token for states"))
    return found


def _scaled(value: float, units: dict[str, float]) -> str:
    """In the largest unit of which there is at least one."""
    unit = next((name for name, size in units.items() if value >= size), list(units)[-1])
    return f"{value / units[unit]:,.1f} {unit}"


def _aligned(rows: Sequence[Row]) -> list[str]:
    """Columns: numbers to the right, words to the left; the first column is as wide in every table."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in cells if i < len(row)) for i in range(max(map(len, cells)))]
    right = [any(isinstance(row[i], int) for row in rows if i < len(row)) for i in range(len(widths))]
    widths[0] = max(widths[0], 16)
    lined = ([f"{c:>{w}}" if r else f"{c:{w}}" for c, w, r in zip(row, widths, right, strict=False)] for row in cells)
    return ["  ".join(row).rstrip() for row in lined]


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
