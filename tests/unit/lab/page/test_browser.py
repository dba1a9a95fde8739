from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import write_run
from matplotlib.image import imread
from test_cost import PROFILE
from test_reasons_page import add_reasons

from limbeck.lab.page.report import write

DRAWN: set[str] = set()  # the pages that are fixtures alone

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LIGHT, DARK = (251, 251, 249), (23, 25, 28)  # the paper of the page
SCHEMES = {"light": "preferredColorScheme=1", "dark": "preferredColorScheme=0"}

HAS_ONE = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")


def browser(test: Callable[..., None]) -> Callable[..., None]:
    """A test that opens a browser: it is slow, and skipped where there is none."""
    return pytest.mark.slow(HAS_ONE(test))


class Seen(NamedTuple):
    """A picture that a browser made of a page, what the page complained of, and what it asked for."""

    picture: np.ndarray  # [height, width, 3], 0 to 255
    console: list[str]
    requests: list[str]


def look(page: Path, folder: Path, scheme: str = "light", scripts: bool = True) -> Seen:
    """Opens a page and takes its picture."""
    picture, log = folder.with_suffix(".png"), folder.with_suffix(".json")
    asked = [f"--screenshot={picture}", f"--log-net-log={log}", "--window-size=1000,9000"]
    said = opened(page, folder, [*asked, f"--blink-settings={SCHEMES[scheme]}"], scripts).stderr
    return Seen(np.asarray(imread(picture))[..., :3] * 255, complaints(said), requests(log))


def dom(page: Path, folder: Path, scripts: bool = True) -> str:
    """The document that a page becomes without a complaint."""
    done = opened(page, folder, ["--dump-dom", "--window-size=1000,9000"], scripts)
    assert complaints(done.stderr) == []
    return done.stdout.decode()


def opened(page: Path, folder: Path, how: list[str], scripts: bool) -> subprocess.CompletedProcess[bytes]:
    """A headless browser, with a profile of its own in this folder, that reaches no network."""
    preferences = folder / "Default" / "Preferences"
    preferences.parent.mkdir(parents=True)
    blocked = {"profile": {"default_content_setting_values": {"javascript": 2}}}
    preferences.write_text(json.dumps({} if scripts else blocked))
    common = [
        str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0", f"--user-data-dir={folder}",
    ]  # fmt: skip
    return subprocess.run([*common, *how, page.as_uri()], capture_output=True, timeout=120, check=True)


def complaints(said: bytes) -> list[str]:
    """Lines of the console."""
    return [line for line in said.decode(errors="replace").splitlines() if ":CONSOLE" in line]


def requests(log: Path) -> list[str]:
    """Addresses that the page asked for; what the browser asks for of its own accord has no origin."""
    text = log.read_text(encoding="utf-8").rstrip()
    events = json.loads(text if text.endswith("}") else text.rstrip(",") + "]}")["events"]
    told = [event.get("params") or {} for event in events]
    return [each["url"] for each in told if "url" in each and each.get("initiator", "not an origin") != "not an origin"]


