"""Every command of the README and the guides is run as a reader would type it, or listed with why no test runs it.

What a reader fills in is there: PHOTOS, NEW_PHOTOS, names.txt, list.csv, FILE.npz and two photographs are made of
scikit-learn's handwritten digits. Backbones are the embedded model, and budgets are the smallest that end.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.slow import in_one_test
from tests.tools.site import GUIDES, ROOT

NOT_RUN = {
    r"git clone|python -m venv|pip install": "installing: `.ci/run` does it in a fresh environment",
    r"\.ci/run|pytest|python -m tests\.bench|rm -rf dist": "for developers: `.ci/run` runs these",
    r"captune serve": "runs until Ctrl-C: tests/tuning/test_serving.py starts it and asks it",
    r"captune .*--address auto": "needs a running cluster: tests/tuning and tests/launch have one",
    r"captune .*--dataset caltech101": "needs the dataset: tests/data reads every layout in miniature",
    r'captune status "\$CAPTUNE_OUT"': "of a Slurm job: tests/launch/test_slurm_real.py",
    r"launch/local\.sh|sbatch|tail -F|export CAPTUNE_OUT": "needs a Ray that stays, or Slurm: tests/launch",
    r"ray |docker |kubectl |aws |gcloud |VPC=|SG=|FS=": "needs machines or a cloud: tests/launch checks the files",
}
"""The beginning of a line (a regular expression) → why no test here runs it."""

BUDGET = "--epochs 1 --steps-per-epoch 2"
STUDY_BUDGET = f"{BUDGET} --trials 2 --confirm-top 1 --confirm-seeds 1"
BUDGETS = {"run": STUDY_BUDGET, "compare": STUDY_BUDGET, "adapt": BUDGET, "demo": "--trials 1"}
BEFORE = {"captune/results/READING.md": ["captune run --dataset digits --paradigm ul"]}
"""What a page takes for granted."""


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return re.findall(r"^ *```(\w*)\n(.*?)^ *```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def lines(text: str) -> list[str]:
    """The commands of a block, each whole and without comments."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return [line for part in joined.splitlines() if (line := re.sub(r"(^|\s)# .*", "", part).strip())]


def reason(line: str) -> str | None:
    """Why no test runs a command; None where one does."""
    return next((why for start, why in NOT_RUN.items() if re.match(start, line)), None)


def table_commands(page: str) -> list[str]:
    """Whole commands in the tables of a page: alternatives, each for itself."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [line for line in re.findall(r"^\|.*\| `(captune [^`]*)` \|$", text, re.MULTILINE) if "--dataset" in line]


def as_typed_here(line: str) -> str:
    """A command with the embedded model and a small budget."""
    command = line.split()[1]
    if command in ("run", "adapt", "mismatch") and re.search(r"--dataset (folder|csv):", line):
        line += " --backbone tiny"
    if command in BUDGETS:
        line += f" {BUDGETS[command]}"
    return line.replace("captune ", f"{sys.executable} -m captune ", 1)


@in_one_test("page", GUIDES.values())
def test_every_line_is_run_or_has_a_reason_not_to_be(page: str) -> None:
    for language, text in blocks(page):
        assert language in ("bash", "python", "text", "yaml"), f"{page}: a block without a language: {text[:40]}"
        for line in lines(text) if language == "bash" else []:
            assert line.startswith("captune ") or reason(line), f"{page}: {line}"


def test_no_reason_is_left_over() -> None:
    shown = [line for page in GUIDES.values() for language, text in blocks(page) if language == "bash"
             for line in lines(text)]  # fmt: skip
    shown += [line for page in GUIDES.values() for line in table_commands(page)]
    assert [start for start in NOT_RUN if not any(re.match(start, line) for line in shown)] == []
    assert sum(reason(line) is None for line in shown) >= 20


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder that holds what a reader has."""
    digits = load_digits()
    names = ["zero", "one", "two", "three"]
    listed = []
    for label, name in enumerate(names):
        for place in np.flatnonzero(digits.target == label)[:40]:
            image = Image.fromarray((digits.images[place] * 15.9).astype(np.uint8)).resize((32, 32))
            file = Path("PHOTOS", name, f"{place:04d}.png")
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / file)
            listed.append(f"{file},{name if len(listed) % 3 else ''}")
    (tmp_path / "NEW_PHOTOS").mkdir()
    for number, place in enumerate(np.flatnonzero(digits.target < len(names))[-2:], start=1):
        image = Image.fromarray((digits.images[place] * 15.9).astype(np.uint8)).resize((32, 32))
        image.save(tmp_path / "NEW_PHOTOS" / f"new{number}.png")
        image.convert("RGB").save(tmp_path / f"photo{number}.jpg")
    (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in sorted(names)))  # as folders are read
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *listed]) + "\n")
    generator = np.random.default_rng(0)
    few = digits.target < len(names)
    pixels, labels = digits.data[few].astype(np.float32), digits.target[few]
    means = np.stack([pixels[labels == label].mean(0) for label in range(len(names))])
    np.savez(
        tmp_path / "FILE.npz", image_features=pixels - pixels.mean(0), labels=labels,
        split=np.where(generator.random(len(labels)) < 0.6, "train", "test"),
        text_features=(means - pixels.mean(0)).astype(np.float32), class_names=np.array(names),
    )  # fmt: skip
    return tmp_path


def done(command: list[str], desk: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CAPTUNE_CACHE": str(desk / "cache"), "COLUMNS": "100"}
    ended = subprocess.run(
        command, cwd=desk, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, f"{command[-1]}\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", GUIDES.values())
def test_commands_do_what_the_page_says(page: str, desk: Path) -> None:
    for line in BEFORE.get(page, ()):
        done(["bash", "-c", as_typed_here(line)], desk)
    for language, text in blocks(page):
        if language == "python":
            done([sys.executable, "-c", text], desk)
        for line in lines(text) if language == "bash" else []:
            if reason(line) is None:
                done(["bash", "-c", as_typed_here(line)], desk)
    for number, line in enumerate(line for line in table_commands(page) if reason(line) is None):
        done(["bash", "-c", f"{as_typed_here(line)} --out alternatives/{number}"], desk)
