"""All speed targets in one run: `python -m tests.bench.targets OUT.json --before DIR [--features FILE] [--quick]`.

Prints a Markdown row a target: what was wanted, what the source tree `--before` needs, what this one needs, in turn in
one run. Where a target compares two ways that both stand in this tree, they are measured beside each other instead.
Everything is a median of `--repeats`; the load average stands above the table. Rows that take minutes a repeat (the
first command, steps of ViT-B/32) have fewer: their number is printed with them.

    git worktree add ../release-before 7f55219
    python -m tests.bench.targets targets.json --before ../release-before
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from captune.adapting import adapt_once, check_out, configuration
from captune.config import TaskConfig
from captune.data.dataset import Dataset, Split, empty_split
from captune.data.image_store import ImageStore
from captune.data.resampling import by_products, one_by_one
from captune.data.views import ImageViews
from captune.preprocessing import Preprocessing
from captune.training import loop
from captune.training.trial import limit_threads
from tests.bench import first_command, opening, packs
from tests.bench.overhead import measure_overhead
from tests.bench.store import cpu_and_wall
from tests.tools.photos import write_photos

HERE = Path(__file__).parents[2]
_BLEND = {
    "method": "blend", "tuning": "features",
    "members": [
        {"method": "cap", "seeds": [1, 2, 3, 4, 5, 6]},
        {"method": "cap", "seeds": [1, 2, 3, 4, 5, 6], "settings": {"margin_scale": 4.0}},
        {"method": "cap_mixture", "seeds": [1, 2, 3]},
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A row of the table.

    Attributes:
        what: is measured, and in what.
        wanted: the target.
        before, now: medians as text; the former way, and this one.
        repeats: measured.
        how: the former way, where it is not the tree before.
    """

    what: str
    wanted: str
    before: str
    now: str
    repeats: int
    how: str = "tree before"

    def line(self) -> str:
        """In Markdown."""
        cells = (self.what, self.wanted, f"{self.before} ({self.how})", self.now, str(self.repeats))
        return "| " + " | ".join(cells) + " |"


@dataclass(frozen=True)
class Asked:
    """What to measure: the tree before, how often, and features of 59 classes if there are any."""

    before: Path
    repeats: int
    long_repeats: int
    features: Path | None


