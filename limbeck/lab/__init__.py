"""What a run left behind: numbers, figures, report. Reads run directories only and imports no torch.

| module | what it holds |
|---|---|
| `names` | How the numbers of a run are called: text or rows, nats or squared errors, and the metrics of a task. |
| `numbers` | Numbers as people read them, and the spread of one quantity over the seeds. |
| `data/` | Run directories as values. |
| `figures/` | The figures of a run. |
| `page/` | The page of a run, and its tables. |
| `statistics/` | Means over seeds and documents, and verdicts. |
| `terminal/` | What a terminal shows of a run. |
"""
