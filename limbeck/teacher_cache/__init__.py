"""Teachers' answers on disk.

| module | what it holds |
|---|---|
| `cached` | A fixed teacher whose answers lie on the disk. |
| `packing` | What a teacher said, in few bytes: its k most probable tokens, and hidden states of 8 or 16 bits. |
| `shards` | Shards of the teacher cache: the answers to some hundred rows of text in a folder, one file for each tensor. |
| `shelf` | The teacher cache: what fixed teachers answer to the training text, written once and read by block. |
"""
