"""The whole idea of limbeck in one flat script: no abstraction, nothing of limbeck but its embedded teacher.

A student learns from a teacher by four losses (TinyBERT, arXiv 1909.10351; Hinton, arXiv 1503.02531):
predictions, embeddings, hidden states and attention scores. What limbeck adds is everything around this page: packed
text, chunked logits, exact accumulation, several students at once, evaluation, checkpoints, a report.

    python examples/bare_loop.py 50
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM

import limbeck

STEPS, ROWS, LENGTH = int(sys.argv[1]) if len(sys.argv) > 1 else 50, 16, 128
LAYERS = {1: 2, 2: 4, 3: 6}  # student layer <- teacher layer

folder = Path(limbeck.__file__).parent / "data" / "embedded"
tokenizer = AutoTokenizer.from_pretrained(folder)
text = " ".join(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parents[1].glob("**/*.md")))
ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

teacher = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
teacher.requires_grad_(False)
torch.manual_seed(0)
config = BertConfig(
    vocab_size=teacher.config.vocab_size,
    hidden_size=128,
    num_hidden_layers=3,
    num_attention_heads=8,
    intermediate_size=512,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
student = BertForMaskedLM(config)
projections = torch.nn.ModuleList(torch.nn.Linear(128, teacher.config.hidden_size) for _ in range(4))
optimizer = torch.optim.AdamW([*student.parameters(), *projections.parameters()], lr=1e-3)


# fast attention does not hand out its scores q.k / sqrt(d), so listen to what it is given
scores, attend = [], F.scaled_dot_product_attention


def listening(q, k, v, **how):
    scores.append(q @ k.transpose(-1, -2) * how["scale"])
    return attend(q, k, v, **how)


F.scaled_dot_product_attention = listening

for step in range(STEPS):
    starts = torch.randint(len(ids) - LENGTH, (ROWS,))
    batch = torch.stack([ids[start : start + LENGTH] for start in starts])
    masked = torch.rand(batch.shape) < 0.15
    batch = torch.where(masked, tokenizer.mask_token_id, batch)

    scores.clear()
    with torch.no_grad():
        t = teacher(batch, output_hidden_states=True)
    t_scores = list(scores)
    scores.clear()
    s = student(batch, output_hidden_states=True)

    log_t, log_s = t.logits[masked].log_softmax(-1), s.logits[masked].log_softmax(-1)
    logit = (log_t.exp() * (log_t - log_s)).sum(-1).mean()
    embedding = F.mse_loss(projections[0](s.hidden_states[0]), t.hidden_states[0])
    hidden = sum(F.mse_loss(projections[i](s.hidden_states[i]), t.hidden_states[j]) for i, j in LAYERS.items())
    attention = sum(F.mse_loss(scores[i - 1], t_scores[j - 1]) for i, j in LAYERS.items())
    loss = logit + embedding + hidden + 0.1 * attention

    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    if step % 10 == 0 or step == STEPS - 1:
        print(
            f"step {step:3}  logit {logit:.3f}  embedding {embedding:.3f}  hidden {hidden:.3f}  attention {attention:.3f}"
        )
