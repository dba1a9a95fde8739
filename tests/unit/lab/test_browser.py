from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from matplotlib.image import imread

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LIGHT, DARK = (251, 251, 249), (23, 25, 28)  # the paper of the page
SCHEMES = {"light": "preferredColorScheme=1", "dark": "preferredColorScheme=0"}

browser = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")


class Seen(NamedTuple):
    """What a browser made of a page: its document, a picture of it, what it complained of, what it asked for."""

    dom: str
    picture: np.ndarray  # [height, width, 3], 0 to 255
    console: list[str]
    requests: list[str]


def look(page: Path, folder: Path, scheme: str = "light", scripts: bool = True) -> Seen:
    """Open a page in a headless browser that reaches no network."""
    preferences = folder / "profile" / "Default" / "Preferences"
    preferences.parent.mkdir(parents=True)
    blocked = {"profile": {"default_content_setting_values": {"javascript": 2}}}
    preferences.write_text(json.dumps({} if scripts else blocked))
    picture, log = folder / "page.png", folder / "net.json"
    common = [
        str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0", f"--user-data-dir={folder / 'profile'}",
        "--window-size=1000,9000", f"--blink-settings={SCHEMES[scheme]}",
    ]  # fmt: skip
    asked = [f"--screenshot={picture}", f"--log-net-log={log}"], ["--dump-dom"]
    dom, said = "", ""
    for what in asked:
        done = subprocess.run([*common, *what, page.as_uri()], capture_output=True, timeout=120, check=True)
        dom, said = done.stdout.decode(), said + done.stderr.decode(errors="replace")
    console = [line for line in said.splitlines() if ":CONSOLE" in line]
    return Seen(dom, np.asarray(imread(picture))[..., :3] * 255, console, requests(log))


def requests(log: Path) -> list[str]:
    """Addresses that the page asked for; what the browser asks for of its own accord has no origin."""
    text = log.read_text(encoding="utf-8").rstrip()
    events = json.loads(text if text.endswith("}") else text.rstrip(",") + "]}")["events"]
    told = [event.get("params") or {} for event in events]
    return [each["url"] for each in told if "url" in each and each.get("initiator", "not an origin") != "not an origin"]


@pytest.fixture(scope="module")
def light(report: Path, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return look(report, tmp_path_factory.mktemp("browser") / "light")


@browser
def test_the_page_shows_something_and_asks_for_nothing(light):
    assert light.picture.shape == (9000, 1000, 3)
    np.testing.assert_allclose(light.picture[2, 2], LIGHT, atol=1.5)
    for part in np.split(light.picture[:3000], 3):  # tables and figures, all the way down
        assert part.var() > 200
    assert light.console == []
    assert light.requests == []


@browser
def test_every_figure_reaches_the_document(light, report):
    written = re.findall(r'<figure id="([^"]+)"', report.read_text())
    assert len(written) == light.dom.count("<svg") == 7
    for name in written:
        assert f'<figure id="{name}"' in light.dom


@browser
def test_the_page_in_the_dark(report, tmp_path):
    seen = look(report, tmp_path / "dark", "dark")
    np.testing.assert_allclose(seen.picture[2, 2], DARK, atol=1.5)
    assert (seen.picture.mean(axis=2) > 250).mean() > 0.2, "figures stand on white cards"
    assert seen.console == []


@browser
def test_the_page_needs_no_scripts(light, report, tmp_path):
    seen = look(report, tmp_path / "plain", scripts=False)
    assert (seen.picture == light.picture).all()
    assert seen.dom == light.dom
    page = tmp_path / "script.html"
    page.write_text("<!doctype html><p id=it>still</p><script>it.textContent = 'moved'</script>")
    assert "still</p>" in look(page, tmp_path / "off", scripts=False).dom
    assert "moved</p>" in look(page, tmp_path / "on").dom


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
    assert "script" not in {tag for tag, _ in found}
    for tag, said in found:
        for key in ("src", "href", "xlink:href", "data", "action", "srcset"):
            assert not re.match(r"\s*(https?:)?//", said.get(key) or ""), (tag, key)
