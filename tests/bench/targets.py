"""Every row of the table of speed targets in one run: `python -m tests.bench.targets OUT.json --before DIR`.

Prints a Markdown row a target: what was wanted, what the source tree `--before` needs, what this one needs, and how
many times less that is; measured in turn in one run. Where a target compares two ways that both stand in this tree
(packs and autograd, the fast step and the plain one), they are measured beside each other instead, and the row says so.
Everything is a median of `--repeats`, or of `--long-repeats` where one takes half a minute; the number stands in the
row, the load average above the table. What this machine lacks, and what cannot be reached, stands in the last column.

    git worktree add ../before 53b2a88
    git worktree add ../benched 7f55219
    python -m tests.bench.targets targets.json --before ../before --benched ../benched --features caltech101_59.npz

`--benched` serves the rows that only a tree with `tests/bench` can measure; older ones have none.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize, ToTensor

from captune.cost.measure import machine
from captune.data.dataset import Dataset, Split, empty_split
from captune.data.image_store import ImageStore
from captune.data.resampling import by_products, one_by_one
from captune.data.views import ImageViews
from captune.model.backbone import Precision
from captune.preprocessing import Preprocessing
from captune.training.trial import limit_threads
from tests.bench import first_command, packs
from tests.bench.rows import matrix_rates, measure_encoding, measure_steps
from tests.bench.store import cpu_and_wall
from tests.bench.target_rows import HERE, Asked, Target, compared, numbers_of, of_both
from tests.bench.workbench import Workbench, open_backbone
from tests.tools.photos import write_photos

_NO_AMX = "bf16 needs AMX, which this CPU lacks; on one that has it (speed_targets.md) {}"
# Of each row in bf16 what was reached where there is AMX, and the same operations at all of the matrix rate.
_BF16 = {10: "5.6×, at most 7.2×", 100: "11.5×, at most 12.6×"}


def _command(tree: Path, arguments: str, cache: Path, *, exit_code: int = 0) -> tuple[float, float]:
    """CPU seconds and megabytes (peak of a process) of a captune command of a source tree.

    Raises:
        RuntimeError: it ended otherwise than expected.
    """
    environment = os.environ | {"PYTHONPATH": str(tree), "CAPTUNE_CACHE": str(cache), "COLUMNS": "120"}
    process = subprocess.Popen(
        [*first_command.CAPTUNE, *shlex.split(arguments)], env=environment, cwd=cache.parent,
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
    """Help, status, a wrong option, and predictions of ten images."""
    with tempfile.TemporaryDirectory(prefix="captune-targets-") as folder:
        cache, study = Path(folder) / "cache", Path(folder) / "study"
        small = "--trials 2 --confirm-top 1 --confirm-seeds 1 --no-dashboard --epochs 4"
        _command(asked.before, f"run --dataset digits --paradigm ul {small} --out {study}", cache)
        for what, arguments, code in (
            ("run --help", "run --help", 0), ("report --help", "report --help", 0),
            ("status", f"status {study}", 0), ("a wrong option", "run --datset digits", 2),
        ):  # fmt: skip
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in asked.trees}
            for _ in range(asked.repeats):
                for name, tree in asked.trees.items():
                    found[name].append(_command(tree, arguments, cache, exit_code=code))
            cpu, size = ({name: median(row[at] for row in rows) for name, rows in found.items()} for at in (0, 1))
            shown = {name: f"{cpu[name]:.1f} CPU s, {size[name]:.0f} MB" for name in found}
            yield Target(
                f"`{what}`", "≤ 1 s, ≤ 150 MB", shown["before"], shown["now"], f"{cpu['before'] / cpu['now']:.2g}×",
                asked.repeats,
            )  # fmt: skip
        write_photos(Path(folder) / "ten", 10, (500, 375), classes=1)
        model = Path(folder) / "model"
        _command(asked.before, f"adapt --dataset digits --paradigm ul --method zero_shot --out {model}", cache)
        ways = {
            name: lambda tree=tree: _command(tree, f"predict {model} {folder}/ten --out {folder}/said.csv", cache)[0]
            for name, tree in asked.trees.items()
        }
        times = _in_turn(ways, asked.repeats)
        yield compared("`predict` on 10 images", "≤ 4 s", times["before"], times["now"], "CPU s", asked.repeats)


def first_commands(asked: Asked) -> Iterator[Target]:
    """The first command with twelve trials, by the clock and in CPU seconds."""
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in asked.trees}
    for _ in range(asked.long_repeats):
        for name, tree in asked.trees.items():
            lines, cpu = first_command.timed(tree.absolute(), ["--trials", "12"])
            ends = np.cumsum(list(first_command.parts_of(lines).values()))
            found[name].append((ends[0], ends[1], ends[-1], sum(cpu.values())))
    before, now = (np.median(found[name], 0).tolist() for name in ("before", "now"))
    rows = (("first line", "≤ 1 s"), ("first score", "≤ 12 s"), ("whole", "≤ 38 s"), ("whole, all processes", "–"))
    for at, (what, wanted) in enumerate(rows):
        unit = "CPU s" if wanted == "–" else "s"
        yield compared(f"first command, 12 trials: {what}", wanted, before[at], now[at], unit, asked.long_repeats)


def trials(asked: Asked) -> Iterator[Target]:
    """A step of a frozen-feature trial, by autograd and in packs."""
    cells = [("digits", "digits", "≥ 5 times less")]
    if asked.features is not None:
        cells.append(("59 classes × 512", f"features:{asked.features}", "≥ 1.8 times less"))
    for name, dataset, wanted in cells:
        rows = {row["way"]: row for row in packs.measured(name, dataset, "cap", (8,), asked.repeats)}
        plain, packed = rows["autograd"], rows["pack of 8"]
        yield Target(
            f"a step of a frozen-feature trial, {name}", wanted, f"{plain['cpu_ms_a_step']:.2f} CPU ms",
            f"{packed['cpu_ms_a_step']:.2f} CPU ms", f"{packed['times_less']:.1f}×", asked.repeats,
            f"autograd and a pack of 8 ({packed['least']} to {packed['most']})",
        )  # fmt: skip


def overhead(asked: Asked) -> Iterator[Target]:
    """What a trial costs that computes nothing."""
    script, number = str(HERE / "tests/bench/trivial.py"), "150"
    found = of_both(asked, asked.long_repeats, script, "captune", number)
    others = {
        way: median(numbers_of(HERE, script, way, number)[0] for _ in range(asked.long_repeats))
        for way in ("packs", "tune", "memory", "journal", "sqlite")
    }
    yield compared(
        "overhead a trial, trivial objective, by the clock", "≤ 25 ms", found["before"][0], found["now"][0], "ms",
        asked.long_repeats,
        "in packs of 8, as on frozen features, {packs:.0f}; Ray Tune with OptunaSearch {tune:.0f}; Optuna alone "
        "{memory:.0f}, {journal:.0f} (journal), {sqlite:.0f} (sqlite)".format(**others),
    )  # fmt: skip


def long_studies(asked: Asked) -> Iterator[Target]:
    """Opening and reporting long studies."""
    script = "from tests.bench.opening import measure; print(*measure({}))"
    for number in (1000, 5000):
        found = of_both(asked, asked.long_repeats, "-c", script.format(number))
        seconds = {name: told[1] + told[2] for name, told in found.items()}
        yield compared(
            f"opening {number:,} trials, next proposal", "linear" if number == 1000 else "linear, ≤ 4 s",
            seconds["before"], seconds["now"], "CPU s", asked.long_repeats, digits=2,
        )  # fmt: skip
    page = str(HERE / "tests/bench/page.py")  # older trees have none
    for number, wanted in ((1000, "≤ 10 s, ≤ 500 MB"), (5000, "≤ 50 s, ≤ 500 MB")):
        # With 5,000 trials the tree before takes minutes.
        found = of_both(asked, 1, page, "--numbers", str(number), most={"before": 1 if number == 1000 else 0})
        yield Target(
            f"page of {number:,} trials", wanted,
            *("–" if np.isnan(told[0]) else f"{told[0]:.0f} CPU s, {told[1]:.0f} MB" for told in found.values()),
            "–" if np.isnan(found["before"][0]) else f"{found['before'][0] / found['now'][0]:.2g}×", 1,
        )  # fmt: skip


def steps(asked: Asked) -> Iterator[Target]:
    """The UL step of ViT-B/32 beside the plain one, encoding, and memory."""
    features = machine(torch.device("cpu"))["cpu_features"]
    fast_bf16 = "avx512_bf16" in features or "amx_bf16" in features
    precisions: tuple[Precision, ...] = ("fp32", "bf16") if fast_bf16 else ("fp32",)
    torch.set_num_threads(os.cpu_count() or 1)  # CPU seconds a thread are compared
    backbone = open_backbone("ViT-B-32", "random", "cpu")
    rates = matrix_rates(precisions, backbone.device, seconds=0.5)
    with tempfile.TemporaryDirectory(prefix="captune-targets-") as folder:
        for classes, wanted in ((10, {"fp32": "≥ 1.4×", "bf16": "8×"}), (100, {"fp32": "≥ 4.5×", "bf16": "18×"})):
            bench = Workbench(Path(folder), backbone, classes)
            if classes == 10:
                for row in measure_encoding(bench, precisions, rates, repeats=asked.long_repeats):
                    yield Target(
                        f"encoding a pool, {row.precision}", "8×" if row.precision == "bf16" else "–",
                        f"{row.plain_rate:.1f} images/CPU s", f"{row.fast_rate:.1f} images/CPU s",
                        f"{row.fast_rate / row.plain_rate:.1f}×", asked.long_repeats,
                        f"image by image and in batches; at {100 * row.matrix_share:.0f} % of the matrix rate",
                    )  # fmt: skip
            for step in measure_steps(bench, precisions, rates, repeats=1):
                yield Target(
                    f"UL step, {classes} classes, {step.precision}", wanted[step.precision],
                    f"{step.plain.best_cpu:.1f} CPU s", f"{step.fast.best_cpu:.1f} CPU s", f"{step.ratio:.2f}×", 1,
                    f"the plain step and this one; at {100 * step.matrix_share:.0f} % of the matrix rate, so at most "
                    f"{step.ratio / step.matrix_share:.1f}×" + (f"; {step.too_noisy}" if step.too_noisy else ""),
                )  # fmt: skip
            if not fast_bf16:
                yield Target(
                    f"UL step, {classes} classes, bf16", wanted["bf16"], "–", "–", "–", 0,
                    _NO_AMX.format(_BF16[classes]),
                )  # fmt: skip
    if not fast_bf16:
        yield Target("encoding a pool, bf16", "8×", "–", "–", "–", 0, _NO_AMX.format("5.0×, at most 8.3×"))


def memory(asked: Asked) -> Iterator[Target]:
    """The peak of a process that only trains."""
    found = of_both(asked, 1, str(HERE / "tests/bench/peak.py"), "100", "bf16", "--steps", "1")
    peaks = {name: told[1] / 1000 for name, told in found.items()}
    yield compared("peak memory, 100 classes, bf16, fresh process", "≤ 2.6 GB", peaks["before"], peaks["now"], "GB", 1,
                   f"{found['now'][0] / 1000:.1f} GB are there before the first step", digits=2)  # fmt: skip


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

        usual = ImageFolder(
            str(folder / "images"), Compose([Resize(224, InterpolationMode.BICUBIC), CenterCrop(224), ToTensor()])
        )

        def handed_out() -> float:
            return cpu_and_wall(lambda: [usual[index] is None for index in range(len(usual))])[0]

        def bare() -> float:
            return cpu_and_wall(lambda: [simplejpeg.decode_jpeg(Path(path).read_bytes()) is None for path in paths])[0]

        seconds = _in_turn(
            {"store": build, "Pillow": decode, "ImageFolder": handed_out, "simplejpeg": bare}, asked.repeats
        )
        rates = {name: count / one for name, one in seconds.items()}
        yield Target(
            "images into the store, a CPU second", "≥ 450 where ImageFolder has 197: 2.3×",
            f"{rates['ImageFolder']:.0f}", f"{rates['store']:.0f}", f"{rates['store'] / rates['ImageFolder']:.2f}×",
            asked.repeats,
            f"ImageFolder with its usual transform, and the store; bare decoding: Pillow {rates['Pillow']:.0f}, "
            f"simplejpeg {rates['simplejpeg']:.0f}",
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
        yield compared("a strong view on a CPU", "≤ 2 ms", times["products"], times["now"], "ms", 4 * asked.repeats,
                       "by products of matrices, and view by view", digits=2)  # fmt: skip


GROUPS: dict[str, Callable[[Asked], Iterator[Target]]] = {
    "first": first_commands, "commands": commands, "trials": trials, "overhead": overhead, "long": long_studies,
    "steps": steps, "memory": memory, "images": images,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="all rows as JSON")
    parser.add_argument("--before", type=Path, required=True, help="a checkout of before, for rows of whole commands")
    parser.add_argument("--benched", type=Path, help="one that has tests/bench, for the others; default: the same")
    parser.add_argument("--features", type=Path, help="a feature file of 59 classes × 512")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--long-repeats", type=int, default=2, help="of what takes half a minute and more")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    given = parser.parse_args()
    before, benched = given.before.absolute(), (given.benched or given.before).absolute()
    asked = Asked(before, benched, given.repeats, given.long_repeats, given.features)
    for tree in {before, benched, HERE}:
        first_command.compile_tree(tree)
    began, load = time.monotonic(), os.getloadavg()
    where = f"{platform.machine()}, {os.cpu_count()} CPUs, PyTorch {torch.__version__}"
    loads = " ".join(f"{one:.1f}" for one in load)
    print(f"{where}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, load average {loads}\n")
    print("| what | wanted | before | now | times less | repeats | note |\n|---|---|---|---|---|---|---|")
    rows: list[Target] = []
    for name in given.only:
        limit_threads(1)
        for row in GROUPS[name](asked):
            rows.append(row)
            print(row.line(), flush=True)
            given.out.write_text(json.dumps([asdict(one) for one in rows], indent=2) + "\n")
    print(f"\n{time.monotonic() - began:.0f} s; load average at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
