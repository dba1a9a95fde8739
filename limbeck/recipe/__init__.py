"""What a user may say. No torch.

| module | what it holds |
|---|---|
| `actor_names` | What actors are called, made and read back: `logit-seed0`, `mutual-seed0-a`, `logit-seed0-ema`, `teacher-1`, `teacher@logit-seed0`. |
| `arms` | Arms of a study: what a recipe asks to be compared beyond its settings, as recipes that are run one after another. |
| `changes` | What is done to a student beside its training: `quantise`, `prune`, `factorise`, and changes of one's own. No torch. |
| `data` | The part of a recipe that says what is read: the text or the task, its labels, its masking. No torch. |
| `explain` | What is wrong with a recipe, in limbeck's words: the place, what is said there, the remedy. |
| `fields` | The kinds of values that stand in a recipe, each with the check that it must pass. |
| `identity` | Of what in a recipe a result is a function: its hash, and its text. |
| `keys` | What the keys of a recipe may be, known without torch. |
| `load` | From a recipe's file and the command line to a `Recipe`, or to one clear line. |
| `models` | Table `models`: who teaches and who learns. |
| `plain_yaml` | YAML of plain values: texts, numbers, lists and tables, and no more of them than a recipe can have. |
| `recipe` | Recipes: strict, torch-free types of everything that a run is a function of, and how a file becomes one. |
| `settings` | Settings and their terms: the part of a recipe that says who learns what from whom. No torch. |
| `stage_texts` | Texts that a stage writes: `$NAME` in place of a corpus is the text of the stage NAME, several are joined by ` + ` as corpora are. |
| `stages` | Staged recipes: a list of stages, each a recipe over what all share, and what a later one takes from an earlier one. |
| `study_keys` | The keys that make a recipe a study of several arms. No torch. |
| `train` | The part of a recipe that says how students are trained, and what is kept of the teachers' answers. No torch. |
"""
