"""From text to batches: corpora -> tokens -> packed, memory-mapped blocks -> batches.

| module | what it knows |
|---|---|
| `corpora` | where text lies, and which documents or rows are held out |
| `readers` | one file, or one data set of the Hub, as documents or rows |
| `tables` | lines of .tsv and .csv as rows, and the columns that a recipe asks for |
| `docs` | the embedded corpus |
| `tokenise` | tokenizers: their special tokens, whether two of them agree, text -> ids |
| `store` | the cache on disk: folders written whole or not at all |
| `leftovers` | folders that are being filled, and those whose writers are dead |
| `blocks` | packing: `prepare(data, teacher_tokenizer, student_tokenizer) -> Corpus` |
| `labels` | labels as numbers of classes, or as scores |
| `tasks` | rows in place of running text: `prepare_task(data, teacher_tokenizer, student_tokenizer) -> TaskCorpus` |
| `order` | random numbers that are functions of (seed, purpose), and the order of the blocks |
| `masking` | BERT's masking |
| `feed` | `Feed.batch(step)`: packed blocks; this module and the two below are the only ones that import torch |
| `taskfeed` | `TaskFeed.batch(step)`: rows of a task, padded |
| `mixed` | `Mixed.batch(step)`: a fixed share of every batch without labels |
"""
