"""Writes docs/reference/losses/: one page for each loss from its docstring, and a table of all. `make reference`."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from limbeck.errors import KINDS
from limbeck.losses import LOSSES
from limbeck.recipe.keys import LOSS_KEYS as KEYS

FOLDER = Path(__file__).parent / "reference" / "losses"
SECTIONS = ("Args", "Returns", "Raises", "Example", "Recipe")
PARTS = {
    "divergences": "Divergences of predictions",
    "logits": "Other losses on logits",
    "sparse": "From a teacher's k largest",
    "hidden": "Features",
    "attention": "Attention",
    "relation": "Relations",
    "published": "As published codes have it",
}
NOTE = "<!-- made by `make reference` from the docstring; change it there -->"


def parsed(name: str) -> dict[str, str]:
    """The parts of a loss's docstring: summary, body, when, source, and the named sections."""
    text = inspect.getdoc(LOSSES[name]) or ""
    head, *rest = re.split(rf"^({'|'.join(SECTIONS)}):\n", text, flags=re.MULTILINE)
    found = {section: inspect.cleandoc(body) for section, body in zip(rest[::2], rest[1::2], strict=True)}
    paragraphs = [paragraph.replace("\n", " ") for paragraph in head.strip().split("\n\n")]
    body = [paragraph for paragraph in paragraphs[1:] if not paragraph.startswith("When: ")]
    stated, _, source = " ".join(body).partition("Source: ")
    when = next(paragraph for paragraph in paragraphs if paragraph.startswith("When: "))
    return {
        "summary": paragraphs[0],
        "body": stated.strip(),
        "source": source,
        "when": when.removeprefix("When: "),
        **found,
    }


def page(name: str) -> str:
    """The page of one loss."""
    said, keys = parsed(name), KEYS[name]
    lines = [NOTE, f"# `{name}`", "", said["summary"], "", said["body"], "", f"**When.** {_capital(said['when'])}", ""]
    lines += ["```yaml", said["Recipe"], "```", "", "| argument | |", "|---|---|"]
    lines += [f"| `{argument}` | {text} |" for argument, text in _arguments(said["Args"]).items()]
    lines += ["", f"**Gives** {_flat(said['Returns'])}", ""]
    if "Raises" in said:
        lines += [f"**Raises** {_flat(said['Raises'])}", ""]
    lines += [f"**In a recipe** it compares {_listed(keys.taps)}; {_means(keys.per)}.{_hyper(name)}", ""]
    lines += [
        "```python",
        f"from limbeck.losses import {name}",
        "",
        said["Example"],
        "```",
        "",
        f"**Source.** {said['source']}",
    ]
    return "\n".join(lines) + "\n"


def table() -> str:
    """The table of all losses."""
    lines = [NOTE, "# All losses", "", "Conventions and taps: [Losses and taps](../losses.md).", ""]
    for module, title in PARTS.items():
        lines += [f"## {title}", "", "| name | what | taps | one value for each | source |", "|---|---|---|---|---|"]
        for name, loss in LOSSES.items():
            if loss.__module__ != f"limbeck.losses.{module}":
                continue
            keys, said = KEYS[name], parsed(name)
            taps = ", ".join(f"`{tap}`" for tap in keys.taps)
            papers = ", ".join(re.findall(r"(?:arXiv|doi) [\w./-]*\w", said["source"]))
            what = said["summary"].split(": ")[0].rstrip(".")
            lines.append(f"| [`{name}`]({name}.md) | {what} | {taps} | {keys.per} | {papers} |")
        lines.append("")
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """File name -> text, of everything in the folder."""
    return {"README.md": table(), **{f"{name}.md": page(name) for name in LOSSES}}


def _arguments(section: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in section.splitlines():
        name, colon, text = line.partition(": ")
        if colon and re.fullmatch(r"\w+", name):
            found[name] = text
        else:
            found[list(found)[-1]] += " " + line.strip()
    return found


def _hyper(name: str) -> str:
    """The keys that a recipe may add, with what they may be and their defaults."""
    keys, defaults = KEYS[name], inspect.signature(LOSSES[name]).parameters
    said = [
        f"`{key}`: {KINDS[kind][0]}" + (f" (default {_show(defaults[key].default)})" if key in defaults else "")
        for key, kind in (keys.parameters | keys.made).items()
    ]
    return f" Its keys: {'; '.join(said)}." if said else ""


def _show(value: object) -> str:
    return {"None": "left out", "True": "true", "False": "false"}.get(str(value), str(value))


def _means(per: str) -> str:
    return {
        "token": "its values are averaged over tokens",
        "row": "its values are averaged over rows",
        "batch": "it sees one micro-batch of one process at a time",
    }[per]


def _listed(keys: tuple[str, ...]) -> str:
    return " or ".join(f"`{key}`" for key in keys)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _flat(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.md"):
        old.unlink()
    for file, text in pages().items():
        (FOLDER / file).write_text(text, encoding="utf-8")
