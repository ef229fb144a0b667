"""The page of `plan --html`: well-formed, alone in the world, and as a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from models import make_checkpoint
from transformers.utils import logging
from workspaces import Desk, lay

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NAMES = ("desk", "a-host-with-a-long-name", "attic")
SPACE = "{http://www.w3.org/1999/xhtml}"

# Measured by a script of the test's own; the page has none, and its policy would not run one.
MEASURE = """<script>
const box = document.documentElement, style = (one, key) => getComputedStyle(one).getPropertyValue(key);
const bars = [...document.querySelectorAll('.track i')].map(one => one.getBoundingClientRect());
parent.document.title = JSON.stringify({
  wide: box.scrollWidth, window: innerWidth, sections: [...document.querySelectorAll('h2')].map(one => one.innerText),
  ink: style(document.body, 'color'), paper: style(document.body, 'background-color'),
  soft: style(document.querySelector('.soft'), 'color'), bars: bars.length,
  flat: bars.filter(one => one.width < 1 || one.height < 5).length,
});
</script></body>"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("page")
    model = folder / "<b>tiny</b> & co"
    make_checkpoint(model)
    made = lay(folder / "desk", model, NAMES, prefill_chunk=4)
    for name in NAMES:
        made.change_host(name, memory="150KiB")
    made.profile(attic=2e-3)
    return made


@pytest.fixture(scope="module")
def page(desk: Desk) -> str:
    file = desk.folder / "page.html"
    other = desk.folder / "other.json"
    other.write_text('{"stages": [{"host": "desk", "first": 0, "last": 5}]}')
    done = desk.run("plan", "--html", file, "--explain", "layers.3", "--compare", other)
    assert done.code == 0, done.err
    assert f"page: {file}\n" in done.out
    return file.read_text()


def test_it_is_well_formed_and_says_everything(page: str) -> None:
    tree = ElementTree.fromstring(page)  # noqa: S314 # our own
    words = " ".join("".join(tree.itertext()).split())
    for said in (*NAMES, "<b>tiny</b> & co", "What would help", "What binds", "equal shares", "text and token ids",
                 "privacy P", "layers.3 on another host", "It cannot be deployed", "8 Gbit/s"):  # fmt: skip
        assert said in words, said
    assert tree.get("lang") == "en"
    for table in tree.iter(f"{SPACE}table"):
        assert table.find(f"{SPACE}caption") is not None
        assert all(head.get("scope") for head in table.iter(f"{SPACE}th"))
    levels = [int(one.tag[-1]) for one in tree.iter() if re.fullmatch(rf"{re.escape(SPACE)}h\d", one.tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_it_needs_nothing_else(page: str) -> None:
    tree = ElementTree.fromstring(page)  # noqa: S314 # our own
    assert not {one.tag.removeprefix(SPACE) for one in tree.iter()} & {"script", "link", "img", "iframe", "object"}
    assert not [key for one in tree.iter() for key in one.attrib if key in ("src", "href") or key.startswith("on")]
    assert "url(" not in page
    assert "@import" not in page
    assert page.count("://") == 1  # the namespace


def test_a_place_that_cannot_be_written(desk: Desk) -> None:
    done = desk.run("plan", "--html", desk.folder / "absent" / "page.html")
    assert done.code == 1
    assert "cannot be written" in done.error


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1200, False)], ids=["phone, dark", "desktop, light"])
def test_a_browser_shows_it(page: str, tmp_path: Path, width: int, dark: bool) -> None:
    without_policy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*/>', "", page)
    inside = escape(without_policy.replace("</body>", MEASURE))
    file = tmp_path / "frame.html"  # the browser's own window is at least 500 wide
    file.write_text(f"<title></title><iframe style='width: {width}px; border: 0' srcdoc=\"{inside}\"></iframe>")
    seen = shown(file, tmp_path / "browser", dark)
    assert seen["window"] == width
    assert seen["wide"] <= width  # nothing but tables scrolls sideways
    assert seen["sections"][:2] == ["The split", "Where the time goes"]
    assert (seen["bars"] > 20, seen["flat"]) == (True, 0)
    assert (brightness(seen["paper"]) < 0.1) is dark
    assert contrast(seen["ink"], seen["paper"]) > 7  # WCAG 2.2, 1.4.6
    assert contrast(seen["soft"], seen["paper"]) > 4.5  # 1.4.3


def shown(file: Path, profile: Path, dark: bool) -> dict[str, Any]:
    profile.mkdir()
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--user-data-dir={profile}",
             "--window-size=1400,900", "--dump-dom", file.as_uri()]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(.+?)</title>", done.stdout, re.DOTALL)
    assert title, done.stderr
    return dict(json.loads(title.group(1)))


def brightness(colour: str) -> float:
    """Relative luminance, as WCAG defines it, of "rgb(r, g, b)"."""
    parts = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((brightness(one), brightness(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
