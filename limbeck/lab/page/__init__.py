"""The page of a run, and its tables.

| module | what it holds |
|---|---|
| `baselines` | Baselines that train nothing, as columns beside the settings: the untouched initial student, and the teacher itself. |
| `capacity` | Capacity ladders on the page: the best teacher of each student, and whether a larger one is a better one. |
| `cost` | What settings and their teachers cost: when they answer (profile.json), and to train (metrics.jsonl). |
| `exits` | Early exits beside the last layer: what each of them reaches on held-out text at the step of the results. |
| `lead` | What a comparison of settings found, in the words that the page and the terminal begin with: those of the verdicts. |
| `made_of` | What a run was made of, in lines to read: teachers, students, text or rows. |
| `reasons` | The words and the tables of the section on reasons. |
| `report` | Writes report.html: one page that holds everything and fetches nothing. |
| `results` | The results of a run: one row per setting at the last step, and the same at equal compute; baselines beside them. |
| `stages` | Which stage of a staged recipe a run is, and what the stages before it reached. |
| `summary` | The question of a run and what its numbers answer, in plain sentences. |
| `tables` | The numbers behind a report as files: CSV for other programs, Markdown and LaTeX for papers. |
| `verdicts` | The verdicts of a run as the page and the terminal show them. |
"""
