"""Inheritance against slices written out by hand, parameter by parameter, for four families."""

from __future__ import annotations

from typing import Any

import torch
from heirs import blocks, heir, model
from torch import Tensor

from limbeck.models.inherit import inherit


def heaviest(scores: list[float], count: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda unit: -scores[unit])[:count])


def square(*pieces: Tensor) -> float:
    return sum(float(x) ** 2 for piece in pieces for x in piece.flatten())


def units_by_hand(origin: Any, around: list[Tensor], layer_count: int = 3) -> tuple[Any, Any, Any]:
    """Hidden units, and for each layer heads and neurons; `around`: what stands outside of the layers, [., hidden]."""
    found = [blocks(origin, layer) for layer in range(layer_count)]
    scores = []
    for unit in range(32):
        reads = [f[n][:, unit] for f in found for n in ("q", "k", "v", "up", "gate") if n in f]
        writes = [f[n][unit] for f in found for n in ("o", "down")]
        scores.append(square(*reads, *writes, *(table[:, unit] for table in around)))
    heads, neurons = [], []
    for f in found:
        of = [slice(8 * head, 8 * head + 8) for head in range(4)]
        heads.append(heaviest([square(f["q"][s], f["k"][s], f["v"][s], f["o"][:, s]) for s in of], 2))
        wide = [[f[n][unit] for n in ("up", "gate") if n in f] + [f["down"][:, unit]] for unit in range(48)]
        neurons.append(heaviest([square(*w) for w in wide], 20))
    return heaviest(scores, 16), heads, neurons


def test_bert_by_hand() -> None:
    origin = model("bert")
    w = {name: p.detach() for name, p in origin.named_parameters()}
    e, t = "bert.embeddings.", "cls.predictions.transform."
    tables = [w[f"{e}{n}_embeddings.weight"] for n in ("word", "position", "token_type")]
    hidden, heads, neurons = units_by_hand(origin, [*tables, w[f"{t}dense.weight"], w[f"{t}dense.weight"].T])
    student = heir(origin, hidden=16, heads=2, intermediate=20)
    inherit(student, origin, "uniform")
    got = {name: p.detach() for name, p in student.named_parameters()}
    for n in ("word", "position", "token_type"):
        want = {f"{e}{n}_embeddings.weight": w[f"{e}{n}_embeddings.weight"][:, hidden]}
        assert all(torch.equal(got.pop(k), v) for k, v in want.items())
    for n in (
        f"{e}LayerNorm.weight",
        f"{e}LayerNorm.bias",
        f"{t}dense.bias",
        f"{t}LayerNorm.weight",
        f"{t}LayerNorm.bias",
    ):
        assert torch.equal(got.pop(n), w[n][hidden]), n
    assert torch.equal(got.pop(f"{t}dense.weight"), w[f"{t}dense.weight"][hidden][:, hidden])
    assert torch.equal(got.pop("cls.predictions.bias"), w["cls.predictions.bias"])
    for layer in range(3):
        p, n = f"bert.encoder.layer.{layer}.", neurons[layer]
        units = [8 * head + place for head in heads[layer] for place in range(8)]
        for part in ("query", "key", "value"):
            name = f"{p}attention.self.{part}."
            assert torch.equal(got.pop(f"{name}weight"), w[f"{name}weight"][units][:, hidden])
            assert torch.equal(got.pop(f"{name}bias"), w[f"{name}bias"][units])
        for name, ins in ((f"{p}attention.output.dense", units), (f"{p}output.dense", n)):
            assert torch.equal(got.pop(f"{name}.weight"), w[f"{name}.weight"][hidden][:, ins])
            assert torch.equal(got.pop(f"{name}.bias"), w[f"{name}.bias"][hidden])
        assert torch.equal(got.pop(f"{p}intermediate.dense.weight"), w[f"{p}intermediate.dense.weight"][n][:, hidden])
        assert torch.equal(got.pop(f"{p}intermediate.dense.bias"), w[f"{p}intermediate.dense.bias"][n])
        for name in (f"{p}attention.output.LayerNorm", f"{p}output.LayerNorm"):
            assert torch.equal(got.pop(f"{name}.weight"), w[f"{name}.weight"][hidden])
            assert torch.equal(got.pop(f"{name}.bias"), w[f"{name}.bias"][hidden])
    assert not got, "nothing is left"


def test_gpt2_by_hand() -> None:
    origin = model("gpt2")
    w = {name: p.detach() for name, p in origin.named_parameters()}
    around = [w["transformer.wte.weight"], w["transformer.wpe.weight"]]
    hidden, heads, neurons = units_by_hand(origin, around)
    student = heir(origin, hidden=16, heads=2, intermediate=20)
    inherit(student, origin, "uniform")
    got = {name: p.detach() for name, p in student.named_parameters()}
    assert torch.equal(got.pop("transformer.wte.weight"), around[0][:, hidden])
    assert torch.equal(got.pop("transformer.wpe.weight"), around[1][:, hidden])
    for layer in range(3):
        p, n = f"transformer.h.{layer}.", neurons[layer]
        units = [8 * head + place for head in heads[layer] for place in range(8)]
        fused = [part * 32 + unit for part in range(3) for unit in units]
        assert torch.equal(got.pop(f"{p}attn.c_attn.weight"), w[f"{p}attn.c_attn.weight"][hidden][:, fused])
        assert torch.equal(got.pop(f"{p}attn.c_attn.bias"), w[f"{p}attn.c_attn.bias"][fused])
        assert torch.equal(got.pop(f"{p}attn.c_proj.weight"), w[f"{p}attn.c_proj.weight"][units][:, hidden])
        assert torch.equal(got.pop(f"{p}mlp.c_fc.weight"), w[f"{p}mlp.c_fc.weight"][hidden][:, n])
        assert torch.equal(got.pop(f"{p}mlp.c_fc.bias"), w[f"{p}mlp.c_fc.bias"][n])
        assert torch.equal(got.pop(f"{p}mlp.c_proj.weight"), w[f"{p}mlp.c_proj.weight"][n][:, hidden])
    for name in list(got):
        assert torch.equal(got.pop(name), w[name][hidden]), name
    assert student.lm_head.weight is student.transformer.wte.weight


