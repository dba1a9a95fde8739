"""The figures of a run.

| module | what it holds |
|---|---|
| `capacity` | Score against size: what students of several sizes reach, one line for each teacher. |
| `captions` | The words around each figure: its title, what it is for those who cannot see it, how to read it. |
| `chart` | A figure the points of which say their values under the pointer, and how it reaches the disk: same numbers, same bytes. |
| `lines` | Line charts: one line for each setting, the mean over its seeds, and a band from the lowest to the highest. |
| `reasons` | The figures of reasons: heat maps of layers against layers, and lines by layer, confidence, frequency and place. |
| `style` | How the figures look. |
| `svg` | Makes an SVG file fit to stand inside a page beside others. |
| `training` | The figures of a run: each a function of a `Run` that returns a chart, or None without numbers. |
"""
