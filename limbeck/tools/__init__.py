"""Commands on any model folder.

| module | what it holds |
|---|---|
| `evaluate_model` | What a model folder reaches on held-out text or rows: the metrics of its task, or how well it predicts words. |
| `export` | `limbeck export`: a student as a file for another runtime, held against the model in memory before it is believed. |
| `parity` | Whether an exported file answers as the model in memory: on which text, and by how much they differ. |
| `profile` | `limbeck profile`: model folders side by side. |
| `sensitivity` | `limbeck sensitivity`: which layers of a model folder are better left as they are when it is quantised. |
| `trim` | A model with a smaller vocabulary: its most frequent tokens, and the rows of its embedding and output that belong to them. |
| `trim_tokenizer` | A smaller vocabulary for a tokenizer: which tokens stay, and the tokenizer with these alone. |
| `formats/` | Formats of files that a student is exported to, and what they are held against. |
"""