def test_llama_by_hand() -> None:
    """Both tables count, which are not tied; of two groups of two heads one group is left."""
    origin = model("llama")
    w = {name: p.detach() for name, p in origin.named_parameters()}
    around = [w["model.embed_tokens.weight"], w["lm_head.weight"]]
    found = [blocks(origin, layer) for layer in range(3)]
    hidden, neurons = units_by_hand_grouped(found, around)
    student = heir(origin, hidden=16, heads=2, kv_heads=1, intermediate=20)
    inherit(student, origin, "uniform")
    got = {name: p.detach() for name, p in student.named_parameters()}
    assert torch.equal(got.pop("model.embed_tokens.weight"), around[0][:, hidden])
    assert torch.equal(got.pop("lm_head.weight"), around[1][:, hidden])
    for layer, f in enumerate(found):
        p, n = f"model.layers.{layer}.", neurons[layer]
        of = [(slice(16 * g, 16 * g + 16), slice(8 * g, 8 * g + 8)) for g in range(2)]
        ((query, key),) = (
            of[g] for g in heaviest([square(f["q"][q], f["k"][k], f["v"][k], f["o"][:, q]) for q, k in of], 1)
        )
        assert torch.equal(got.pop(f"{p}self_attn.q_proj.weight"), f["q"][query][:, hidden])
        assert torch.equal(got.pop(f"{p}self_attn.k_proj.weight"), f["k"][key][:, hidden])
        assert torch.equal(got.pop(f"{p}self_attn.v_proj.weight"), f["v"][key][:, hidden])
        assert torch.equal(got.pop(f"{p}self_attn.o_proj.weight"), f["o"][hidden][:, query])
        assert torch.equal(got.pop(f"{p}mlp.gate_proj.weight"), f["gate"][n][:, hidden])
        assert torch.equal(got.pop(f"{p}mlp.up_proj.weight"), f["up"][n][:, hidden])
        assert torch.equal(got.pop(f"{p}mlp.down_proj.weight"), f["down"][hidden][:, n])
    for name in list(got):
        assert torch.equal(got.pop(name), w[name][hidden]), name


def units_by_hand_grouped(found: list[dict[str, Tensor]], around: list[Tensor]) -> tuple[list[int], list[list[int]]]:
    hidden = [
        square(
            *(f[n][:, unit] for f in found for n in ("q", "k", "v", "up", "gate")),
            *(f[n][unit] for f in found for n in ("o", "down")),
            *(table[:, unit] for table in around),
        )
        for unit in range(32)
    ]
    neurons = [heaviest([square(f["up"][u], f["gate"][u], f["down"][:, u]) for u in range(48)], 20) for f in found]
    return heaviest(hidden, 16), neurons


def test_modernbert_by_hand() -> None:
    origin = model("modernbert")
    w = {name: p.detach() for name, p in origin.named_parameters()}
    table, dense = w["model.embeddings.tok_embeddings.weight"], w["head.dense.weight"]
    hidden, heads, neurons = units_by_hand(origin, [table, dense, dense.T])
    student = heir(origin, hidden=16, heads=2, intermediate=20)
    inherit(student, origin, "uniform")
    got = {name: p.detach() for name, p in student.named_parameters()}
    assert torch.equal(got.pop("model.embeddings.tok_embeddings.weight"), table[:, hidden])
    assert torch.equal(got.pop("head.dense.weight"), dense[hidden][:, hidden])
    assert torch.equal(got.pop("decoder.bias"), w["decoder.bias"])
    for layer in range(3):
        p, n = f"model.layers.{layer}.", neurons[layer]
        units = [8 * head + place for head in heads[layer] for place in range(8)]
        fused = [part * 32 + unit for part in range(3) for unit in units]
        gated = [half * 48 + unit for half in range(2) for unit in n]
        assert torch.equal(got.pop(f"{p}attn.Wqkv.weight"), w[f"{p}attn.Wqkv.weight"][fused][:, hidden])
        assert torch.equal(got.pop(f"{p}attn.Wo.weight"), w[f"{p}attn.Wo.weight"][hidden][:, units])
        assert torch.equal(got.pop(f"{p}mlp.Wi.weight"), w[f"{p}mlp.Wi.weight"][gated][:, hidden])
        assert torch.equal(got.pop(f"{p}mlp.Wo.weight"), w[f"{p}mlp.Wo.weight"][hidden][:, n])
    for name in list(got):
        assert torch.equal(got.pop(name), w[name][hidden]), name
