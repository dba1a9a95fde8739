"""What a terminal shows of a run.

| module | what it holds |
|---|---|
| `profiles` | A profile as a table in the terminal: quantities down, models across, each with its ratio to the first. |
| `results` | What a terminal shows of a finished run: the verdict in words, the table of results, the verdicts in numbers. |
| `sensitivities` | Sensitivities as a table in the terminal: layers down, the most sensitive first, and the line for the recipe. |
| `watch` | A run while it goes on, in the terminal: how far it is, how fast, and a curve for each student. |
"""
