"""Is the cheap form of CAP as good as the published one? Paired over seeds, one CSV.

Two questions: class means in the margin from remembered features or from main samples encoded anew
(`margin_features`), and in trzsl the pool predicted over all classes or over the unseen ones (`pseudolabel_classes`).
Beside the metric stand what a difference would have to come from: the largest entry of the last margin, how far the
margins of a pair lie apart as a share of it, and how many test predictions of a pair differ. A margin of 0 says that
the budget was too short for any confident pseudolabel, so that the setting could not matter.

python -m tests.tools.cap_forms --data-root ../shared/data --out cap_forms.csv
"""

from __future__ import annotations

import argparse
import atexit
import csv
import shutil
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from captune.algorithms import ALGORITHMS, default_config
from captune.algorithms.cap import Cap
from captune.config import TaskConfig
from captune.training.evaluation import evaluate_trial
from captune.training.trial import TrainingTrial, limit_threads
from tests.golden.official_run import OFFICIAL, Official

QUESTIONS = {
    "margin_features": ("ul", ("remembered", "reencoded")),
    "pseudolabel_classes": ("trzsl", ("unseen", "all")),
}
COLUMNS = (
    "cell", "paradigm", "setting", "seed", "ours", "published",
    "largest_margin", "margins_apart", "changed", "num_test",
)  # fmt: skip


def cells(data_root: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Name → what the cell is, and what it trains with."""
    found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "digits, frozen features": ({"dataset": "digits"}, {"tuning": "features"}),
        "digits, prompts": ({"dataset": "digits"}, {"tuning": "prompts"}),
        "eurosat subset, embedded model, prompts": (
            # The embedded model reads 16 tokens, which the dataset's own template would fill.
            {"dataset": "eurosat", "data_root": str(data_root), "backbone": "tiny", "template": "{}"},
            {"tuning": "prompts"},
        ),
    }
    if OFFICIAL.exists():
        # A small CLIP above chance, which the embedded model is not on these images.
        folder = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        recorded = Official(folder, "ul").task.model_dump(exclude_unset=True, exclude={"paradigm", "split_seed"})
        settings = {"tuning": "prompts", "prompt_depth": 3, "batch_size": 16, "num_main_samples": 4}
        found["eurosat record, small CLIP, prompts"] = recorded, settings
    for name in ("whu19", "pets24", "caltech101_59"):
        file = data_root / "features" / f"{name}.npz"
        if file.exists():
            own = {"dataset": f"features:{file}"}, {"tuning": "features", "epochs": 10, "steps_per_epoch": 20}
            found[f"{name}, frozen features"] = own
    return found


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        metric: test accuracy; in trzsl the harmonic mean.
        margin_KK: the margin of its last epoch.
        labels_T: predicted classes of the test images.
    """

    metric: float
    margin_KK: Tensor
    labels_T: Tensor


def outcome(cell: dict[str, Any], values: dict[str, Any], paradigm: str, seed: int) -> Outcome:
    """Train and report one run."""
    task = TaskConfig.parse({**cell, "paradigm": paradigm, "split_seed": 500 + seed})
    config = default_config("cap", task, values["tuning"]).with_values(values)
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingTrial.open(
            task, config, algorithm=ALGORITHMS["cap"], seed=seed, directory=Path(folder), role="report", device="cpu"
        )
        while not run.trained:
            run.run_epoch()
        run.finish()
        cap = cast(Cap, run._algorithm)
        labels_T = cap.predict(cap.context.task.test).argmax(-1)
        metric = float(evaluate_trial(task, "report", Path(folder))["metric"])
        return Outcome(metric, cap.margin_KK, labels_T)


def apart(pair: tuple[Outcome, Outcome]) -> tuple[float, float, int]:
    """Largest entry of the second's margin, how far the two margins lie apart as a share of it, and how many test
    predictions differ.
    """
    one, other = pair
    largest = float(other.margin_KK.abs().max())
    distance = float((one.margin_KK - other.margin_KK).abs().max())
    return largest, distance / largest if largest else 0.0, int((one.labels_T != other.labels_T).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("cap_forms.csv"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, nargs=2, metavar=("EPOCHS", "STEPS"), help="default: the cell's own")
    parser.add_argument("--only", default="", help="cells whose name begins so")
    parser.add_argument("--setting", default="", choices=["", *QUESTIONS], help="only this question")
    options = parser.parse_args()
    limit_threads(1)
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for cell_name, (cell, values) in cells(options.data_root.absolute()).items():
            if not cell_name.startswith(options.only):
                continue
            if options.budget:
                values = {**values, "epochs": options.budget[0], "steps_per_epoch": options.budget[1]}
            for setting, (paradigm, choices) in QUESTIONS.items():
                if options.setting and setting != options.setting:
                    continue
                pairs = []
                for seed in range(options.seeds):
                    first, second = (outcome(cell, {**values, setting: choice}, paradigm, seed) for choice in choices)
                    largest, distance, changed = apart((first, second))
                    pairs.append((first.metric, second.metric))
                    metrics = [f"{100 * one.metric:.3f}" for one in (first, second)]
                    row = [cell_name, paradigm, setting, seed, *metrics, f"{largest:.3g}", f"{distance:.3g}", changed]
                    writer.writerow([*row, len(first.labels_T)])
                    file.flush()
                gains = [100 * (b - a) for a, b in pairs]
                columns = zip(*pairs, strict=True)
                means = [f"{name} {100 * statistics.mean(one):.2f}" for name, one in zip(choices, columns, strict=True)]
                spread = f" ± {statistics.stdev(gains):.2f}" if len(gains) > 1 else ""
                print(
                    f"{cell_name}, {paradigm}: {', '.join(means)}; {choices[1]} minus {choices[0]} "
                    f"{statistics.mean(gains):+.2f}{spread}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