def _command(tree: Path, arguments: str, cache: Path, *, exit_code: int = 0) -> tuple[float, float]:
    """CPU seconds and megabytes (peak of a process) of a captune command of a source tree.

    Raises:
        RuntimeError: it ended otherwise than expected.
    """
    environment = os.environ | {"PYTHONPATH": str(tree), "CAPTUNE_CACHE": str(cache), "COLUMNS": "120"}
    process = subprocess.Popen(
        [sys.executable, "-m", "captune", *shlex.split(arguments)], env=environment, cwd=cache.parent,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    peaks: list[float] = []
    # What wait4 tells as the peak is at least that of the process that starts another.
    threading.Thread(target=_watch, args=(process.pid, peaks), daemon=True).start()
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != exit_code:
        raise RuntimeError(f"captune {arguments} ended with {process.returncode}: {said.decode()[-500:]}")
    return usage.ru_utime + usage.ru_stime, max(peaks, default=float("nan"))


def _watch(process: int, peaks: list[float]) -> None:
    """Note the peak memory of a process, in megabytes, as long as it runs."""
    with contextlib.suppress(OSError, IndexError):
        while True:
            peaks.append(int(Path(f"/proc/{process}/status").read_text().split("VmHWM:")[1].split()[0]) / 1e3)
            time.sleep(0.01)


def _in_turn(ways: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Medians of several ways, measured in turn."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, work in ways.items():
            found[name].append(work())
    return {name: median(values) for name, values in found.items()}


def commands(asked: Asked) -> Iterator[Target]:
    """Help, a wrong option, and predictions of ten images."""
    with tempfile.TemporaryDirectory(prefix="captune-targets-") as folder:
        cache = Path(folder) / "cache"
        trees = {"before": asked.before, "now": HERE}
        for what, arguments, code in (
            ("run --help", "run --help", 0), ("report --help", "report --help", 0),
            ("a wrong option", "run --datset digits", 2),
        ):  # fmt: skip
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in trees}
            for _ in range(asked.repeats):
                for name, tree in trees.items():
                    found[name].append(_command(tree, arguments, cache, exit_code=code))
            shown = {
                name: f"{median(cpu for cpu, _ in each):.1f} CPU s, {median(size for _, size in each):.0f} MB"
                for name, each in found.items()
            }
            yield Target(f"`{what}`", "≤ 1 s, ≤ 150 MB", shown["before"], shown["now"], asked.repeats)
        write_photos(Path(folder) / "ten", 10, (500, 375), classes=1)
        model = Path(folder) / "model"
        _command(asked.before, f"adapt --dataset digits --paradigm ul --method zero_shot --out {model}", cache)
        ways = {
            name: lambda tree=tree: _command(tree, f"predict {model} {folder}/ten --out {folder}/said.csv", cache)[0]
            for name, tree in trees.items()
        }
        times = _in_turn(ways, asked.repeats)
        before, now = (f"{times[name]:.1f} CPU s" for name in ("before", "now"))
        yield Target("`predict` on 10 images", "≤ 4 s", before, now, asked.repeats)


def first_commands(asked: Asked) -> Iterator[Target]:
    """The first command with twelve trials, by the clock."""
    found: dict[str, list[tuple[float, ...]]] = {"before": [], "now": []}
    for _ in range(asked.long_repeats):
        for name, tree in (("before", asked.before), ("now", HERE)):
            lines, cpu = first_command.timed(tree.absolute(), ["--trials", "12"])
            ends = np.cumsum(list(first_command.parts_of(lines).values()))
            found[name].append((ends[0], ends[1], ends[-2], ends[-1], cpu))
    shown = {
        name: "{:.1f}, {:.1f}, {:.1f}, {:.1f} s; {:.0f} CPU s".format(*np.median(each, 0))
        for name, each in found.items()
    }
    what = "first command, 12 trials: first line, first score, answer, whole"
    yield Target(what, "1, 12, –, 38 s", shown["before"], shown["now"], asked.long_repeats)


def trials(asked: Asked) -> Iterator[Target]:
    """A step of a frozen-feature trial, alone and in packs; an adaptation of an ensemble; a trial's overhead."""
    cells = [("digits", "digits", "≥ 5 times less")]
    if asked.features is not None:
        cells.append(("59 classes × 512", f"features:{asked.features}", "≥ 1.8 times less"))
    for name, dataset, wanted in cells:
        rows = {row["way"]: row for row in packs.measured(name, dataset, "cap", (8,), asked.repeats)}
        plain, packed = rows["autograd"], rows["pack of 8"]
        yield Target(
            f"a step of a frozen-feature trial, {name}", wanted, f"{plain['cpu_ms_a_step']:.2f} ms",
            f"{packed['cpu_ms_a_step']:.2f} ms: {packed['times_less']:.1f}× less ({packed['least']}–{packed['most']})",
            asked.repeats, "autograd",
        )  # fmt: skip
    task = TaskConfig.parse({"dataset": "digits", "paradigm": "ul"})
    method, config, role = configuration(task, config=_BLEND)

    def adapted(most: int) -> float:
        usual, loop.MOST_AT_ONCE = loop.MOST_AT_ONCE, most
        try:
            with tempfile.TemporaryDirectory(prefix="captune-targets-") as folder:
                check_out(Path(folder))
                return cpu_and_wall(lambda: adapt_once(task, method, config, Path(folder), role=role))[0]
        finally:
            loop.MOST_AT_ONCE = usual

    times = _in_turn({"alone": lambda: adapted(1), "packs": lambda: adapted(loop.MOST_AT_ONCE)}, asked.long_repeats)
    yield Target(
        "`adapt` of an ensemble of 15 models", "–", f"{times['alone']:.1f} CPU s", f"{times['packs']:.1f} CPU s",
        asked.long_repeats, "each by hand, alone",
    )  # fmt: skip
    overheads = [1000 * measure_overhead(trials=8).median for _ in range(asked.long_repeats)]
    yield Target(
        "overhead a trial", "≤ 100 ms by the clock", "273 ms", f"{median(overheads):.0f} ms", asked.long_repeats,
        "trial_overhead.md",
    )  # fmt: skip


def long_studies(asked: Asked) -> Iterator[Target]:
    """Opening long studies."""
    for number in (1000, 5000):
        found = [opening.measure(number) for _ in range(asked.long_repeats)]
        _, opened, proposed = (median(each) for each in zip(*found, strict=True))
        wanted = "linear" if number == 1000 else "linear, ≤ 4 s"
        former = {1000: "1.06 + 0.04 CPU s", 5000: "5.80 + 0.08 CPU s"}[number]
        yield Target(
            f"opening {number:,} trials, next proposal", wanted, former, f"{opened:.2f} + {proposed:.2f} CPU s",
            asked.long_repeats, "trial_overhead.md",
        )  # fmt: skip


def images(asked: Asked, count: int = 600) -> Iterator[Target]:
    """The store of one's own images, and strong views of it."""
    preprocessing = Preprocessing(224, (0.5,) * 3, (0.5,) * 3)
    with tempfile.TemporaryDirectory(prefix="captune-targets-") as place:
        folder = Path(place)
        write_photos(folder / "images", count, (500, 375))
        paths = tuple(sorted(map(str, (folder / "images").rglob("*.jpg"))))
        split = Split(paths, np.zeros(count, np.int64))
        dataset = Dataset("bench", ("a", "b"), "{}", split, empty_split(), empty_split(), reading="viewer")
        stores: list[ImageStore] = []

        def build() -> float:
            directory = folder / f"cache{len(stores)}"
            return cpu_and_wall(lambda: stores.append(ImageStore.open_or_build(dataset, preprocessing, directory)))[0]

        def decode() -> float:
            return cpu_and_wall(lambda: [Image.open(path).convert("RGB") for path in paths])[0]

        seconds = _in_turn({"store": build, "decoding": decode}, asked.repeats)
        yield Target(
            "images into the store, a CPU second; CPU seconds over those of Pillow's bare decoding", "≥ 450",
            "386; 1.31", f"{count / seconds['store']:.0f}; {seconds['store'] / seconds['decoding']:.2f}", asked.repeats,
            "image_store.md",
        )  # fmt: skip
        views = ImageViews(stores[0], preprocessing, torch.device("cpu"), torch.float32)
        indices, draws = np.arange(32), torch.Generator().manual_seed(0)
        draws_1B5 = views.draw(indices[None], draws, flip_probability=0.5, crop_scale_min=0.5)
        fed, boxes = views.feed_crops(indices[None], draws_1B5)(0), draws_1B5[0].clone()
        boxes[:, :2] = 0

        def milliseconds(work: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]) -> float:
            return 1000 * cpu_and_wall(lambda: work(fed, boxes, 224))[0] / len(indices)

        times = _in_turn(
            {"products": lambda: milliseconds(by_products), "now": lambda: milliseconds(one_by_one)},
            4 * asked.repeats,
        )  # fmt: skip
        yield Target(
            "a strong view on a CPU", "≤ 2 ms", f"{times['products']:.1f} ms", f"{times['now']:.1f} ms",
            4 * asked.repeats, "products",
        )  # fmt: skip


GROUPS: dict[str, Callable[[Asked], Iterator[Target]]] = {
    "images": images, "trials": trials, "opening": long_studies, "commands": commands, "first": first_commands,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="all rows as JSON")
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the release before")
    parser.add_argument("--features", type=Path, help="a feature file of 59 classes × 512")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--long-repeats", type=int, default=3, help="of what takes half a minute and more")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    given = parser.parse_args()
    asked = Asked(given.before.absolute(), given.repeats, given.long_repeats, given.features)
    limit_threads(1)
    began, load = time.monotonic(), os.getloadavg()
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, PyTorch {torch.__version__}"
    loads = " ".join(f"{one:.1f}" for one in load)
    print(f"{machine}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, load average {loads}\n")
    print("| what | wanted | before | now | repeats |\n|---|---|---|---|---|")
    rows: list[Target] = []
    for name in given.only:
        for row in GROUPS[name](asked):
            rows.append(row)
            print(row.line(), flush=True)
            given.out.write_text(json.dumps([asdict(one) for one in rows], indent=2) + "\n")
    print(f"\n{time.monotonic() - began:.0f} s; load average at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