@pytest.fixture(scope="module")
def light(report: Path, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return look(report, tmp_path_factory.mktemp("browser") / "light")


@pytest.fixture(scope="module")
def document(report: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return dom(report, tmp_path_factory.mktemp("browser") / "dom")


@browser
def test_the_page_shows_something_and_asks_for_nothing(light):
    assert light.picture.shape == (9000, 1000, 3)
    np.testing.assert_allclose(light.picture[2, 2], LIGHT, atol=1.5)
    for part in np.split(light.picture[:3000], 3):  # tables and figures, all the way down
        assert part.var() > 200
    assert light.console == []
    assert light.requests == []


@browser
def test_every_figure_reaches_the_document(document, report):
    written = re.findall(r'<figure id="([^"]+)"', report.read_text())
    assert len(written) == document.count("<svg") == 7
    for name in written:
        assert f'<figure id="{name}"' in document


@pytest.mark.slow
@browser
def test_the_page_in_the_dark(report, tmp_path):
    seen = look(report, tmp_path / "dark", "dark")
    np.testing.assert_allclose(seen.picture[2, 2], DARK, atol=1.5)
    assert (seen.picture.mean(axis=2) > 250).mean() > 0.2, "figures stand on white cards"
    assert seen.console == []


@pytest.mark.slow
@browser
def test_the_page_needs_no_scripts(document, report, tmp_path):
    """Without scripts there are no buttons; all else is the same."""
    bare = dom(report, tmp_path / "bare", scripts=False)
    assert "<button" not in bare and "<title>multi: step 20, " in bare
    assert re.sub(r'<button type="button">(.*?)</button>', r"\1", document, flags=re.DOTALL) == bare
    assert look(report, tmp_path / "plain", scripts=False).picture[1500:3000].var() > 200
    page = tmp_path / "script.html"
    page.write_text("<!doctype html><p id=it>still</p><script>it.textContent = 'moved'</script>")
    assert "still</p>" in dom(page, tmp_path / "off", scripts=False)
    assert "moved</p>" in dom(page, tmp_path / "on")


HAND = """
const texts = (cells) => [...cells].map((cell) => cell.textContent.trim());
const seen = { results: [], verdicts: [], points: [], focus: [] };
const order = { results: (table) => texts(table.rows[0].cells).slice(1),
                verdicts: (table) => [...table.tBodies[0].rows].map((row) => texts(row.cells)) };
for (const [name, pattern] of CLICKS) {
  const table = document.querySelector("table." + name);
  const heading = [...table.querySelectorAll("th")].find((it) => it.textContent.startsWith(pattern));
  const button = heading.querySelector("button");
  button.focus();
  seen.focus.push(document.activeElement === button && button.tabIndex === 0);
  button.click();
  seen[name].push([heading.getAttribute("aria-sort"), order[name](table), table.querySelectorAll("[aria-sort]").length]);
}
for (const figure of document.querySelectorAll("figure")) {
  figure.scrollIntoView();
  for (const circle of figure.querySelectorAll("circle")) {
    const box = circle.getBoundingClientRect();
    const hit = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    seen.points.push([figure.id, box.width / 2, hit?.querySelector("title")?.textContent ?? ""]);
  }
}
"""
SEEN = """
const out = document.createElement("pre");
out.id = "seen";
out.textContent = JSON.stringify(seen);
document.body.append(out);
"""


def handled(page: Path, folder: Path, clicks: list[tuple[str, str]]) -> dict[str, Any]:
    """What a reader sees who clicks these headings, (class of the table, beginning of the heading), and points at figures."""
    return scripted(page, folder, HAND.replace("CLICKS", json.dumps(clicks)) + SEEN)


def scripted(page: Path, folder: Path, script: str) -> Any:
    """What a script finds on a page; it leaves that in an element `seen`, as JSON."""
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = page.read_text().replace("script-src '", f"script-src 'sha256-{allowed}' '", 1)
    copy = folder / "handled.html"
    copy.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom(copy, folder / "handled"), re.DOTALL)
    assert found is not None
    return json.loads(html.unescape(found[1]))


SECONDS = {"logit": 0.5, "multi": 7.5, "third": 2.5}  # per step: 20.0 s, 5.00 min, 100 s
RESULT = [("results", "time it would take")] * 3 + [("results", "top-1 agreement"), ("results", "smallest share")]


@pytest.fixture(scope="module")
def sorted_page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A page of three settings, with clicks on its tables."""
    folder = write_run(tmp_path_factory.mktemp("sorted") / "run", settings=tuple(SECONDS), seeds=(0, 1, 2))
    for name in ("metrics", "evals"):
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for row in rows:
            if name == "metrics":
                row |= {"seconds": SECONDS[row["setting"]]}
            elif row["step"] == 40:
                spread = {"logit": 1.0, "multi": 0.001 * row["seed"], "third": 0.3 + 0.002 * row["seed"]}[
                    row["setting"]
                ]
                row |= {"logit_loss": 10 * spread + 0.01 * row["seed"] ** 2, "agreement": spread}
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    add_reasons(folder, settings=tuple(SECONDS))
    clicks = [*RESULT, *[("verdicts", "difference")] * 3, ("verdicts", "setting"), ("verdicts", "p (Holm)")]
    return handled(write(folder), folder.parent, clicks)


@pytest.mark.slow
@browser
def test_a_click_on_a_quantity_sorts_the_settings(sorted_page):
    as_it_was = ["logit", "multi", "third"]
    assert sorted_page["results"] == [
        ["ascending", ["logit", "third", "multi"], 1],  # 20.0 s, 100 s, 5.00 min
        ["descending", ["multi", "third", "logit"], 1],
        [None, as_it_was, 0],
        ["descending", ["logit", "third", "multi"], 1],  # of what is better high, the best first
        ["ascending", ["multi", "logit", "third"], 1],  # those without a value last
    ]
    assert all(sorted_page["focus"]) and len(sorted_page["focus"]) == 10


@pytest.mark.slow
@browser
def test_a_click_on_a_heading_sorts_the_verdicts(sorted_page):
    up, down, before, names, p = sorted_page["verdicts"]
    pairs = [["multi", "logit"], ["third", "logit"], ["third", "multi"]]
    assert [[row[0], row[2]] for row in before[1]] == pairs and before[0] is None
    differences = [float(row[3].replace("\u2212", "-")) for row in up[1]]
    assert differences == sorted(differences) and differences[0] < differences[1] < 0 < differences[2]
    assert (up[0], down[0]) == ("ascending", "descending") and down[1] == up[1][::-1]
    assert [row[0] for row in names[1]] == ["multi", "third", "third"]
    adjusted = [float(row[-1].removeprefix("< ")) for row in p[1]]
    assert adjusted == sorted(adjusted)


@pytest.mark.slow
@browser
def test_a_pointer_finds_values_on_every_curve(sorted_page):
    charts = {name for name, *_ in sorted_page["points"]}
    assert len(charts) == 10 and {"logit-loss-test", "gradient-norm", "update-ratio", "reasons-rank"} <= charts
    assert all(radius >= 4 and ": " in text for _, radius, text in sorted_page["points"])


WIDTHS = """
const tables = [...document.querySelectorAll("table")].filter((it) => it.checkVisibility());
const seen = tables.map((it) => [it.className, it.offsetWidth, it.parentElement.clientWidth]);
"""


@browser
def test_no_table_is_wider_than_the_page(tmp_path):
    """At 1,000 pixels and more; below that tables scroll."""
    folder = add_reasons(write_run(tmp_path / "run", seeds=(0, 1, 2)))
    told = json.loads(json.dumps(PROFILE).replace("4321", "104321000"))
    (folder / "profile.json").write_text(json.dumps(told))
    found = scripted(write(folder), tmp_path, WIDTHS + SEEN)
    assert {name for name, *_ in found} == {"verdicts", "results", "reasons", "cost"}
    assert all(width <= room for _, width, room in found), found


@browser
def test_a_page_that_fetches_and_complains_would_be_found_out(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text('<!doctype html><img src="http://127.0.0.1:9/x.png"><script>console.error("bad")</script>')
    seen = look(page, tmp_path / "bad")
    assert "http://127.0.0.1:9/x.png" in seen.requests
    assert any('"bad"' in line for line in seen.console)
    assert seen.picture.var() < 200  # a blank page is blank


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_forbids_itself_every_fetch(report):
    found = Elements(report.read_text()).found
    policies = [said["content"] for tag, said in found if said.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert (policies[0] or "").startswith("default-src 'none';")
    assert "http" not in (policies[0] or "")
    assert [tag for tag, _ in found].count("script") == 1
    for tag, said in found:
        for key in ("src", "href", "xlink:href", "data", "action", "srcset"):
            assert not re.match(r"\s*(https?:)?//", said.get(key) or ""), (tag, key)
