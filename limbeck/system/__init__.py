"""The machine: files, processes, memory, signals, random streams.

| module | what it holds |
|---|---|
| `clock` | Durations: by a clock that nobody sets, and never below zero if it is set all the same. |
| `environment` | What a run depends on besides its recipe: versions, machine, memory manager. |
| `files` | Files written whole or not at all, JSON, hashes, room on a disk; what a path of a user means. |
| `hub` | What the Hub says of a name: asked once in a process, and never for long. No torch. |
| `leftovers` | Folders that are being filled: whoever fills one holds a lock on it, which ends with the process, so what the dead left is known. |
| `locks` | One run for a directory: a lock of the operating system, which ends with the process that holds it, however that ends. |
| `out_of_memory` | Shortage of memory: what says so, and batches in smaller parts. |
| `precision` | What `train.precision: auto` becomes: bf16 where the device multiplies it faster than fp32, elsewhere fp32. Never fp16. |
| `processes` | The processes of a run and what they add up together. Accelerate places and launches; nothing is wrapped. |
| `progress` | What a command does now, on standard error: on a terminal a bar, elsewhere a plain line every few seconds. |
| `seeds` | Random streams by name: every random number of a run is a function of its seed and of what it is for. |
| `signals` | SIGINT and SIGTERM: during training they wait for the end of the step, elsewhere they end the command where it stands. |
| `store` | A cache of folders: each is written whole or not at all, and its bytes are checked when it is opened. |
"""
