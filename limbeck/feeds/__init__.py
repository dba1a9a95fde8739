"""From text to batches: corpora -> tokens -> packed, memory-mapped blocks -> batches.

| module | what it knows |
|---|---|
| `corpora` | where text lies, and which documents are held out |
| `readers` | one file, or one data set of the Hub, as documents |
| `docs` | the embedded corpus |
| `tokenise` | tokenizers: their special tokens, whether two of them agree, text -> ids |
| `store` | the cache on disk: folders written whole or not at all |
| `blocks` | packing: `prepare(data, teacher_tokenizer, student_tokenizer) -> Corpus` |
| `order` | random numbers that are functions of (seed, purpose), and the order of the blocks |
| `masking` | BERT's masking |
| `feed` | `Feed.batch(step)`: the only module here that imports torch |
"""
