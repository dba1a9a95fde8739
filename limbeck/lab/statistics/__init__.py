"""Means over seeds and documents, and verdicts.

| module | what it holds |
|---|---|
| `documents` | How a mean varies over documents: told beside a verdict, which it does not make. |
| `outcomes` | The outcome of a run: every measure by setting and seed, and the verdicts on its pairs of settings. |
| `verdicts` | Verdicts on pairs of settings, from one value per setting and seed. |
"""
