"""The page in a real browser: nothing wider than a phone, every image drawn, nothing said on the console."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from synthetic import whole_study

from captune.results.report import report_study

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
PROBE = """<html><body><pre id=said></pre>
<iframe id=frame src="run/report.html" style="width:360px;height:800px;border:0"></iframe>
<script>onload = () => {
  const page = document.getElementById('frame').contentDocument;
  const wide = [...page.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > 361).length;
  const drawn = [...page.images].filter(image => image.naturalWidth > 0).length;
  document.getElementById('said').textContent =
    `width=${page.documentElement.scrollWidth} wide=${wide} drawn=${drawn} of=${page.images.length}`;
};</script></body></html>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium on the path")
def test_page_fits_a_phone_and_is_silent(tmp_path: Path) -> None:
    report_study(whole_study(tmp_path / "run"))
    (tmp_path / "probe.html").write_text(PROBE)
    done = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--allow-file-access-from-files", "--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom",
         f"file://{tmp_path}/probe.html"],
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    said = re.search(r"width=(\d+) wide=(\d+) drawn=(\d+) of=(\d+)", done.stdout)
    assert said is not None, done.stderr
    width, wide, drawn, total = (int(number) for number in said.groups())
    assert width <= 360 and wide == 0 and drawn == total == 5
    assert "CONSOLE" not in done.stderr
