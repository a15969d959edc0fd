"""The page in a real browser: nothing wider than a phone, every picture drawn, tables sort, silence on the console."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from real import real_study

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
PROBE = """<html><body><pre id=said></pre>
<iframe id=frame src="run/report.html" style="width:360px;height:800px;border:0"></iframe>
<script>onload = () => {
  const page = document.getElementById('frame').contentDocument;
  const inside = e => e.closest('.wide, pre, svg');
  const wide = [...page.querySelectorAll('body *')]
    .filter(e => !inside(e) && e.getBoundingClientRect().right > 361).length;
  const drawn = [...page.images].filter(image => image.naturalWidth > 0).length;
  const table = page.querySelector('table.sortable');
  const column = [...table.tHead.rows[0].cells].findIndex(head => /^(selection )?score/.test(head.textContent));
  const read = () => [...table.tBodies[0].rows].map(row => parseFloat(row.cells[column].textContent)).join(',');
  const button = table.tHead.rows[0].cells[column].querySelector('button');
  button.click();
  const falling = read();
  button.click();
  document.getElementById('said').textContent =
    `width=${page.documentElement.scrollWidth} wide=${wide} drawn=${drawn} of=${page.images.length} ` +
    `falling=${falling} rising=${read()} svg=${page.querySelectorAll('figure svg').length}`;
};</script></body></html>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium on the path")
def test_page_fits_a_phone_sorts_and_is_silent(tmp_path: Path) -> None:
    real_study(tmp_path / "run")
    (tmp_path / "probe.html").write_text(PROBE)
    done = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--allow-file-access-from-files", "--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom",
         f"file://{tmp_path}/probe.html"],
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    said = re.search(r"width=(\d+) wide=(\d+) drawn=(\d+) of=(\d+) falling=(\S+) rising=(\S+) svg=(\d+)", done.stdout)
    assert said is not None, done.stderr
    width, wide, drawn, total, figures = (int(said[at]) for at in (1, 2, 3, 4, 7))
    assert width <= 360 and wide == 0 and drawn == total > 5 and figures >= 4
    falling, rising = ([float(number) for number in said[at].split(",")] for at in (5, 6))
    assert falling == sorted(falling, reverse=True) and rising == sorted(rising) and len(set(falling)) > 1
    assert "CONSOLE" not in done.stderr
