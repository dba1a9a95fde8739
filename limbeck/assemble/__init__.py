"""Recipes become objects.

| module | what it holds |
|---|---|
| `actors` | Actors from the keys of a recipe: fixed teachers, students, averages, and the scheme that ties them together. |
| `augmentation` | Data augmentation of a study: which masked language model is asked, and the task with the copies of its rows. |
| `bare` | Teachers without a head: their states are learned, and nobody asks for their predictions. |
| `changes` | Changes of a student from the keys of a recipe. |
| `checks` | Whether it fits together: what is refused before anything is read. |
| `costs` | What a study costs, known before training: parameters, FLOPs by torch's own counter, estimates of memory, time, disk. |
| `design` | What is known of a study before any weight is read: shapes, tokenizers, terms; whether all of it fits together. |
| `evaluations` | What a run is measured on: fixed blocks, or rows, of both splits, and those on which reasons are looked for. |
| `kinds` | Kinds of text: running text, rows of a task, or one's own. A kind is a value that says how a text is read and measured. |
| `model_files` | What the files of pretrained models say without their weights, read once for all designs of a command. |
| `own` | What is one's own, named in a recipe by its import path `package.module:name`: losses, changes, actors, kinds and writers of text. |
| `own_losses` | A loss of one's own, named in a recipe by its import path: `{loss: my_package.losses:my_loss, tap: hidden}`. |
| `study` | A study from a design: its text, its batches, and for every seed a still. |
| `tasks` | Tasks: what predicting a class or a score of a row makes of models and of the terms that a recipe may say. |
| `teacher_caches` | The teacher cache of a study: which answers it needs, and the teachers that read them. |
| `terms` | From a term of a recipe to a term of a lesson: its loss, its taps layer by layer, the modules in between. |
| `text` | From the keys of a recipe to text and feeds. |
| `text_writers` | Writers of texts: what a stage with `write` does in place of training. |
"""
