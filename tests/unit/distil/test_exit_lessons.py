"""What exits and inner layers learn, from the last layer above all, against the same thing in plain torch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from families import CAUSAL, CONFIGS
from kernel import BLOCKS, VOCABULARY, batch, frozen, gradients_of, still_of, views
from torch import Tensor, nn

from limbeck.assemble import actors, terms
from limbeck.batch import Batch
from limbeck.distil import lessons, projections, schemes
from limbeck.distil.learner import Learner, Optimisation
from limbeck.distil.probe import probe
from limbeck.distil.result import StepResult
from limbeck.distil.schedules import constant
from limbeck.distil.teachers import Ema
from limbeck.families import FAMILIES
from limbeck.losses import LOSSES
from limbeck.models.exits import cut
from limbeck.models.taps import Tapped
from limbeck.recipe import settings
from limbeck.system import seeds

DEPTH, WARM = 3, 3.0
Said = dict[str, Any]
Terms = tuple[lessons.Term, ...]
FROM_ABOVE: Said = {"loss": "forward_kl", "tap": "exit", "teacher": "self", "temperature": WARM, "weight": 0.3}
STATES: Said = {"loss": "mse", "tap": "hidden", "teacher": "self", "weight": 2.0}
LABEL: Said = {"loss": "cross_entropy", "name": "label", "weight": 0.5}
AT_EXITS: Said = {"loss": "cross_entropy", "tap": "exit", "name": "exit-label", "weight": 0.7}


def model_of(name: str, tied: bool = True, seed: int = 0) -> Any:
    """A random model in fp64 without dropout, every parameter moved away from its initial value."""
    config = CONFIGS[name]()
    config.tie_word_embeddings, config.vocab_size, config.pad_token_id = tied, VOCABULARY, 0
    for word in FAMILIES[name].dropouts:
        setattr(config, word, 0.0)
    kind = tf.AutoModelForCausalLM if name in CAUSAL else tf.AutoModelForMaskedLM
    with seeds.seeded(seed, torch.device("cpu")):
        model = kind.from_config(config, attn_implementation="sdpa").to(torch.float64)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def pupil(
    name: str, said: Sequence[Said], at: Sequence[int] = (1, 2), *, tied: bool = True, seed: int = 0, who: str = "one"
) -> tuple[Learner, Terms]:
    """A learner with trained exits, and its terms as a recipe's keys make them."""
    model = model_of(name, tied, seed)
    roles = {term.get("teacher", "teacher") for term in said}
    words = {"exits": at, "terms": said, "ema": 0.9 if "ema" in roles else None, "peers": 1 + ("peers" in roles)}
    setting = settings.Setting.model_validate(words)
    made = terms.of_setting(setting, model.config, {"teacher": frozen().model.config}, "settings.one")
    modules = {name: make for term in made for name, make in term.modules.items()}
    built = projections.build(modules, projections.Making(seed, BLOCKS, Tapped(model))).to(torch.float64)
    with seeds.seeded(7, torch.device("cpu")), torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    taps = {tap for term in made for tap in term.taps("student")} | set(actors.read_of("self", made))
    how = Optimisation(constant(1e-3), weight_decay=0.01, betas=(0.9, 0.999), eps=1e-8, clip=1.0)
    return Learner(who, model, sorted(taps), seed=seed, modules=built, optimisation=how), made


def run(one: Learner, made: Terms, batches: Sequence[Batch], chunk: int = 7, step: int = 0) -> StepResult:
    """Leaves its gradients in a learner that has no fixed teacher."""
    return still_of(None, [(one, made)], chunk=chunk).gradients(*views(batches), step)[one.name]


def read(model: nn.Module, one: Batch) -> Any:
    """What plain transformers say, with all hidden states."""
    return model(input_ids=one["input_ids"], attention_mask=one["attention_mask"], output_hidden_states=True)


def plain(one: Learner) -> Any:
    """A copy that limbeck does not touch."""
    model = copy.deepcopy(one.model)
    model.set_attn_implementation("sdpa")
    model.zero_grad()
    return model


def divergence(teacher: Tensor, student: Tensor, warm: float = 1.0) -> Tensor:
    """T^2 KL(teacher, student) of each row."""
    p, q = (teacher / warm).log_softmax(-1), (student / warm).log_softmax(-1)
    return warm**2 * (p.exp() * (p - q)).sum(-1)


