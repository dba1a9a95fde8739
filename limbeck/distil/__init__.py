"""The cast, its lessons, the one training step.

| module | what it holds |
|---|---|
| `actors` | Actors: whoever answers a batch. One protocol, so that the step, the checkpoint and the manifest ask nobody what he is. |
| `balance` | Balance: how the terms of one student are weighed against each other, beside the weights that the recipe states. |
| `contrastive` | The memory bank of contrastive distillation (CRD, Tian et al. 2019, arXiv 1910.10699), and its two embeddings. |
| `learner` | `Learner`: a student, or a model that learns from labels alone, with optimizer, schedule and clipping of its own. |
| `lessons` | Lessons: who learns from whom, by which weighted terms. Plain values. |
| `paraphraser` | Factor transfer's modules (Kim et al. 2018, arXiv 1802.04977), for tokens in place of pixels. |
| `probe` | The probe: value and gradient of every term for itself, over a whole optimizer step. |
| `projections` | Projections: linear layers without activation from the student's width to the teacher's. |
| `reduce` | The only masking and averaging: from one value per token to the number that a step adds up. |
| `result` | What one step measured of one student, and whether it may change its weights. |
| `schedules` | Schedules: functions from the step (counted from 0) to a number. |
| `schemes` | Schemes: who teaches whom. A scheme is a cast and its lessons, a value made by a short function, never a trainer. |
| `still` | The still: a cast, its lessons, and the one training step: generate, forward, logit losses, backward. |
| `teachers` | Who teaches: fixed models, with or without dropout, ensembles of them, and averages of a student. |
"""
