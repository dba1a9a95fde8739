"""Commands on any model folder.

| module | what it holds |
|---|---|
| `evaluate_model` | What a model folder reaches on held-out text or rows: the metrics of its task, or how well it predicts words. |
| `profile` | `limbeck profile`: model folders side by side. |
| `trim` | A model with a smaller vocabulary: its most frequent tokens, and the rows of its embedding and output that belong to them. |
| `trim_tokenizer` | A smaller vocabulary for a tokenizer: which tokens stay, and the tokenizer with these alone. |
"""
