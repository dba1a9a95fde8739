"""Makes an SVG file fit to stand inside a page beside others."""

from __future__ import annotations

import re
from xml.etree import ElementTree

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
REFERENCE = re.compile(r"url\(#([^)]+)\)")


def inline(source: str, prefix: str, alt: str) -> str:
    """The `<svg>` element of a file, for use inside HTML.

    Ids and references get `prefix`, so that those of several figures do not meet; rules of style move from
    the global `*` to this figure; size comes from the page; `alt` is read aloud. Every text is escaped.
    """
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(source)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        for key, value in element.attrib.items():
            element.set(key, _renamed(key, value, prefix))
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.attrib |= {"role": "img", "aria-label": alt, "stroke-linejoin": "round", "stroke-linecap": "butt"}
    return ElementTree.tostring(root, encoding="unicode")


def _renamed(key: str, value: str, prefix: str) -> str:
    if key == "id":
        return f"{prefix}-{value}"
    if key in ("href", f"{{{XLINK}}}href"):
        return f"#{prefix}-{value[1:]}" if value.startswith("#") else value
    return REFERENCE.sub(rf"url(#{prefix}-\1)", value)
