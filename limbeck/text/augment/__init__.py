"""Copies of rows with words replaced.

| module | what it holds |
|---|---|
| `augmented_rows` | Rows of a task with their augmented copies, as memory-mapped rows of tokens. |
| `copies` | Copies of rows with some words replaced, and where it is kept what may stand in the place of which word. |
| `proposals` | What may stand in the place of the words of a text, as TinyBERT augments its data (arXiv 1909.10351, algorithm 1). |
| `word_vectors` | Words as vectors, and the words nearest to one: from a file in GloVe's format, or from any matrix of embeddings. |
"""
