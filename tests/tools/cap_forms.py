"""Is the cheap form of CAP as good as the published one? Paired over seeds, one CSV.

Two questions: class means in the margin from remembered features or from main samples encoded anew
(`margin_features`), and in trzsl the pool predicted over all classes or over the unseen ones (`pseudolabel_classes`).

python -m tests.tools.cap_forms --data-root ../shared/data --out cap_forms.csv
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
from pathlib import Path
from typing import Any

from captune.algorithms import ALGORITHMS, paper_config
from captune.config import TaskConfig
from captune.training.evaluation import evaluate_trial
from captune.training.trial import TrialRun, limit_threads

QUESTIONS = {
    "margin_features": ("ul", ("remembered", "reencoded")),
    "pseudolabel_classes": ("trzsl", ("unseen", "all")),
}


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
    for name in ("whu19", "pets24", "caltech101_59"):
        file = data_root / "features" / f"{name}.npz"
        if file.exists():
            own = {"dataset": f"features:{file}"}, {"tuning": "features", "epochs": 10, "steps_per_epoch": 20}
            found[f"{name}, frozen features"] = own
    return found


def accuracy(cell: dict[str, Any], values: dict[str, Any], paradigm: str, seed: int) -> float:
    """Test accuracy of one run; in trzsl the harmonic mean."""
    task = TaskConfig.parse({**cell, "paradigm": paradigm, "split_seed": 500 + seed})
    config = paper_config("cap", task, values["tuning"]).with_values(values)
    with tempfile.TemporaryDirectory() as folder:
        run = TrialRun.open(
            task, config, algorithm=ALGORITHMS["cap"], seed=seed, directory=Path(folder), role="report", device="cpu"
        )
        while not run.finished:
            run.run_epoch()
        run.finish()
        return float(evaluate_trial(task, "report", Path(folder))["metric"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("cap_forms.csv"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, nargs=2, metavar=("EPOCHS", "STEPS"), help="default: the cell's own")
    parser.add_argument("--only", default="", help="cells whose name begins so")
    options = parser.parse_args()
    limit_threads(1)
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["cell", "paradigm", "setting", "value", "seed", "metric"])
        for name, (cell, values) in cells(options.data_root.absolute()).items():
            if not name.startswith(options.only):
                continue
            if options.budget:
                values = {**values, "epochs": options.budget[0], "steps_per_epoch": options.budget[1]}
            for setting, (paradigm, choices) in QUESTIONS.items():
                metrics: dict[str, list[float]] = {choice: [] for choice in choices}
                for seed in range(options.seeds):
                    for choice in choices:
                        metric = accuracy(cell, {**values, setting: choice}, paradigm, seed)
                        metrics[choice].append(metric)
                        writer.writerow([name, paradigm, setting, choice, seed, f"{metric:.6f}"])
                        file.flush()
                gains = [100 * (b - a) for a, b in zip(*metrics.values(), strict=True)]
                first, second = (f"{choice} {100 * statistics.mean(metrics[choice]):.2f}" for choice in choices)
                print(
                    f"{name}, {paradigm}: {first}, {second}; {choices[1]} minus {choices[0]} "
                    f"{statistics.mean(gains):+.2f} ± {statistics.stdev(gains):.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
