"""Sentence polarity (Pang and Lee 2005) as rows of a task: python docs/studies/tinybert/polarity.py sentence_polarity.zip rows.tsv

Then `data.corpus=rows.tsv data.heldout=0.1 data.task.classes=[negative,positive]`.
"""

import sys
from pathlib import Path
from zipfile import ZipFile

KINDS = {"neg": "negative", "pos": "positive"}


def main(archive: Path, table: Path) -> None:
    """A line of the archive's two files is a row."""
    rows = ["sentence\tlabel"]
    with ZipFile(archive) as files:
        for kind, name in KINDS.items():
            lines = files.read(f"sentence_polarity/rt-polarity.{kind}").decode("latin-1").splitlines()
            rows += [f"{' '.join(line.split())}\t{name}" for line in lines if line.strip()]
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
