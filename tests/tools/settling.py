"""What `--stop-when-settled` would have saved and lost on recorded studies: `python -m tests.tools.settling STUDY…`.

The rule is asked after each trial of the search, in their order, as the study itself would; studies must have run
without it and with `--scheduler none`. Prints a Markdown row for each study and one over all.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from captune.decisions.settling import settled_outlook
from captune.records import JOURNAL, Phase, StudyRecord, read_journal
from captune.tuning.header import read_study


@dataclass(frozen=True)
class Replay:
    """A study's search, had it been asked to stop.

    Attributes:
        name: of the study.
        trials: that it ran.
        stopped: after how many it would have stopped.
        lost: best score of all trials less the best of those.
        spread: standard deviation of all scores, to compare with.
    """

    name: str
    trials: int
    stopped: int
    lost: float
    spread: float

    def row(self) -> str:
        """As a row of a Markdown table."""
        saved = 100 * (1 - self.stopped / self.trials)
        return f"| {self.name} | {self.trials} | {self.stopped} | {saved:.0f} | {self.lost:.4f} | {self.spread:.4f} |"


def replay(name: str, scores: Sequence[float], places: Sequence[Sequence[float]]) -> Replay:
    """Ask the rule after each trial."""
    stopped = len(scores)
    for count in range(1, len(scores)):
        if settled_outlook(scores[:count], places[:count], len(scores) - count) is not None:
            stopped = count
            break
    mean = sum(scores) / len(scores)
    spread = (sum((score - mean) ** 2 for score in scores) / len(scores)) ** 0.5
    return Replay(name, len(scores), stopped, max(scores) - max(scores[:stopped]), spread)


def replay_study(directory: Path) -> Replay:
    """The search of a study on disk."""
    record = StudyRecord(directory, read_journal(directory / JOURNAL))
    _, space = read_study(directory)
    trials = [trial for trial in record.of_phase(Phase.SEARCH) if trial.scored]
    return replay(directory.name, [trial.score or 0.0 for trial in trials], [space.unit(t.params) for t in trials])


def summary(replays: Sequence[Replay]) -> str:
    """One row over all."""
    trials, stopped = sum(one.trials for one in replays), sum(one.stopped for one in replays)
    lost = [one.lost for one in replays]
    return (
        f"| all {len(replays)} | {trials} | {stopped} | {100 * (1 - stopped / trials):.0f} | "
        f"{sum(lost) / len(lost):.4f} (most {max(lost):.4f}) | |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", type=Path, nargs="+")
    replays = [replay_study(directory) for directory in parser.parse_args().studies]
    print("| study | trials | would stop after | saved, % | best score lost | spread of scores |")
    print("|---|---|---|---|---|---|")
    print("\n".join([*(one.row() for one in replays), summary(replays)]))


if __name__ == "__main__":
    main()
