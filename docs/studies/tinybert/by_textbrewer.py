"""The two stages by TextBrewer's `GeneralDistiller`: same teacher, same first weights, same rows in the same order, as many updates.

    python docs/studies/tinybert/by_textbrewer.py OUT RECIPE KEY=VALUE ...

RECIPE and the words after it are those of `limbeck run two-stage.yaml ...` (its setting `full`). Each seed's student goes to OUT/seed0
and so on; `limbeck eval OUT/seed0 --task RECIPE KEY=VALUE ...` measures it. fp32, which is all that TextBrewer has without apex.
TextBrewer's own losses: `hidden_mse` and `attention_mse` with its mask, attention as transformers gives it, by eager attention.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from transformers import get_linear_schedule_with_warmup

from limbeck.assemble import design
from limbeck.assemble.study import build_study
from limbeck.assemble.text import augmented, read_text
from limbeck.models.pretrained import model_of
from limbeck.recipe import stages
from limbeck.recipe.recipe import Recipe
from limbeck.system.processes import World

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
ASKED = {"output_hidden_states": True, "output_attentions": True}


def adaptor(batch: dict[str, torch.Tensor], outputs: Any) -> dict[str, Any]:
    """What TextBrewer compares."""
    return {
        "logits": outputs.logits,
        "hidden": outputs.hidden_states,
        "attention": outputs.attentions,
        "inputs_mask": batch["attention_mask"],
    }


def of_layers(student: Any, teacher: Any) -> DistillationConfig:
    """The stage of the layers: embedding, hidden states and attention of layer i from layer 2 i."""
    ratio = teacher.config.num_hidden_layers // student.config.num_hidden_layers
    widen = ["linear", student.config.hidden_size, teacher.config.hidden_size]
    depth = range(student.config.num_hidden_layers + 1)
    matches: list[dict[str, Any]] = [
        {"layer_T": ratio * i, "layer_S": i, "feature": "hidden", "loss": "hidden_mse", "weight": 1, "proj": [*widen]}
        for i in depth
    ]
    matches += [
        {"layer_T": ratio * i - 1, "layer_S": i - 1, "feature": "attention", "loss": "attention_mse", "weight": 1}
        for i in depth[1:]
    ]
    return DistillationConfig(temperature=1, kd_loss_weight=0, hard_label_weight=0, intermediate_matches=matches)


def train(student: Any, teacher: Any, feed: Any, one: Recipe, how: DistillationConfig, out: Path) -> None:
    """One stage."""
    rate, steps = one.train.lr, one.train.steps
    training = TrainingConfig(device="cpu", ckpt_steps=1 << 40, output_dir=str(out / "log"))
    distiller = GeneralDistiller(training, how, teacher, student, adaptor, adaptor)
    optimizer = torch.optim.AdamW(student.parameters(), lr=rate, weight_decay=one.train.weight_decay)
    batches = ({name: row for name, row in feed.batch(step).items() if name in INPUTS} for step in range(steps))
    schedule = {"num_warmup_steps": one.train.warmup_steps, "num_training_steps": steps}
    with distiller:
        distiller.train(
            optimizer,
            batches,
            num_steps=steps,
            scheduler_class=get_linear_schedule_with_warmup,
            scheduler_args=schedule,
            max_grad_norm=1.0,
            **ASKED,
        )


def main(out: Path, path: str, overrides: list[str]) -> None:
    """All seeds."""
    first, second = stages.expand(path, [*overrides, "only=full"])
    torch.set_num_threads(first.train.threads or torch.get_num_threads())
    plan = design.design(first)
    material = augmented(plan, World(), read_text(plan, print), print)
    study = build_study(plan, World(), material)
    teacher = model_of(first.models.members[0], torch.float32, config=plan.teacher)
    for learner in study.learners:
        student = learner.model
        for model in (teacher.eval(), student):
            model.set_attn_implementation("eager")
        feed = study.feeds[learner.seed]
        train(student, teacher, feed, first, of_layers(student, teacher), out)
        train(student, teacher, feed, second, DistillationConfig(temperature=1, hard_label_weight=0), out)
        student.save_pretrained(out / f"seed{learner.seed}")
        plan.student_tokenizer.save_pretrained(out / f"seed{learner.seed}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
