"""Run directories as values.

| module | what it holds |
|---|---|
| `capacity` | Capacity ladders: students of several sizes, each learning from teachers of several sizes, out of runs that are joined. |
| `curves` | Curves over training: mean and range over the seeds, running means. Arrays in, arrays out. |
| `evaluated` | Lines of evals.jsonl: the last evaluation of all students, and the loss that a line tells. |
| `joined` | Several run directories as one: the arms of a study, or whatever runs are to be compared on one page. |
| `reasons` | Reads reasons.jsonl: why one setting beats another. |
| `run` | Reads a run directory into a value: manifest, recipe, metrics and evaluations as numpy columns. |
"""
