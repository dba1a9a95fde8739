"""Neurons, heads, hidden units and layers that go: masked in training, gone in the export."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from changing import IDS, changed, target, update
from families import CAUSAL, CONFIGS, tiny
from heirs import blocks, silence
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from limbeck.errors import UserError
from limbeck.families import family
from limbeck.models import inherit
from limbeck.models.changes import derived, importance, sizes, taylor_importance
from limbeck.models.changes.absent import stack
from limbeck.models.changes.cubic import Cuts
from limbeck.models.changes.layers import layers_of
from limbeck.models.changes.prune import Magnitude
from limbeck.models.changes.quantise import fake_quantise
from limbeck.models.changes.sizes import Shares
from limbeck.models.changes.units import Units, left_in
from limbeck.models.compressed import Compressed, Grid
from limbeck.models.taps import Tapped

MASK = torch.ones_like(IDS)
MASK[1, 5:], MASK[2, 7:] = 0, 0
GRADUAL = Cuts(1, 4)
SHARES = {
    "neurons": Shares(neurons=0.5),
    "heads": Shares(heads=0.5),
    "hidden": Shares(hidden=0.25),
    "layers": Shares(layers=0.4),
    "heads and hidden": Shares(hidden=0.5, heads=0.5),
    "all": Shares(neurons=0.3, heads=0.5, hidden=0.5, layers=0.4),
}


def text() -> list[Any]:
    return [{"input_ids": IDS[rows], "attention_mask": MASK[rows]} for rows in (slice(0, 2), slice(2, 3))]


@pytest.fixture(autouse=True)
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms of transformers that stay in the dtype of the model: theirs compute in fp32."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        mean = hidden_states.square().mean(-1, keepdim=True)
        return self.weight * hidden_states * torch.rsqrt(mean + self.variance_epsilon)

    for kind in (LlamaRMSNorm, Qwen3RMSNorm):
        monkeypatch.setattr(kind, "forward", forward)


def model(name: str = "bert") -> Any:
    return tiny(name)


def fits(one: Any, shares: Shares) -> bool:
    try:
        sizes.require(one.config, shares)
    except UserError:
        return False
    return True


CASES = [(name, what) for name in CONFIGS for what, shares in SHARES.items() if fits(tiny(name), shares)]
LAST = dict(CASES)  # of each family what cuts most
MARKED = [it if it[0] == "bert" or it in LAST.items() else pytest.param(*it, marks=pytest.mark.slow) for it in CASES]
BY = ["magnitude", "activations", "taylor"]


def test_what_fits_which_family() -> None:
    whole = {"bert", "roberta", "distilbert", "gpt2", "electra", "modernbert", "llama", "qwen3"}
    found = {what: {name for name, each in CASES if each == what} for what in SHARES}
    assert found == {
        "neurons": whole,
        "heads": {"llama", "qwen3"},
        "hidden": whole - {"modernbert"},
        "layers": whole - {"modernbert"},
        "heads and hidden": whole - {"electra"},
        "all": whole - {"electra", "modernbert"},
    }


@pytest.mark.parametrize(("name", "what"), MARKED)
def test_the_cut_student_is_the_masked_one(name: str, what: str, tmp_path: Path) -> None:
    """After training with gradual cuts by Taylor, and cut by the others: it loads without limbeck, and answers the same."""
    plain = model(name)
    for by in BY:
        change = Units(SHARES[what], GRADUAL if by == "taylor" else Cuts(), by, text)
        one = changed(plain, [change])
        for step in range(4 if by == "taylor" else 0):
            update(one, step)
        folded, small = one.folded()
        assert not small and folded.config.to_dict() | {"dtype": None} == change.shrunk(plain.config).to_dict() | {
            "dtype": None
        }
        folded.save_pretrained(tmp_path)
        kind = AutoModelForCausalLM if name in CAUSAL else AutoModelForMaskedLM
        loaded = kind.from_pretrained(tmp_path, dtype=torch.float64).eval()
        for mask in (None, MASK):
            there = loaded(IDS, attention_mask=mask).logits[MASK.bool()]
            here = one.model(IDS, attention_mask=mask).logits[MASK.bool()]
            torch.testing.assert_close(there, here, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "what"), [("bert", "hidden"), ("bert", "all"), ("gpt2", "all"), ("llama", "all"), ("modernbert", "heads and hidden")])  # fmt: skip
def test_training_is_that_of_the_cut_student(name: str, what: str) -> None:
    """Gradients, clipping, moments: masked and cut learn the same.

    Where the cut takes a factor into the queries their gradients are others, and so are AdamW's steps: there one update without
    clipping, of all but the queries.
    """
    left = left_in(changed(model(name), [Units(SHARES[what])]).model)
    assert left is not None
    narrower = left.sizes().head_width != 8
    masked = changed(model(name), [Units(SHARES[what])], clip=None if narrower else 0.1)
    cut = changed(masked.folded().model, [], clip=None if narrower else 0.1)
    for step in range(1 if narrower else 4):
        update(masked, step)
        update(cut, step)
    found, wanted = masked.folded().model, cut.model
    for (path, mine), theirs in zip(found.named_parameters(), wanted.parameters(), strict=True):
        if not (narrower and any(word in path for word in ("query", "c_attn", "q_lin"))):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9, msg=path)


@pytest.mark.parametrize("name", ["bert", "gpt2", "qwen3"])
@pytest.mark.parametrize("by", BY)
def test_what_is_cut_is_0_and_stays_cut(name: str, by: str) -> None:
    """At each update as many as the schedule says, all parameters and moments of theirs 0, none comes back."""
    change = Units(SHARES["all"], GRADUAL, by, text)
    one = changed(model(name), [change])
    before: dict[Any, Tensor] = {}
    for step in range(6):
        update(one, step)
        left = left_in(one.model)
        assert left is not None
        wanted = sizes.left_of(one.model.config, change.shares, change.cuts.progress(step + 1))
        assert (left.sizes().neurons, left.sizes().layers, left.sizes().heads) == (
            wanted.neurons,
            wanted.layers,
            wanted.heads,
        )
        assert left.sizes().hidden == wanted.hidden
        for parameter, mask in change.left(one.model).items():
            assert bool((parameter[~mask] == 0).all()) and not bool(
                (mask & ~before.get(parameter, torch.ones_like(mask))).any()
            )
            for slot in one.optimizer.state[parameter].values():
                assert slot.ndim == 0 or bool((slot[~mask] == 0).all())
            before[parameter] = mask.clone()
        assert change.ready(step + 1) == (step + 1 >= 4)
    once = {id(p) for p in before}
    bare = [n for n, p in one.model.named_parameters() if id(p) not in once]
    assert all("bias" in n or "rotary" in n or n.endswith(("q_norm.weight", "k_norm.weight")) for n in bare), bare


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_idle_neurons_go_first(name: str) -> None:
    """By every importance: those that do nothing; then nothing changes."""
    origin, gradient = model(name), "up gate" if name == "llama" else "up"
    for layer in range(3):
        silence(
            blocks(origin, layer), gradient, "down", list(range(layer, 48, 2)) if layer < 2 else list(range(12, 36))
        )
    for by in BY:
        one = changed(
            origin, [Units(Shares(neurons=0.5), Cuts(1, 1) if by == "taylor" else Cuts(), by, text)], rate=0.0
        )
        if by == "taylor":
            update(one, 0)
        torch.testing.assert_close(one.model(IDS).logits, origin(IDS).logits, rtol=0, atol=1e-10)


def test_a_layer_that_is_cut_passes_its_input_on() -> None:
    change = Units(Shares(layers=0.4))
    one = changed(model(), [change])
    left = left_in(one.model)
    assert left is not None and int(left["layers"].sum()) == 2
    gone = int((~left["layers"]).nonzero().item()) + 1
    taps = [f"hidden.{layer}" for layer in range(4)] + [f"probs.{gone}", f"query.{gone}"]
    read = Tapped(one.model, taps)({"input_ids": IDS, "attention_mask": MASK})
    for layer in range(1, 4):
        assert torch.equal(read[f"hidden.{layer}"], read[f"hidden.{layer - 1}"]) == (layer == gone)
    assert bool((read[f"query.{gone}"] == 0).all()), "whoever asks for its attention gets an answer"
    squares = [sum(p.detach().double().square().sum() for p in it.parameters() if p.ndim == 2) for it in stack(model())]
    assert gone - 1 == min(range(3), key=lambda layer: float(squares[layer]))


# importance, against loops


def test_taylor_by_loops() -> None:
    torch.manual_seed(0)
    weight, gradient = torch.randn(3, 4, 2).double(), torch.randn(3, 4, 2).double()
    for axis in (0, 1, 2, -1):
        wanted = [
            sum((w * g).item() ** 2 for w, g in zip(one.flatten(), other.flatten(), strict=True))
            for one, other in zip(weight.unbind(axis), gradient.unbind(axis), strict=True)
        ]
        assert taylor_importance(weight, gradient, axis).tolist() == pytest.approx(wanted, abs=1e-12)
    with pytest.raises(ValueError, match="gradients of shape"):
        taylor_importance(weight, gradient[0])


@pytest.mark.parametrize("name", ["bert", "gpt2", "modernbert"])
def test_taylor_of_the_units_of_a_model(name: str) -> None:
    one = model(name)
    one(IDS).logits.square().mean().backward()
    found = importance.taylor(one)
    grads = copy.deepcopy(one)
    with torch.no_grad():
        for mine, theirs in zip(grads.parameters(), one.parameters(), strict=True):
            mine.copy_((theirs * theirs.grad).square() if theirs.grad is not None else torch.zeros_like(mine))
    for layer in range(3):
        part = blocks(grads, layer)  # (w g)^2, by hand for each family
        neuron = (
            part["up"].sum(1)
            + part["down"].sum(0)
            + part.get("up.bias", 0)
            + (part["gate"].sum(1) if "gate" in part else 0)
        )
        context, query = part["o"].sum(0), part["q"].sum(1) + part.get("q.bias", 0)
        for axis, wanted in (("neuron", neuron), ("context", context), ("query", query)):
            torch.testing.assert_close(found.units[layer + 1][axis], wanted, rtol=1e-10, atol=0)
        whole = sum(p.sum() for p in stack(grads)[layer].parameters())
        torch.testing.assert_close(found.layers[layer], torch.as_tensor(whole), rtol=1e-10, atol=0)


def test_taylor_is_the_mean_over_updates() -> None:
    one = changed(model(), [Units(Shares(neurons=0.5), Cuts(3, 3), "taylor")], rate=0.0, clip=None)
    twin, sums = model(), torch.zeros(3, 48, dtype=torch.float64)
    for step in range(3):
        twin.zero_grad()
        logits = twin(IDS).logits
        (logits - target(step, logits)).square().mean().backward()
        found = importance.taylor(twin).units
        sums += torch.stack([found[layer]["neuron"] for layer in (1, 2, 3)])
        update(one, step)
    left = left_in(one.model)
    assert left is not None
    for layer in range(3):
        assert left["neuron"][layer].nonzero().flatten().tolist() == sorted(sums[layer].topk(24).indices.tolist())
    assert not bool(left["sum_neuron"].any()), "what was added up is used"


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_activations_by_loops(name: str) -> None:
    """Row by row without padding: what is asked of kept tokens alone, in evaluation mode."""
    one, row = model(name).train(), family(model(name).config.model_type)
    found = importance.activations(one, text)
    assert one.training
    one.eval()
    heads, seen = 4, {"neuron": torch.zeros(3, 48), "context": torch.zeros(3, 32), "cosine": torch.zeros(3)}
    paths = {roles: path for path, roles in row.layer_axes.items() if roles in ("hidden neuron", "hidden context")}
    tokens, held = 0, dict[Any, Tensor]()
    for ids, mask in zip(IDS, MASK, strict=True):
        held.clear()
        handles = []
        for number, layer in enumerate(stack(one)):
            for roles, path in paths.items():
                key = (number, roles.split()[1])
                handles.append(
                    layer.get_submodule(path).register_forward_pre_hook(
                        lambda m, a, key=key: held.update({key: a[0][0]})
                    )
                )
            handles.append(layer.register_forward_hook(lambda m, a, k, out, number=number: held.update({(number, "cosine"): torch.cosine_similarity((a[0] if a else k["hidden_states"])[0], out[0], dim=-1)}), with_kwargs=True))  # fmt: skip
        kept = int(mask.sum())
        with torch.no_grad():
            one(ids[None, :kept])
        for handle in handles:
            handle.remove()
        for (number, axis), states in held.items():
            seen[axis][number] += states.sum() if axis == "cosine" else states.abs().mean(0).square()
        tokens += kept
    for number in range(3):
        units = found.units[number + 1]
        torch.testing.assert_close(units["neuron"].float(), seen["neuron"][number].sqrt(), rtol=1e-4, atol=1e-5)
        head = seen["context"][number].view(heads, -1).sum(-1).sqrt()
        torch.testing.assert_close(units["head"].float(), head, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.layers.float(), 1 - seen["cosine"] / tokens, rtol=1e-3, atol=1e-5)


# what is said of the weights


@pytest.mark.parametrize("name", ["bert", "gpt2", "modernbert"])
def test_grids_factors_and_zeros_of_what_is_left(name: str) -> None:
    """Products of the factors that are left are the weights that are left; modules of layers that are gone are gone."""
    shares = (
        Shares(hidden=0.5, heads=0.5, neurons=0.5)
        if name == "modernbert"
        else Shares(hidden=0.25, neurons=0.5, layers=0.4)
    )
    one, row = model(name), family(name)
    change, small = Units(shares), Compressed()
    change.apply(one)
    for part in inherit.parts(one):
        module = part.name.removesuffix(".weight")
        if (
            part.axes
            and part.tensor.ndim == 2
            and part.name.endswith(".weight")
            and part.axes[0] not in ("position", "type")
        ):
            weight = part.tensor.detach()
            weight = weight.T if part.layer and row.transposed else weight
            up, size, down = torch.linalg.svd(weight, full_matrices=False)
            small.quantised[module] = Grid(8)
            small.factors[module] = (
                (up * size, down.T) if part.axes[0] == "vocab" else (down * size[:, None], up)
            )  # of a table [V, r] and [H, r]; of a matrix [r, in] and [out, r]
            small.pruned.append(module)
    student = change.fold(one, small)
    weights = {n.removesuffix(".weight"): p for n, p in student.named_parameters(remove_duplicate=False)}
    inside = f"{row.base}.{row.layers}."
    assert set(small.factors) == set(small.quantised) == set(small.pruned) and set(small.factors) <= set(weights)
    assert {n for n in weights if n.startswith(inside) and weights[n].ndim == 2 and "bias" not in n} <= set(
        small.factors
    )
    for module, (down, up) in small.factors.items():
        table = "vocab" in next(p.axes[0] for p in inherit.parts(student) if p.name == f"{module}.weight" and p.axes)
        product = down @ up.T if table else up @ down
        product = product.T if module.startswith(inside) and row.transposed else product
        torch.testing.assert_close(product, weights[module], rtol=0, atol=1e-10, msg=module)


def test_units_and_single_weights_and_rounded_ones_together() -> None:
    """In any order; what a quantiser made of the weights is what is exported."""

    class Rounded(torch.nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return fake_quantise(weight, 4)

    shares = Shares(hidden=0.25, neurons=0.5, layers=0.4)
    for changes in (
        [Units(shares, GRADUAL), Magnitude(GRADUAL, 0.5)],
        [Magnitude(GRADUAL, 0.5), Units(shares, GRADUAL)],
    ):
        begun = model()
        for layer in layers_of(begun).values():
            derived.derive(layer, Rounded())
        one = changed(begun, changes)
        for step in range(4):
            update(one, step)
        folded, small = one.folded()
        torch.testing.assert_close(folded(IDS).logits, one.model(IDS).logits, rtol=0, atol=1e-10)
        assert len(small.pruned) == 12 and {name.split(".")[3] for name in small.pruned} == {"0", "1"}
        assert len(folded.get_submodule("bert.encoder.layer")._modules) == 2
        for name in small.pruned:
            assert all(row.unique().numel() <= 16 for row in folded.get_submodule(name).weight)


def test_two_changes_that_cut_different_units() -> None:
    one = changed(
        model(), [Units(Shares(neurons=0.5), GRADUAL), Units(Shares(hidden=0.25, layers=0.4), Cuts(2, 2), "taylor")]
    )
    for step in range(5):
        update(one, step)
    folded = one.folded().model
    said = folded.config
    assert (said.hidden_size, said.num_hidden_layers, said.intermediate_size) == (24, 2, 24)
    torch.testing.assert_close(folded(IDS).logits, one.model(IDS).logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CONFIGS)
def test_cuts_on_the_way_can_be_exported_too(name: str) -> None:
    """Every size that the schedule passes is one that the family's config can say."""
    for what in [each for each, case in ((w, n) for n, w in CASES) if case == name]:
        config = tiny(name).config
        last = sizes.left_of(config, Shares())
        for progress in range(21):
            found = sizes.between(config, min, last, sizes.left_of(config, SHARES[what], progress / 20))
            assert found.heads % found.kv_heads == 0 and min(found.layers, found.neurons, found.hidden) > 0
            assert getattr(config, "head_dim", None) or found.hidden == found.heads * found.head_width
            last = found
        assert last == sizes.left_of(config, SHARES[what])


REFUSED = [
    (
        "bert",
        Shares(heads=0.5),
        "heads: the config of bert models has no width of a head, and 2 heads of 8 do not fill 32",
    ),
    ("modernbert", Shares(hidden=0.5), "hidden: positions turn .* give heads the same share as hidden"),
    ("modernbert", Shares(layers=0.5), "layers: those of this modernbert model differ in how far they see"),
    ("electra", Shares(hidden=0.5), "hidden: 16 hidden units are as many as the embedding has"),
    ("bert", Shares(neurons=0.01), "neurons: 0.01 of 48 neurons is none; set it to 0.03 or more"),
    ("bert", Shares(layers=0.3), r"layers: 0.3 of 3 layers is none; set it to 0.34 or more"),
    ("llama", Shares(heads=0.25), "heads: 0.25 of 2 query heads of a key head is none; set it to 0.5 or more"),
    ("bert", Shares(hidden=0.1), "hidden: 0.1 of 32 hidden is none; set it to 0.13 or more"),
]


@pytest.mark.parametrize(("name", "shares", "message"), REFUSED)
def test_shares_that_no_config_can_say(name: str, shares: Shares, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sizes.require(tiny(name).config, shares)
