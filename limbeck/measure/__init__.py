"""What is asked of students.

| module | what it holds |
|---|---|
| `barrier` | Directions and lines among weights: where the terms of a student pull, and whether two students lie in one basin. |
| `evaluation` | Evaluation: the same questions to every student, whatever it trained on, on blocks that no seed changes. |
| `fixed` | The batches on which reasons are looked for, fixed for the whole run, and what of them is looked at. |
| `metrics` | The metrics of tasks, by scikit-learn and scipy: accuracy, F1 and Matthews' correlation of classes, Pearson and Spearman of scores. |
| `profile` | What models cost when they answer: parameters, MACs, memory, latency, measured side by side on this machine. |
| `quantities` | Pure measures of states and predictions: alignment of layers, effective rank, calibration, means by bins. |
| `reasons` | Reasons: why one setting beats another, measured on a few fixed held-out batches; plain numbers, ready for JSON. |
| `sensitivity` | Sensitivity to quantisation: how far a model's predictions move when one layer alone holds weights of few bits. |
| `shares` | Measuring in shares: every process reads its rows of each batch, and what they found is put together in the order of the rows. |
"""
