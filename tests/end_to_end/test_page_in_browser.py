"""The page of a study in a real Chromium: no console message, no request, nothing wider than the window."""

import functools
import http.server
import io
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.made_runs import conformed_runs, gathered, planned
from PIL import Image
from rich.console import Console

from analysis.paper.entries import Entries
from analysis.paper.figures import draw
from analysis.paper.registry import TABLES
from analysis.paper.verdicts import sentences
from analysis.report.page import TableHtml, write_page

# An entry puts its checkout first on the path, in the place of a script's folder.
_PATH = list(sys.path)
from analysis.make_tables import make, parse_arguments  # noqa: E402

sys.path[:] = _PATH

pytestmark = pytest.mark.end_to_end

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--enable-logging=stderr", "--v=0",
)  # fmt: skip
PHONE, DESKTOP = 390, 1200

# The page in frames of two widths, and what it measures there; a headless window cannot itself be as narrow as a phone.
# What sticks out counts only where it is not inside an element that scrolls by itself.
HARNESS = """<!doctype html><title>harness</title><link rel="icon" href="data:,"><body><script>
const found = {};
function look(frame, width) {
  const page = frame.contentDocument, root = page.documentElement;
  const scrolls = element => element && (
    getComputedStyle(element).overflowX === "auto" || scrolls(element.parentElement));
  const out = [...page.body.querySelectorAll("*")].filter(
    element => element.getBoundingClientRect().right > width + 0.5 && !scrolls(element));
  const images = [...page.images];
  found[width] = {
    scrollWidth: root.scrollWidth, out: out.map(element => element.outerHTML.slice(0, 80)),
    images: images.length, broken: images.filter(image => image.naturalWidth === 0).length,
    scrolled: [...page.querySelectorAll("#section-tables .scroll")].filter(
      element => element.scrollWidth > element.clientWidth).length,
    smallest: Math.min(...[...page.querySelectorAll("p, td, figcaption, code")]
      .filter(element => element.offsetParent).map(element => parseFloat(getComputedStyle(element).fontSize))),
  };
}
const widths = WIDTHS;
let left = widths.length;
for (const width of widths) {
  const frame = document.createElement("iframe");
  frame.style = `width: ${width}px; height: 800px; border: 0`;
  frame.onload = () => { look(frame, width); if (--left === 0) {
    const pre = document.createElement("pre"); pre.id = "found"; pre.textContent = JSON.stringify(found);
    document.body.append(pre); } };
  frame.src = "PAGE";
  document.body.append(frame);
}
</script></body>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with pages of made-up runs of Table 4, each with its harness: one that has all that a page can have, and
    the one that make_tables writes."""
    folder = tmp_path_factory.mktemp("page")
    runs, metrics = conformed_runs(planned(folder, "table4"), "table4")
    wide = "<table><tbody><tr>" + "<td>90.13&nbsp;±&nbsp;0.42</td>" * 12 + "</tr></tbody></table>"
    judged = sentences(Entries(TABLES["table4"], runs))
    write_page(
        "table4",
        runs,
        folder / "table4.html",
        tables=[TableHtml("A table wider than a phone", wide)],
        figures=draw(TABLES["table4"], runs, metrics, folder).paths,
        verdicts=judged[judged["table"] == "table4"],
        notes=["a-note-without-a-single-space-" * 8],
    )
    # The page that the command itself writes, with all of its tables.
    options = parse_arguments(["--study", "table4", "--out", str(folder / "out"), "--no-attach"])
    assert make(options, Console(file=io.StringIO()), gathered(folder / "out", runs, metrics), ["html"]) == 0
    shutil.copy(folder / "out" / "table4-report.html", folder / "made.html")
    (folder / "broken.html").write_text(
        '<!doctype html><link rel="icon" href="data:,"><div style="width: 900px; height: 9px">wide</div>'
        '<img src="missing.png"><script>console.error("made up")</script>'
    )
    for page in ("table4", "made", "broken"):
        text = HARNESS.replace("PAGE", f"{page}.html").replace("WIDTHS", json.dumps([PHONE, DESKTOP]))
        (folder / f"harness-{page}.html").write_text(text)
    return folder


@pytest.fixture(scope="module")
def served(folder) -> Iterator[tuple[str, list[str]]]:
    """The folder's address on loopback, and the paths that are asked for there."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, code="-", size="-"):
            asked.append(self.path)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def chromium(profile: Path, *arguments: str) -> subprocess.CompletedProcess:
    if CHROMIUM is None:
        pytest.skip("needs a Chromium browser on PATH (Debian: apt-get install chromium)")
    return subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *arguments], capture_output=True, text=True, timeout=120
    )


def console(result: subprocess.CompletedProcess) -> list[str]:
    return [line for line in result.stderr.splitlines() if ":CONSOLE" in line]


def measured(result: subprocess.CompletedProcess) -> dict[str, dict]:
    (text,) = re.findall(r'<pre id="found">(.*?)</pre>', result.stdout)
    return json.loads(text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def test_the_page_fits_a_phone_and_a_desk_and_asks_for_nothing(served, tmp_path):
    address, asked = served
    asked.clear()
    result = chromium(tmp_path, "--dump-dom", f"{address}/harness-table4.html")
    assert console(result) == []
    assert set(asked) == {"/harness-table4.html", "/table4.html"}
    for width, found in measured(result).items():
        assert found["scrollWidth"] <= int(width)
        assert found["out"] == []
        assert (found["images"], found["broken"]) == (6, 0)
        assert found["smallest"] >= 12  # pixels


def test_the_page_of_make_tables_fits_too_and_a_desk_shows_table_4_whole(served, tmp_path):
    address, asked = served
    asked.clear()
    result = chromium(tmp_path, "--dump-dom", f"{address}/harness-made.html")
    assert console(result) == []
    assert set(asked) == {"/harness-made.html", "/made.html"}
    found = measured(result)
    for width, each in found.items():
        assert each["scrollWidth"] <= int(width)
        assert each["out"] == []
        assert (each["images"], each["broken"]) == (6, 0)
    assert found[str(DESKTOP)]["scrolled"] == 0
    assert found[str(PHONE)]["scrolled"] > 0


def test_the_checks_above_see_a_page_that_is_broken(served, tmp_path):
    address, asked = served
    asked.clear()
    result = chromium(tmp_path, "--dump-dom", f"{address}/harness-broken.html")
    assert any("made up" in line for line in console(result))
    assert "/missing.png" in asked
    phone = measured(result)[str(PHONE)]
    assert phone["scrollWidth"] >= 900
    assert len(phone["out"]) == 1
    assert phone["broken"] == 1


def test_a_screenshot_shows_text_and_figures(folder, tmp_path):
    picture = tmp_path / "page.png"
    address = (folder / "table4.html").as_uri()
    result = chromium(tmp_path / "profile", f"--window-size={DESKTOP},3000", f"--screenshot={picture}", address)
    assert console(result) == []
    with Image.open(picture) as image:
        assert image.width == DESKTOP
        colours = {colour for _, colour in image.convert("RGB").getcolors(maxcolors=1 << 24)}
    assert {(255, 255, 255), (27, 27, 27)} <= colours  # paper and ink
    assert any(blue > 150 and red < 40 for red, _, blue in colours)  # the figures' blue: they are shown
