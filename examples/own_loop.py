"""limbeck's taps and losses in a training loop of one's own.

python examples/own_loop.py 20
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM

import limbeck
from limbeck import Tapped
from limbeck.losses import LOSSES

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 20
folder = Path(limbeck.__file__).parent / "data" / "embedded"
tokenizer = AutoTokenizer.from_pretrained(folder)
sentences = [
    "A limbeck is an old word for a still.",
    "The teacher reads every batch once, for all of its students together.",
    "What no term asks for is not computed.",
]
batch = tokenizer(sentences, padding=True, return_tensors="pt")
kept = batch["attention_mask"].bool()

model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
teacher = Tapped(model, ["hidden.4", "scores.4", "logits"])

torch.manual_seed(0)
config = BertConfig(
    vocab_size=model.config.vocab_size,
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=8,
    intermediate_size=512,
)
student_model = BertForMaskedLM(config)
student = Tapped(student_model, ["hidden.1", "scores.1", "logits"])
projection = torch.nn.Linear(128, 256)
optimizer = torch.optim.AdamW([*student_model.parameters(), *projection.parameters()], lr=1e-3)

for step in range(STEPS):
    with torch.no_grad():
        t = teacher(batch)
    s = student(batch)
    terms = {
        "logit": LOSSES["forward_kl"](student=s["logits"], teacher=t["logits"], temperature=2.0),
        "hidden": LOSSES["mse"](student=projection(s["hidden.1"]), teacher=t["hidden.4"]),
        "attention": LOSSES["attention_scores_mse"](
            student=s["scores.1"], teacher=t["scores.4"], mask=s.visible("scores.1")
        ),
    }
    loss = torch.stack([values[kept].mean() for values in terms.values()]).sum()  # padding is left out here
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step:2}  " + "  ".join(f"{name} {values[kept].mean():.3f}" for name, values in terms.items()))