def above(one: Learner, layer: int) -> list[nn.Parameter]:
    """The parameters of the layers above one, and of the last head, without what it ties to the embedding."""
    parts = [*one.tapped.layers[layer:], one.tapped.final_norm, *one.tapped.heads]
    found = [p for part in parts if isinstance(part, nn.Module) for p in part.parameters()]
    return [p for p in found if p is not one.model.get_input_embeddings().weight]


def untouched(parameters: Sequence[nn.Parameter]) -> bool:
    return all(p.grad is None or not p.grad.any() for p in parameters)


def touched(parameters: Sequence[nn.Parameter]) -> bool:
    return any(p.grad is not None and p.grad.any() for p in parameters)


def forgets(*, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """A loss whose author did not think of the teacher's gradient."""
    return (student - teacher).square().mean(-1)


# the last layer is a constant for its pupils


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_who_teaches_itself_learns_only_below(name: str, tied: bool) -> None:
    one, made = pupil(name, (FROM_ABOVE, STATES), tied=tied)
    given = batch()
    found = run(one, made, [given]).terms
    assert untouched(above(one, 2))
    assert all(touched(list(layer.parameters())) for layer in one.tapped.layers[:2])
    assert all(touched(list(exit.parameters())) for exit in one.exits.values())
    with torch.no_grad():
        whole, kept, select = read(plain(one), given), given["attention_mask"].bool(), given["select"]
        cuts = [read(cut(one.model, one.exits[f"exit.{n}"], n), given).logits for n in (1, 2)]
        values = [divergence(whole.logits, mine, WARM)[select].mean() for mine in cuts]
        states = [(whole.hidden_states[n] - whole.hidden_states[DEPTH]).square().mean(-1)[kept].mean() for n in (1, 2)]
    torch.testing.assert_close(found["exit-self"], sum(values), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found["hidden-self"], sum(states), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tap", ["exit", "hidden"])
@pytest.mark.parametrize("name", ["bert", "modernbert", "gpt2", "llama"])
def test_a_loss_that_forgets_to_detach_changes_nothing_above(name: str, tap: str) -> None:
    said = {"exit": FROM_ABOVE, "hidden": STATES}[tap]
    one, made = pupil(name, (FROM_ABOVE, said | {"name": "mine"}), at=(1,))
    run(one, (replace(made[1], loss=forgets),), [batch()])
    assert untouched(above(one, 1))
    assert touched(list(one.tapped.layers[0].parameters()))


@pytest.mark.parametrize("said", [STATES, {"loss": "attention_kl", "tap": "scores", "teacher": "self"}])
def test_a_map_of_ones_own_goes_from_layer_to_layer(said: Said) -> None:
    one, made = pupil("bert", (AT_EXITS, said | {"layers": {1: 2, 2: "last"}, "name": "mine"}))
    kind = said["tap"]
    assert [(p.student, p.teacher) for p in made[1].pairs] == [(f"{kind}.1", f"{kind}.2"), (f"{kind}.2", f"{kind}.3")]
    first = replace(made[1], pairs=made[1].pairs[:1])
    run(one, (first,), [batch()])
    assert untouched(above(one, 1)), "the second layer teaches the first, and learns nothing by it"
    assert touched(list(one.tapped.layers[0].parameters()))


# the whole step


def predicted(name: str, weights: dict[str, Tensor], decoder: Tensor, states: Tensor) -> Tensor:
    """An exit's head, its formulas written out."""
    width = (states.shape[-1],)
    if name == "gpt2":
        return F.linear(F.layer_norm(states, width, weights["held.0.weight"], weights["held.0.bias"], 1e-5), decoder)
    head = {key.removeprefix("held.0.predictions."): value for key, value in weights.items()}
    dense, norm = (
        (head[f"transform.{part}.weight"], head[f"transform.{part}.bias"]) for part in ("dense", "LayerNorm")
    )
    states = F.layer_norm(F.gelu(F.linear(states, *dense)), width, *norm, 1e-12)
    return F.linear(states, decoder, head["decoder.bias"] if "decoder.bias" in head else head["bias"])


def by_hand(name: str, one: Learner, batches: Sequence[Batch]) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    """The values of LABEL, AT_EXITS, FROM_ABOVE and STATES, and all gradients of their weighted sum."""
    model = plain(one)
    held = {f"bridges.{key}": p.detach().clone().requires_grad_() for key, p in one.modules.named_parameters()}
    labels = sum(int((b["labels"] != -100).sum()) for b in batches)
    selected = sum(int(b["select"].sum()) for b in batches)
    tokens = sum(int(b["attention_mask"].sum()) for b in batches)
    values = dict.fromkeys(("label", "exit-label", "exit-self", "hidden-self"), torch.zeros((), dtype=torch.float64))
    for b in batches:
        whole, labelled = read(model, b), b["labels"] != -100

        def entropy(logits: Tensor, b: Batch = b, labelled: Tensor = labelled) -> Tensor:
            return F.cross_entropy(logits[labelled], b["labels"][labelled], reduction="sum") / labels

        values["label"] = values["label"] + entropy(whole.logits)
        for layer in (1, 2):
            own = {key.split(".", 2)[2]: p for key, p in held.items() if key.startswith(f"bridges.:exit:{layer}.")}
            decoders = [p for p in own.values() if tuple(p.shape) == (VOCABULARY, p.shape[-1])]
            decoder = decoders[0] if decoders else model.get_input_embeddings().weight
            logits = predicted(name, own, decoder, whole.hidden_states[layer])
            values["exit-label"] = values["exit-label"] + entropy(logits)
            apart = divergence(whole.logits.detach(), logits, WARM)[b["select"]].sum() / selected
            values["exit-self"] = values["exit-self"] + apart
            distance = (whole.hidden_states[layer] - whole.hidden_states[DEPTH].detach()).square().mean(-1)
            values["hidden-self"] = values["hidden-self"] + distance[b["attention_mask"].bool()].sum() / tokens
    weights = {"label": 0.5, "exit-label": 0.7, "exit-self": 0.3, "hidden-self": 2.0}
    torch.stack([weights[term] * value for term, value in values.items()]).sum().backward()
    slopes = {f"model.{key}": p.grad for key, p in model.named_parameters()}
    return {key: value.detach() for key, value in values.items()}, slopes | {key: p.grad for key, p in held.items()}


def parts(whole: Batch, *sizes: int) -> list[Batch]:
    """The rows of a batch as micro-batches."""
    cuts = {key: tensor.split(list(sizes)) for key, tensor in whole.items()}
    return [{key: pieces[number] for key, pieces in cuts.items()} for number in range(len(sizes))]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
@pytest.mark.parametrize(
    ("chunk", "sizes"), [(1, (4,)), (3, (4,)), (1000, (4,)), (3, (2, 2)), (1000, (1, 3)), (1, (3, 1))]
)
def test_the_step_is_the_plain_one(name: str, tied: bool, chunk: int, sizes: tuple[int, ...]) -> None:
    """Padded rows, masked labels; micro-batches of any size are the whole batch."""
    one, made = pupil(name, (LABEL, AT_EXITS, FROM_ABOVE, STATES), tied=tied)
    whole = batch(5, rows=4, length=11)
    values, slopes = by_hand(name, one, [whole])
    found = run(one, made, parts(whole, *sizes), chunk)
    assert found.terms.keys() == values.keys() and found.logit_loss is None
    for term, value in values.items():
        assert value > 0
        torch.testing.assert_close(found.terms[term], value, rtol=1e-10, atol=1e-10)
    mine = gradients_of(one)
    assert mine.keys() == slopes.keys()
    for key, slope in slopes.items():
        got = mine[key]
        assert (slope is None) == (got is None), key
        if slope is not None and got is not None:
            torch.testing.assert_close(got, slope, rtol=1e-10, atol=1e-10, msg=lambda m, key=key: f"{key}: {m}")


# who else may teach an exit, and by what


def both_logits(one: Learner, given: Batch) -> tuple[Tensor, Tensor]:
    """The selected logits of the first exit, and of the last layer."""
    with torch.no_grad():
        mine = read(cut(one.model, one.exits["exit.1"], 1), given).logits
        return mine[given["select"]], read(plain(one), given).logits[given["select"]]


def test_a_fixed_teacher_teaches_exits_and_measures_the_last_layer() -> None:
    teacher, given = frozen(), batch()
    one, made = pupil("bert", ({"loss": "forward_kl", "tap": "exit"},), at=(1,))
    still = still_of(teacher, [(one, made)], chunk=4)
    tally = still.gradients(*views([given]), 0)["one"]
    exit, last = both_logits(one, given)
    target = read(teacher.model, given).logits[given["select"]]
    torch.testing.assert_close(tally.terms["exit"], divergence(target, exit).mean(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(tally.logit_loss, divergence(target, last).mean(), rtol=1e-10, atol=1e-12)
    assert untouched(above(one, 1))


def test_peers_teach_each_others_exits() -> None:
    said, given = (LABEL, {"loss": "forward_kl", "tap": "exit", "teacher": "peers"}), batch()
    cast = [pupil("bert", said, at=(1,), seed=n, who=f"peer-{n}") for n in range(3)]
    peers, made = [one for one, _ in cast], cast[0][1]
    still = schemes.together([schemes.mutual(peers, {}, made)], chunk=5)
    tallies = still.gradients(*views([given]), 0)
    heard = {one.name: both_logits(one, given) for one in peers}
    for one in peers:
        mine = heard[one.name][0]
        others = [divergence(last, mine).mean() for name, (_, last) in heard.items() if name != one.name]
        expected = torch.stack(others).sum()
        torch.testing.assert_close(tallies[one.name].terms["exit-peers"], expected, rtol=1e-10, atol=1e-12)
        slope = one.modules[":exit:1"].held[0].predictions.transform.dense.weight.grad
        assert slope is not None and slope.any()


def test_the_average_begins_as_the_last_layer() -> None:
    """So an exit first learns the same from both."""
    found = []
    for role in ("self", "ema"):
        one, made = pupil("gpt2", ({"loss": "forward_kl", "tap": "exit", "teacher": role},), at=(1,))
        cast = schemes.offline(one, {}, made)
        if role == "ema":
            cast = schemes.averaged(one, Ema("one-ema", one, actors.read_of("ema", made), 0.9), {}, made)
        tallies = schemes.together([cast], chunk=5).gradients(*views([batch()]), 0)
        found.append((tallies["one"].terms[f"exit-{role}"], gradients_of(one)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-12, atol=1e-14)
    for key, slope in found[0][1].items():
        other = found[1][1][key]
        assert (slope is None) == (other is None)
        if slope is not None and other is not None:
            torch.testing.assert_close(slope, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("chunk", [1, 1000])
def test_a_loss_of_a_whole_batch_sees_it_at_exits(chunk: int) -> None:
    one, made = pupil("bert", ({"loss": "pearson", "tap": "exit", "teacher": "self"}, LABEL), at=(1,))
    batches = [batch(1), batch(2, rows=4)]
    found = run(one, made, batches, chunk)
    heard = [both_logits(one, given) for given in batches]
    expected = sum(LOSSES["pearson"](student=exit, teacher=last) for exit, last in heard) / 2
    torch.testing.assert_close(found.terms["exit-self"], expected, rtol=1e-10, atol=1e-12)


def test_a_weight_grows_and_a_probe_sees_each_term_alone() -> None:
    ramp = {"start": 0.0, "end": 1.2, "steps": 4}
    slopes = {}
    for weight, step in ((ramp, 0), (ramp, 2), (0.6, 2)):
        one, made = pupil("bert", (FROM_ABOVE | {"weight": weight}, STATES))
        tally = run(one, made, [batch()], step=step)
        slopes[str(weight), step] = gradients_of(one)
        one.optimizer.zero_grad()
        probed = probe(still_of(None, [(one, made)], chunk=7), one, *views([batch()]), step)
        assert all(slope is None for slope in gradients_of(one).values())
        for term in made:
            assert probed[term.name].value == pytest.approx(tally.terms[term.name].item(), rel=1e-10)
            run(one, (replace(term, weight=constant(1.0)),), [batch()])
            own = [p.grad.flatten() for p in one.model.parameters() if p.grad is not None]
            assert probed[term.name].gradient_norm == pytest.approx(torch.cat(own).norm().item(), rel=1e-10)
            one.optimizer.zero_grad()
    none, half, stated = slopes.values()
    for key, slope in stated.items():
        if slope is not None:
            torch.testing.assert_close(half[key], slope, rtol=1e-10, atol=1e-14)
    assert all(slope is None or not slope.any() for key, slope in none.items() if ":exit:" in key)
