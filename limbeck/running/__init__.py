"""One run in its directory, stages, arms.

| module | what it holds |
|---|---|
| `arms` | Studies of several arms: how many updates each gets, which settings share memory, and what is written down of it. |
| `changed` | What changes make of the students of each setting, known before training: parameters, multiply-accumulates, bytes, layers. |
| `changes` | What has changed since a run began: its recipe, its text, its models, its machine. |
| `check` | What `limbeck check` says: everything that can be known before training, as aligned lines. |
| `disk_space` | Room in memory and on the disk: what a run takes, held against what is free. |
| `hooks` | Hooks that tell the user of the steps: how far the training is, and which terms teach nothing. |
| `manifest` | The manifest of a run: what it was made of, and what has changed when it is gone on with. |
| `profile` | What the models of a study cost when they answer: profile.json. |
| `records` | What an evaluation adds to evals.jsonl, to the sums of its documents, and to reasons.jsonl, as rows; the session writes them. |
| `session` | One run in its directory: what is written when. The loop itself is `training.loop.fit`. |
| `stages` | One recipe, or its stages one after another: what is done is left alone, what is not is trained. |
| `text_stage` | A stage that writes a text: one file of JSON lines in its run directory, whole or not at all. |
| `trackers` | Trackers beside metrics.jsonl, through Accelerate's: the same numbers for TensorBoard or trackio, where a recipe asks for them. |
"""
