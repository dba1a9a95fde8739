"""Random students of an origin, and the parts of layers, by hand for each family."""

from __future__ import annotations

from typing import Any

import torch
from families import tiny
from torch import Tensor

from limbeck.families import family
from limbeck.models import students
from limbeck.recipe import models


def model(name: str, dtype: torch.dtype = torch.float64) -> Any:
    return tiny(name, dtype=dtype)


def heir(origin: Any, dtype: torch.dtype = torch.float64, **said: Any) -> Any:
    """A random student of an origin."""
    config = students.shape(models.Student(init="teacher", **said), origin.config)
    student: Any = students.build(config, seed=1).eval()
    return student.to(dtype)


def blocks(model: Any, layer: int) -> dict[str, Tensor]:
    """The matrices of a layer as views [out, in] that can be written, and their biases as `q.bias`, by hand for each family."""
    kind = model.config.model_type
    path = f"{family(kind).base}.{family(kind).layers}.{layer}."
    w = {name.removeprefix(path): p.detach() for name, p in model.named_parameters() if name.startswith(path)}
    if kind == "modernbert":
        q, k, v = w["attn.Wqkv.weight"].chunk(3)
        up, gate = w["mlp.Wi.weight"].chunk(2)
        return {"q": q, "k": k, "v": v, "o": w["attn.Wo.weight"], "up": up, "gate": gate, "down": w["mlp.Wo.weight"]}
    if kind == "gpt2":
        q, k, v = w["attn.c_attn.weight"].T.chunk(3)
        biases = dict(zip(("q.bias", "k.bias", "v.bias"), w["attn.c_attn.bias"].chunk(3), strict=True))
        found = {"q": q, "k": k, "v": v, "o": w["attn.c_proj.weight"].T, **biases, "o.bias": w["attn.c_proj.bias"]}
        rest = {"up": w["mlp.c_fc.weight"].T, "up.bias": w["mlp.c_fc.bias"], "down": w["mlp.c_proj.weight"].T}
        return found | rest
    names = {
        "distilbert": "attention.q_lin attention.k_lin attention.v_lin attention.out_lin ffn.lin1 ffn.lin2",
        "llama": "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj mlp.up_proj mlp.down_proj mlp.gate_proj",
        "bert": "attention.self.query attention.self.key attention.self.value attention.output.dense intermediate.dense output.dense",
    }
    names |= {"qwen3": names["llama"], "roberta": names["bert"], "electra": names["bert"]}
    found = {}
    for short, name in zip(("q", "k", "v", "o", "up", "down", "gate"), names[kind].split(), strict=False):
        found[short] = w[f"{name}.weight"]
        if f"{name}.bias" in w:
            found[f"{short}.bias"] = w[f"{name}.bias"]
    return found


def silence(found: dict[str, Tensor], outs: str, ins: str, units: list[int]) -> None:
    """Zeroes units: rows and biases of what gives them, columns of what reads them."""
    for name in outs.split():
        for key in {name, f"{name}.bias"} & set(found):
            found[key][units] = 0
    for name in ins.split():
        found[name][:, units] = 0
