"""What a trial costs that computes nothing: `python -m tests.bench.trivial captune 200`.

The ways: `captune` (a study of quick trials on two workers of a private cluster), `packs` (the same in packs of eight,
as trials on frozen features are handed out), `tune` (Ray Tune with OptunaSearch on the same cluster), `memory`,
`journal`, `sqlite` (Optuna alone, in this process, with that storage). Milliseconds a trial by the clock and of this
process's CPU, from the twentieth trial to the last.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

_WARM = 20
_PACK = 8
Clock = list[tuple[float, float]]


def _objective(rate: float, decay: float) -> float:
    return 1.0 - (rate - 0.01) ** 2 - decay


def _open_in_packs(spec: Any) -> Any:
    """A quick trial; the worker that opens it takes epochs of a pack one after another."""
    from captune.training import trial as trial_module
    from tests.tuning.fakes import open_fake

    trial_module.run_epochs_together = lambda trials: [trial.run_epoch() for trial in trials]
    return open_fake(spec)


def of_captune(number: int, tick: Callable[[], None], folder: Path, *, pack: int = 1) -> None:
    """A study of trials of four epochs that last microseconds, so many in a pack."""
    from captune.algorithms.configs import CapConfig
    from captune.records import Phase
    from captune.records.events import Finished
    from captune.space import load_space
    from captune.tuning.cluster import connected
    from captune.tuning.engine import Allotment, run_cells

    try:
        from captune.tuning.open_study import OpenStudy
    except ImportError:  # a source tree of before
        from captune.tuning.study import OpenStudy  # type: ignore[no-redef, import-not-found]
    from tests.tuning.fakes import info, open_fake, space_path, study

    facts, settings = info(epochs=4), study(trials=number, confirm_top=0, scheduler="none")
    if pack > 1:
        settings = settings.model_copy(update={"method": "cap"})
        facts = info(base=CapConfig(tuning="features", epochs=4, weight_decay=0.01), most_packed=pack)
    opened = OpenStudy(folder / "run", settings, facts, load_space(space_path(folder), facts.base))

    def note(event: Any, trial: Any) -> None:
        if isinstance(event, Finished) and trial.phase is Phase.SEARCH:
            tick()

    opened.cell.listeners.append(note)
    with connected(None, threads=1, dashboard=False, cpus=2) as cluster:
        run_cells([opened.cell], cluster, Allotment(2), open_trial=open_fake if pack == 1 else _open_in_packs)
    opened.close()


def of_tune(number: int, tick: Callable[[], None], folder: Path) -> None:
    """Ray Tune with OptunaSearch: a trial of four reports, actors reused, nothing printed."""
    from ray import tune
    from ray.tune import Callback, Trainable
    from ray.tune.search.optuna import OptunaSearch

    from captune.tuning.cluster import connected

    class Quick(Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, float]) -> None:
            self.values, self.told = config, 0

        def reset_config(self, new_config: dict[str, float]) -> bool:
            self.setup(new_config)
            return True

        def step(self) -> dict[str, Any]:
            self.told += 1
            return {"score": _objective(self.values["rate"], self.values["decay"]), "done": self.told == 4}

    class Ticks(Callback):  # type: ignore[misc]
        def on_trial_complete(self, *_: Any, **__: Any) -> None:
            tick()

    space = {"rate": tune.loguniform(1e-3, 1e-1), "decay": tune.loguniform(1e-4, 1e-1)}
    with connected(None, threads=1, dashboard=False, cpus=2) as cluster:
        tune.Tuner(
            Quick,
            param_space=space,
            tune_config=tune.TuneConfig(
                search_alg=OptunaSearch(metric="score", mode="max"), metric="score", mode="max", num_samples=number,
                max_concurrent_trials=2, reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=str(cluster.storage), verbose=0, callbacks=[Ticks()],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # there is nothing to keep
            ),
        ).fit()  # fmt: skip


def of_optuna(storage: str, number: int, tick: Callable[[], None], folder: Path) -> None:
    """Optuna alone: a trial of four reports."""
    import optuna

    stores: dict[str, Callable[[], Any]] = {
        "memory": lambda: None,
        "journal": lambda: optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(folder / "journal"))
        ),
        "sqlite": lambda: f"sqlite:///{folder}/optuna.db",
    }
    optuna.logging.disable_default_handler()
    study = optuna.create_study(storage=stores[storage](), direction="maximize")

    def objective(trial: Any) -> float:
        rate, decay = (
            trial.suggest_float("rate", 1e-3, 1e-1, log=True),
            trial.suggest_float("decay", 1e-4, 0.1, log=True),
        )
        for epoch in range(4):
            trial.report(_objective(rate, decay), epoch)
        return _objective(rate, decay)

    study.optimize(objective, number, callbacks=[lambda *_: tick()])


def measure(way: str, number: int) -> tuple[float, float]:
    """Milliseconds a trial by the clock, and of this process's CPU."""
    clock: Clock = []

    def tick() -> None:
        clock.append((time.monotonic(), time.process_time()))

    with tempfile.TemporaryDirectory(prefix="captune-trivial-", ignore_cleanup_errors=True) as place, _quiet():
        folder = Path(place)
        ways = {"captune": of_captune, "packs": partial(of_captune, pack=_PACK), "tune": of_tune}
        ways.get(way, partial(of_optuna, way))(number, tick, folder)
    (began, cpu), (ended, spent) = clock[_WARM], clock[-1]
    trials = len(clock) - 1 - _WARM
    return 1000 * (ended - began) / trials, 1000 * (spent - cpu) / trials


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(sys.stderr):
        yield


if __name__ == "__main__":
    wall, cpu = measure(sys.argv[1], int(sys.argv[2]))
    print(f"{wall:.1f} {cpu:.1f}")
