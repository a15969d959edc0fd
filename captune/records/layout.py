"""The files of a study's directory and their names.

The names of files are defined here alone.

```
runs/digits-ul-cap/
  study.yaml            settings, search space, versions; what `captune resume` reads
  journal.jsonl         every event, append-only; tables, figures and pages are made again from it and trials/
  optuna.journal        copy of the search for optuna-dashboard
  driver.lock           who runs the study now; .driver.guard protects changes of it
  stop.json             there while `captune stop` waits for the driver to hear it
  tensorboard/KEY/      curves of a trial
  trials/KEY/           config.yaml epochs.jsonl resume.safetensors checkpoint.safetensors predictions.safetensors .lock
  *.csv *.png *.svg     tables and figures; columns.csv and datapackage.json say what every column means
  predictions.csv       the advised model's prediction for every test image
  findings.json         what changed on pool and test images, with small pictures, for the report
  best_config.yaml      what is advised, for `captune adapt --config`
  checkpoint.safetensors  the same as it was trained here, for `captune predict` and `captune export`
  report.html           the page
  adapted/              the model adapted with what is advised, where checkpoint.safetensors could not be written
```
"""

from __future__ import annotations

from pathlib import Path

STUDY = "study.yaml"
JOURNAL = "journal.jsonl"
TRIALS = "trials"
LOCK, GUARD = "driver.lock", ".driver.guard"
STOP = "stop.json"
OPTUNA_COPY = "optuna.journal"
TENSORBOARD = "tensorboard"
BEST_CONFIG, PAGE = "best_config.yaml", "report.html"
FINDINGS = "findings.json"
PREDICTIONS_CSV, COLUMNS_CSV, DATAPACKAGE = "predictions.csv", "columns.csv", "datapackage.json"
OF_A_STUDY = (STUDY, JOURNAL, BEST_CONFIG, PAGE)
"""Files of a study by any of which a user may name it."""
REPORT = "report"
"""The folder next to several studies that holds their common report."""
OUTDATED = ("runs.csv", "concepts.csv")
"""Derived files that earlier versions wrote under another name; the next report removes them (now: studies.csv;
classes.csv and pairs.csv)."""
TABLES = (
    "studies.csv", "notes.csv", "trials.csv", "epochs.csv", "confirm.csv", "best_configs.csv", "robustness.csv",
    "comparisons.csv", "ranks.csv", "importance.csv", "marginals.csv", "curves.csv", "selection.csv", "criteria.csv",
    "transfer.csv", "classes.csv", "pairs.csv", "confusion.csv", "reliability.csv", "pictures.csv",
)  # fmt: skip
FIGURES = ("study", "robustness", "importance", "shares", "reliability", "comparisons", "curves")
"""Each is written as .png and .svg."""
DERIVED = frozenset({*OUTDATED, *TABLES, *(f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg"))})
"""Tables and figures that reports write, or once wrote; a report removes those that it does not write."""

# In the directory of a trial.
CONFIG, EPOCHS = "config.yaml", "epochs.jsonl"
RESUME, CHECKPOINT, PREDICTIONS = "resume.safetensors", "checkpoint.safetensors", "predictions.safetensors"
TRIAL_LOCK = ".lock"

# In the directory of an adaptation.
METRICS, EPOCHS_CSV = "metrics.json", "epochs.csv"
TASK = "task.yaml"
"""The cell's settings beside an adaptation of the paper's table (`compare --preset paper`)."""
ADAPTED = "adapted"
"""The folder in a study's directory of the model adapted with its best configuration."""


def trial_directory(study: Path, key: str) -> Path:
    """The directory of a trial."""
    return study / TRIALS / key
