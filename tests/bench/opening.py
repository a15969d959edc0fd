"""How long it takes to open a study that goes on, by its number of trials: `python -m tests.bench.opening 1000 5000`.

CPU seconds of the main thread: reading the journal, opening the study, and the sampler's next proposal. The journal is
that of a search of four epochs per trial. The copy for optuna-dashboard is brought into line by a thread of its own,
which is not counted.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from captune.records import JOURNAL, Epoch, Journal, Phase, State, read_journal
from captune.records.events import Finished, PhaseBegun, Planned, Started
from captune.space import load_space
from captune.tuning.open_study import OpenStudy, study_header
from tests.tuning.fakes import info, space_path, study

NUM_EPOCHS = 4


def write_long_study(directory: Path, num_trials: int) -> Callable[[], OpenStudy]:
    """The journal of a search whose trials have all ended; returns what opens it to go on."""
    (directory / "trials").mkdir(parents=True)
    facts = info(epochs=NUM_EPOCHS)
    space = load_space(space_path(directory), facts.base)
    settings = study(trials=num_trials + 5, confirm_top=1)
    draw = random.Random(0)
    with Journal(directory / JOURNAL, durable=False) as journal:
        journal.append(study_header(settings, facts, space))
        for key in ("zero_shot", "balanced"):
            journal.append(Planned(key=key, phase=Phase.REFERENCE, origin="reference", method=key))
            journal.append(Finished(key=key, state=State.COMPLETE, score=0.5))
        journal.append(PhaseBegun(name=Phase.SEARCH))
        for number in range(num_trials):
            params = {
                "learning_rate": 10 ** draw.uniform(-3, -1), "weight_decay": 10 ** draw.uniform(-4, -1),
                "epochs": NUM_EPOCHS,
            }  # fmt: skip
            key, score = f"t{number:04d}", draw.random()
            journal.append(
                Planned(
                    key=key, phase=Phase.SEARCH, number=number, config_id=number, seed=0, method="fake", params=params,
                    config=facts.base.model_dump(mode="json") | params, origin="sampler" if number else "default",
                )
            )  # fmt: skip
            journal.append(Started(key=key, node="node", attempt=1, gpus=0.0))
            scores = {"fake": score, "neighbours": score}
            for epoch in range(1, NUM_EPOCHS + 1):
                values = {"loss": 0.1, "num_confident": 10, "balance": 0.9, "seconds": 0.1, "memory_bytes": 10**9}
                journal.append(
                    Epoch(
                        key=key, epoch=epoch, fidelity=epoch / NUM_EPOCHS, score=score, scores=scores,
                        decision="continue", values=values,
                    )
                )  # fmt: skip
            journal.append(
                Finished(
                    key=key, state=State.COMPLETE, score=score, score_epoch=NUM_EPOCHS, scores=scores, fidelity=1.0,
                    seconds=1.0, node="node", num_parameters=3, prediction_balance=0.9,
                )
            )  # fmt: skip
    return lambda: OpenStudy(directory, settings, facts, space, resume=True, durable=False)


def measure(num_trials: int) -> tuple[float, float, float]:
    """CPU seconds to read the journal, to open the study, and to propose the next trial."""
    # The copy of thousands of trials may still be written when a study has been closed, which waits for a minute.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        directory = Path(folder) / "study"
        reopen = write_long_study(directory, num_trials)
        reopen().close()  # the copy for optuna-dashboard is there, as it is in a study that goes on
        started = time.thread_time()
        read_journal(directory / JOURNAL)
        read = time.thread_time()
        opened = reopen()
        ready = time.thread_time()
        trial = opened.cell.next_trial()
        proposed = time.thread_time()
        assert trial is not None and trial.origin == "sampler"
        opened.close()
    return read - started, ready - read, proposed - ready


if __name__ == "__main__":
    for asked in [int(argument) for argument in sys.argv[1:]] or [1000, 5000]:
        reading, opening, proposing = measure(asked)
        print(
            f"{asked} trials: journal read in {reading:.2f} s, study opened in {opening:.2f} s, "
            f"next trial proposed in {proposing:.2f} s",
            flush=True,
        )
