"""From text to batches: corpora -> tokens -> packed, memory-mapped blocks -> batches.

| module | what it holds |
|---|---|
| `block_feed` | Batches of packed blocks. |
| `blocks` | Packed text: a corpus becomes two memory-mapped streams of tokens, cut into blocks when they are read. |
| `corpora` | Where text lies, and how it is read. |
| `docs` | The embedded corpus `docs`: the English prose of the documentation that every installation already has. |
| `feed` | Batches as pure functions of (seed, step): no state, no queue, nothing to save in a checkpoint. |
| `heldout` | Which documents, or rows, are held out: by a hash of each, so that no text is on both sides. |
| `labels` | Labels of a task: what stands in a file becomes the number of a class, or a score. |
| `masking` | BERT's masking of the input (Devlin et al., 2018, section 3.1) as a pure function of random numbers. |
| `mixed_feed` | Batches that hold fixed shares of rows of other texts, spread evenly among those of the first one. |
| `order` | Random numbers and orders as pure functions of (seed, purpose), found without drawing any earlier ones. |
| `readers` | Readers of one file, or of one data set of the Hub, document by document or row by row. |
| `row_feed` | Batches of task rows as pure functions of (seed, step), padded to their longest row, or to a length. |
| `rows` | Rows of a task: labelled texts, or pairs of them, become memory-mapped rows of tokens, each as long as it is. |
| `tables` | Rows of tables: lines become fields, fields get the names of their columns, and a recipe's keys pick among them. |
| `tokenise` | Text to ids: the tokenizer's special tokens, and the proof that teacher and student read the same ids. |
| `unchanged` | Whether a text is still the one that a finished run read, without tokenising it, and without asking the Hub. |
| `augment/` | Copies of rows with words replaced. |
"""
