"""Single weights that become 0: schedules, masks, and what training makes of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from changing import IDS, changed, target, update
from families import CAUSAL, CONFIGS, tiny
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from limbeck.errors import UserError
from limbeck.models import compressed
from limbeck.models.changes import Change, cubic_sparsity, derived, movement_mask, two_of_four
from limbeck.models.changes.cubic import Cuts
from limbeck.models.changes.layers import layers_of, outputs_first
from limbeck.models.changes.prune import Magnitude, Moved, Movement, Pairs, Zeros, map_of
from limbeck.models.compressed import Compressed

FEW = Cuts(1, 4)
QUICK = {"bert", "gpt2", "llama"}


def model(name: str = "bert") -> Any:
    return tiny(name)


def used(one: Any) -> dict[str, Tensor]:
    """The weights that products use, outputs first."""
    found = {}
    for name, layer in layers_of(one).items():
        weight = layer.derived() if isinstance(layer, derived.Derived) else layer.weight
        found[name] = (weight.mT if isinstance(layer, derived.Conv1D) else weight).detach().clone()
    return found


# what is pure


@pytest.mark.parametrize("every", [1, 3])
def test_the_cubic_schedule_is_its_formula(every: int) -> None:
    begin, steps, final, initial = 4, 5, 0.9, 0.1
    end = begin + steps * every
    for step in range(30):
        k = min(max(step - begin, 0), steps * every) // every  # whole steps of size `every`
        wanted = final + (initial - final) * (1 - k / steps) ** 3
        assert cubic_sparsity(step, begin, end, final, initial, every) == pytest.approx(wanted, abs=1e-15)


def test_the_cubic_schedule_has_ends() -> None:
    assert [cubic_sparsity(step, 3, 3, 0.5) for step in (2, 3, 4)] == [0.0, 0.5, 0.5]
    assert cubic_sparsity(10, 0, 10, 0.7, every=4) == 0.7 and cubic_sparsity(9, 0, 10, 1.0, every=4) < 1
    for wrong in ({"begin": 3, "end": 2}, {"begin": 0, "end": 2, "every": 0}):
        with pytest.raises(ValueError, match="must not lie before begin"):
            cubic_sparsity(1, final=0.5, **wrong)


@pytest.mark.parametrize("keep", [1.0, 0.5, 1 - 0.8, 0.31, 1e-6])
def test_the_mask_is_the_largest_scores_and_of_equals_the_first(keep: float) -> None:
    scores = torch.randint(0, 4, (6, 5), generator=torch.Generator().manual_seed(0)).double()
    count = max(1, int(round(keep, 12) * 30))
    order = sorted(range(30), key=lambda place: (-scores.flatten()[place].item(), place))[:count]
    mask = movement_mask(scores, keep)
    assert mask.shape == scores.shape and mask.dtype == torch.bool
    assert mask.flatten().nonzero().flatten().tolist() == sorted(order)


def test_two_of_four_by_hand() -> None:
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight[0, :4] = 1.0  # equals
    mask = two_of_four(weight)
    for row in range(5):
        for first in range(0, 12, 4):
            four = weight[row, first : first + 4].abs().tolist()
            kept = sorted(sorted(range(4), key=lambda place: (-four[place], place))[:2])
            assert mask[row, first : first + 4].nonzero().flatten().tolist() == kept
    with pytest.raises(ValueError, match="four does not divide 6 inputs"):
        two_of_four(weight[:, :6])


# movement


def test_gradients_go_straight_through() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 3, dtype=torch.float64)
    derived.derive(layer, Moved(layer.weight))
    moved, x, slope = map_of(layer, Moved), torch.randn(5, 4).double(), torch.randn(5, 3).double()
    moved.mask.copy_(torch.rand(3, 4) < 0.5)
    (layer(x) * slope).sum().backward()
    used_slope = slope.T @ x  # dL/dW'
    assert layer.weight.grad is not None
    torch.testing.assert_close(moved.scores.grad, used_slope * layer.weight.detach(), rtol=0, atol=1e-14)
    torch.testing.assert_close(layer.weight.grad, used_slope * moved.mask, rtol=0, atol=1e-14)
    torch.testing.assert_close(layer(x), x @ (layer.weight * moved.mask).T + layer.bias, rtol=0, atol=1e-14)


def test_scores_learn_at_a_rate_of_their_own_and_choose() -> None:
    change = Movement(0.75, FEW, rate=0.5)
    one, path = changed(model(), [change]), "bert.encoder.layer.0.output.dense"
    layer, scores = one.model.get_submodule(path), map_of(one.model.get_submodule(path), Moved)
    assert bool((scores.scores == 0).all()) and bool(scores.mask.all())
    update(one, 0)
    moved = scores.scores.detach().abs()
    assert moved.median().item() == pytest.approx(0.5, abs=1e-4) and moved.max() <= 0.5  # Adam's first step is its rate
    others = [map_of(it, Moved) for it in layers_of(one.model).values()]
    for step in range(1, 6):
        update(one, step)
        keep = 1 - change.cuts.share(step + 1, 0.75)
        for each in others:
            assert torch.equal(each.mask, movement_mask(each.scores, keep))
        assert change.ready(step + 1) == (step + 1 >= 4)
    assert int(scores.mask.sum()) == int(0.25 * scores.mask.numel())
    cut = layer.weight[~scores.mask]
    assert bool((cut != 0).any()), "what is not used is not lost while the student trains"
    folded, small = one.folded()
    assert bool((folded.get_submodule(path).weight[~scores.mask] == 0).all()) and path in small.pruned
    assert not any("scores" in name or "mask" in name for name in folded.state_dict())
    torch.testing.assert_close(folded(IDS).logits, one.model(IDS).logits, rtol=0, atol=1e-12)


# magnitude


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("change", [Magnitude(FEW, 0.6), Pairs(Cuts(2, 2)), Magnitude(Cuts(), 0.6)])
def test_what_is_cut_is_0_after_every_update(name: str, change: Any) -> None:
    one = changed(model(name), [change])
    before: dict[str, Tensor] = {}
    for step in range(6):
        update(one, step)
        share = change.cuts.share(step + 1, getattr(change, "weights", 0.5))
        for path, weight in used(one.model).items():
            layer = one.model.get_submodule(path)
            zeros = weight == 0
            assert int(zeros.sum()) == zeros.numel() - int(round(1 - share, 12) * zeros.numel()), path
            assert torch.equal(outputs_first(layer) == 0, zeros), "the parameter itself"
            assert bool(zeros[before.get(path, torch.zeros_like(zeros))].all()), "a weight came back"
            before[path] = zeros
            for slot in ("exp_avg", "exp_avg_sq"):
                held = one.optimizer.state[layer.weight][slot]
                held = held.mT if isinstance(layer, derived.Conv1D) else held
                assert bool((held[zeros] == 0).all())
        assert change.ready(step + 1) == (step + 1 >= change.cuts.end)
    folded, small = one.folded()
    assert small.pruned == list(before) and all(torch.equal(used(folded)[path] == 0, it) for path, it in before.items())
    inside = {f"{path}.weight" for path in before}
    others = [it for path, it in folded.named_parameters() if path not in inside and it.ndim == 2]
    assert all(bool((it != 0).any(-1).all()) for it in others), "tables and heads stay whole"


def test_the_smallest_go_first() -> None:
    plain, one = model(), changed(model(), [Magnitude(Cuts(), 0.3)])
    for path, weight in used(plain).items():
        gone = weight.flatten().abs().argsort()[: weight.numel() - int(0.7 * weight.numel())]
        assert used(one.model)[path].flatten().eq(0).nonzero().flatten().tolist() == sorted(gone.tolist())


def test_an_update_is_that_of_the_weights_that_are_left() -> None:
    """Gradients of what is cut count nowhere, not even in the norm that is clipped: AdamW by hand on the rest."""
    one = changed(model(), [Magnitude(Cuts(), 0.5)], clip=0.01)
    twin = one.folded().model
    masks = {name: (it != 0) for name, it in twin.named_parameters()}
    moments = {name: [torch.zeros_like(it), torch.zeros_like(it)] for name, it in twin.named_parameters()}
    for step in range(3):
        twin.zero_grad()
        logits = twin(IDS).logits
        (logits - target(step, logits)).square().mean().backward()
        pruned = {f"{path}.weight" for path in layers_of(twin)}
        slopes = {
            n: p.grad * masks[n] if n in pruned else p.grad for n, p in twin.named_parameters() if p.grad is not None
        }
        norm = torch.stack([it.square().sum() for it in slopes.values()]).sum().sqrt()
        scale = min(1.0, 0.01 / (norm + 1e-6))
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                if name not in slopes:
                    continue
                slope, (first, second) = slopes[name] * scale, moments[name]
                parameter.mul_(1 - 1e-2 * (0.1 if parameter.ndim > 1 else 0.0))
                first.lerp_(slope, 0.1)
                second.mul_(0.999).addcmul_(slope, slope, value=0.001)
                size = (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
                parameter.sub_(1e-2 * first / (1 - 0.9 ** (step + 1)) / size)
        update(one, step)
    mine = one.folded().model
    for (name, found), wanted in zip(mine.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10, msg=name)


# what is exported, and trained on


@pytest.mark.parametrize("name", [it if it in QUICK else pytest.param(it, marks=pytest.mark.slow) for it in CONFIGS])
@pytest.mark.parametrize(
    "changes",
    [[Magnitude(FEW, 0.5)], [Movement(0.5, FEW)], [Pairs(), Magnitude(FEW, 0.8)], [Movement(0.5, FEW), Pairs()]],
)
def test_the_folded_student_loads_without_limbeck(name: str, changes: list[Change], tmp_path: Path) -> None:
    one = changed(model(name), changes)
    for step in range(4):
        update(one, step)
    folded, small = one.folded()
    folded.save_pretrained(tmp_path)
    compressed.write(tmp_path, small)
    kind = AutoModelForCausalLM if name in CAUSAL else AutoModelForMaskedLM
    plain = kind.from_pretrained(tmp_path, dtype=torch.float64).eval()
    torch.testing.assert_close(plain(IDS).logits, one.model(IDS).logits, rtol=0, atol=1e-10)
    again = compressed.read(tmp_path)
    assert again.pruned == list(layers_of(plain)) and again
    assert all(int((it == 0).sum()) >= it.numel() // 2 for it in used(plain).values())


def test_zeros_of_before_stay() -> None:
    begun = model()
    path = "bert.encoder.layer.1.intermediate.dense"
    with torch.no_grad():
        begun.get_submodule(path).weight[::2] = 0
    change = Zeros(names=(path, "bert.gone"))
    one, free = changed(begun, [change]), changed(begun, [])
    for step in range(3):
        update(one, step)
        update(free, step)
    weights = [it.model.get_submodule(path).weight for it in (one, free)]
    assert (
        bool((weights[0][::2] == 0).all())
        and bool((weights[1][::2] != 0).any())
        and bool((weights[0][1::2] != 0).any())
    )
    assert one.folded().small.pruned == [path] and change.ready(0)
    assert "that are 0 stay 0" in change.said() and change.facts() == {"pruned_before": {"layers": 2}}


def test_masks_are_in_the_state() -> None:
    """What a checkpoint holds goes on where it was, whatever the model began with."""
    changes = [Magnitude(FEW, 0.5), Movement(0.3, FEW)]
    one, other = changed(model(), changes), changed(model(), changes)
    for step in range(3):
        update(one, step)
    other.load({name: it.clone() for name, it in one.state().items()})
    for step in (3, 4):
        for each in (one, other):
            update(each, step)
    assert all(torch.equal(it, one.state()[name]) for name, it in other.state().items())


def test_a_damaged_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / compressed.COMPRESSION).write_text('{"pruned": 3}')
    with pytest.raises(UserError, match="cannot be read"):
        compressed.read(tmp_path)
    compressed.write(tmp_path, Compressed(pruned=["a.b"]))
    assert compressed.read(tmp_path) == Compressed(pruned=["a.b"])


def test_an_outline_is_what_folding_says() -> None:
    for changes in ([Magnitude(Cuts(), 0.5)], [Movement(0.5, FEW)], [Pairs()]):
        said = Compressed()
        with torch.device("meta"):
            changes[0].outline(copy.deepcopy(model()).to("meta"), said)
        assert said == changed(model(), changes).folded().small
