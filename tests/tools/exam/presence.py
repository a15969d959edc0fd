"""Which names are absent: fits the model of captune/decisions/presence.py, and judges it by leaving datasets out."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from captune.decisions.presence import CONFIDENCE, FACTS, absence_probabilities, presence_facts
from tests.tools.exam.worlds import World

# A backbone at chance is told so before anything is said of names.
LEFT_OUT = ("nothing",)


class Case:
    """The classes of one world.

    Attributes:
        world: which.
        facts_KF: what the model reads.
        absent_K: whether the pool holds no image of a class: the truth.
    """

    def __init__(self, world: World, folder: Path) -> None:
        with np.load(folder / "world.npz") as file:
            logits_NK, labels_N = torch.from_numpy(file["logits_NK"]).float(), file["pool_labels_N"]
            neighbours_Nk = torch.from_numpy(file["neighbours_Nk"]).long()
        with np.load(folder / "anchored.npz") as file:
            mixture_NK = torch.from_numpy(file["pool"]).float()
        self.world = world
        self.facts_KF = presence_facts(logits_NK.softmax(-1), mixture_NK, neighbours_Nk).numpy()
        self.absent_K = np.bincount(labels_N[labels_N >= 0], minlength=len(self.facts_KF))[: len(self.facts_KF)] == 0


class Model:
    """A logistic model of standardised facts; every world weighs the same, however many classes it has."""

    def __init__(self, cases: Sequence[Case]) -> None:
        facts = np.concatenate([case.facts_KF for case in cases])
        weights = np.concatenate([np.full(len(case.absent_K), 1000 / len(case.absent_K)) for case in cases])
        self.mean_F, self.spread_F = facts.mean(0), facts.std(0)
        truth = np.concatenate([case.absent_K for case in cases])
        self.fitted = LogisticRegression(max_iter=500).fit((facts - self.mean_F) / self.spread_F, truth, weights)

    def probabilities(self, case: Case) -> np.ndarray:
        """Of absence, (K,)."""
        scaled = (case.facts_KF - self.mean_F) / self.spread_F
        logits_K = torch.from_numpy(self.fitted.decision_function(scaled))
        return absence_probabilities(logits_K, torch.from_numpy(case.facts_KF)).numpy()

    def as_code(self) -> str:
        """Constants for captune/decisions/presence.py."""
        rows = zip(FACTS, self.mean_F, self.spread_F, self.fitted.coef_[0], strict=True)
        lines = [f'    "{name}": ({mean:.4f}, {spread:.4f}, {weight:.4f}),' for name, mean, spread, weight in rows]
        return "\n".join(["MODEL = {", *lines, "}", f"INTERCEPT = {self.fitted.intercept_[0]:.4f}"])


def judge_presence(cache: Path, out: Path, datasets: Sequence[str]) -> None:
    """Fit on all worlds but one dataset's, judge on those; print the table and the constants, write every case."""
    cases = []
    for folder in sorted(cache.iterdir()):
        world = World.of_key(folder.name)
        if world.kind in LEFT_OUT or world.dataset not in datasets:
            continue
        if (folder / "world.npz").exists() and (folder / "anchored.npz").exists():
            cases.append(Case(world, folder))
    rows = []
    for dataset in datasets:
        model = Model([case for case in cases if case.world.dataset != dataset])
        for case in cases:
            if case.world.dataset == dataset:
                said_K = model.probabilities(case) >= CONFIDENCE
                world = case.world
                rows.append(
                    {
                        "dataset": dataset, "paradigm": world.paradigm, "kind": world.kind, "seed": world.seed,
                        "classes": len(said_K), "absent": int(case.absent_K.sum()), "called_absent": int(said_K.sum()),
                        "rightly": int((said_K & case.absent_K).sum()),
                    }
                )  # fmt: skip
    with (out / "absent_names.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        absent, called, right, classes = (
            sum(row[name] for row in own) for name in ("absent", "called_absent", "rightly", "classes")
        )
        worlds = sum(row["called_absent"] > row["rightly"] for row in own)
        precision = f"{right / called:.2f}" if called and absent else "–"
        recall = f"{right / absent:.2f}" if absent else "–"
        wrongly = f"{100 * (called - right) / max(classes - absent, 1):.1f}"
        print(f"| {kind} | {len(own)} | {absent} | {called} | {precision} | {recall} | {wrongly} | {worlds} |")
    print(Model(cases).as_code())
