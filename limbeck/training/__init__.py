"""The loop, and what is kept of it.

| module | what it holds |
|---|---|
| `best` | The weights of a student that were best on held-out data, and when a student has waited long enough for better ones. |
| `checkpoint` | Checkpoints: committed whole or not at all, of safetensors and JSON alone. |
| `export` | Finished students as plain Hugging Face folders: weights, config, tokenizer, model card. Projections stay behind. |
| `loop` | The training loop. It is blind: it moves batches to stills and records to hooks, and knows no teacher and no scheme. |
"""
