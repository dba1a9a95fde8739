"""Writes the maps for people: the table of modules in every package, CONTRIBUTING's table, docs/architecture.md's tree and picture. `make reference`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from floors import FILES, FLOOR, FLOORS, ROOT, first_line, module, own, part  # noqa: E402

CONTRIBUTING, ARCHITECTURE, PICTURE = HERE.parent / "CONTRIBUTING.md", HERE / "architecture.md", HERE / "floors.svg"
OWN_WORDS = (ROOT, ROOT / "losses", ROOT / "models/changes")  # packages whose first file holds more than a table
WIDTH, HEIGHT, BOX = 960, 64, 34  # of the picture, of a floor, of a package


def packages() -> dict[Path, list[Path]]:
    """The first file of every package -> its modules and the packages inside."""
    found = {}
    for path in FILES:
        if path.stem == "__init__" and path.parent not in OWN_WORDS:
            inside = [it for it in FILES if it.parent == path.parent and it != path]
            found[path] = inside + [it for it in FILES if it.stem == "__init__" and it.parent.parent == path.parent]
    return found


def table(path: Path, inside: list[Path]) -> str:
    """The text of a package's first file: what it said first, and a line for each module."""
    lines = [f"| `{_name(it)}` | {first_line(it)} |" for it in inside]
    return f'"""{first_line(path)}\n\n| module | what it holds |\n|---|---|\n' + "\n".join(lines) + '\n"""\n'


def _name(path: Path) -> str:
    return path.parent.name + "/" if path.stem == "__init__" else path.stem


def floors() -> str:
    """The floors from the top, a line for each package or module of the root."""
    lines = ["| floor | package | what it holds |", "|---|---|---|"]
    for number in reversed(range(len(FLOORS))):
        for name in FLOORS[number].split():
            path = ROOT / name / "__init__.py" if (ROOT / name).is_dir() else ROOT / f"{name}.py"
            lines.append(
                f"| {number} | `{name}{'/' if path.stem == '__init__' and name != '__init__' else ''}` | {first_line(path)} |"
            )
    return "\n".join(lines)


def tree() -> str:
    """Every file with its line."""
    lines = []
    for path, inside in packages().items():
        lines += [f"**`{path.parent.relative_to(ROOT.parent)}/`** {first_line(path)}", ""]
        lines += [f"- `{it.stem}` {first_line(it)}" for it in inside if it.stem != "__init__"] + [""]
    return "\n".join(lines).rstrip()


def picture() -> str:
    """The floors as boxes, a line from every package to what it imports, unless a line through another package leads there."""
    known = [name for name in FLOOR if not name.startswith("__")]
    uses = {
        name: {part(it) for path in FILES if part(module(path)) == name for it in own(path)} - {name} for name in known
    }
    below = {name: uses[name].union(*(uses[it] for it in uses[name] & uses.keys())) for name in known}
    for _ in FLOORS:  # until nothing is added
        below = {name: below[name].union(*(below[it] for it in below[name] & below.keys())) for name in known}
    straight = {a: {b for b in uses[a] if not any(b in below[c] for c in uses[a] & below.keys())} for a in known}
    rows = [[name for name in names.split() if name in known] for names in reversed(FLOORS)]
    rows, spot = [row for row in rows if row], {}
    for y, row in enumerate(rows):
        for x, name in enumerate(row):
            spot[name] = (WIDTH * (2 * x + 1) / (2 * len(row)), HEIGHT * y + HEIGHT / 2)
    lines = [
        f'<line x1="{spot[a][0]:.0f}" y1="{spot[a][1] + BOX / 2:.0f}" x2="{spot[b][0]:.0f}" y2="{spot[b][1] - BOX / 2:.0f}"/>'
        for a in known
        for b in sorted(straight[a] & spot.keys())
    ]
    boxes = [
        f'<rect x="{x - 60:.0f}" y="{y - BOX / 2:.0f}" width="120" height="{BOX}" rx="6"/>'
        f'<text x="{x:.0f}" y="{y + 5:.0f}">{name}</text>'
        for name, (x, y) in spot.items()
    ]
    style = (
        "line{stroke:#7a8794;stroke-width:1;opacity:.45}rect{fill:#fff;stroke:#33475b}"
        "text{font:14px sans-serif;text-anchor:middle;fill:#1d2a36}"
    )
    size = f'viewBox="0 0 {WIDTH} {HEIGHT * len(rows)}" width="{WIDTH}" height="{HEIGHT * len(rows)}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="The packages of limbeck and what each imports">'
        f'<style>{style}</style><rect width="100%" height="100%" style="stroke:none"/>\n'
        + "\n".join([*lines, *boxes])
        + "\n</svg>\n"
    )


def filled(text: str, **blocks: str) -> str:
    """A page with the text between its marks `<!-- map: NAME -->` and `<!-- end -->` made anew."""
    for name, block in blocks.items():
        mark = rf"(<!-- map: {name} -->\n).*?(<!-- end -->)"
        text = re.sub(mark, lambda found, block=block: f"{found[1]}{block}\n{found[2]}", text, flags=re.DOTALL)
    return text


def pages() -> dict[Path, str]:
    """Every file that is made here -> its text."""
    found = {path: table(path, inside) for path, inside in packages().items()}
    found[CONTRIBUTING] = filled(CONTRIBUTING.read_text(encoding="utf-8"), floors=floors())
    found[ARCHITECTURE] = filled(ARCHITECTURE.read_text(encoding="utf-8"), floors=floors(), tree=tree())
    return found | {PICTURE: picture()}


if __name__ == "__main__":
    for place, text in pages().items():
        place.write_text(text, encoding="utf-8")
