"""captune demo: a small study of handwritten digits that says at each step what happens and why."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captune.cli.console import plain_console
from captune.config import StudyConfig, TaskConfig
from captune.durations import duration
from captune.records import Event, Phase, Trial
from captune.records.events import PhaseBegun

if TYPE_CHECKING:
    from captune.tuning.cell import Cell

_INTRODUCTION = (
    "captune adapts CLIP to images that nobody has labelled, and finds out whether that helps.\n"
    "Here: 1,797 handwritten digits, and a 1 MB CLIP that has only seen printed ones. It takes a minute or two."
)
_PHASES = {
    Phase.REFERENCE: "First, what the model can do unchanged (zero-shot). Everything else must beat it.",
    Phase.SEARCH: (
        "Now the search: each trial trains with other settings on the unlabelled images and gets a selection score. "
        "The score asks whether alike images get the same class. No label is read."
    ),
    Phase.CONFIRM: (
        "A single trial may be lucky. The best settings are trained again with fresh seeds, and only their mean counts."
    ),
}
_CHOICE = (
    "The advice was made from what the candidates predict for the unlabelled images. Only then were the test labels "
    "read, once, to fill the column (sealed test)."
)
_YOURS = """A study of your own images (--dry-run says what it would take):
  captune run --dataset folder:PHOTOS --class-names names.txt --paradigm ul
Whether this machine is ready for it:
  captune doctor"""


def demo(
    out: Annotated[Path, typer.Option(help="Directory of the study.", metavar="DIR")] = Path("runs/demo"),
    trials: Annotated[int, typer.Option(min=1, help="Settings to try.")] = 6,
) -> None:
    """Run a study of handwritten digits in a minute or two, with a sentence at each step.

    Example: captune demo
    """
    console = plain_console(file=sys.stdout)
    console.print(_INTRODUCTION, highlight=False)
    with console.status("Loading PyTorch and Ray"):
        from captune.cli.studies import Screen, execute
        from captune.studies.planning import plan_study
        from captune.studies.running import Settings

    class Explained(Screen):
        """Prints what `captune run` prints, and explains each phase when it begins."""

        @contextlib.contextmanager
        def watching(self, cells: Sequence[Cell], **how: Any) -> Iterator[Callable[[], None]]:
            """Explain each phase above the usual progress."""

            def explain(event: Event, trial: Trial | None) -> None:
                if isinstance(event, PhaseBegun) and event.name in _PHASES:
                    console.print(f"\n{_PHASES[event.name]}", style="bold", highlight=False)

            for cell in cells:
                cell.listeners.append(explain)
            with super().watching(cells, **how) as refresh:
                yield refresh

    task = TaskConfig.parse({"dataset": "digits", "paradigm": "ul"})
    study = StudyConfig.parse({"task": task.model_dump(), "trials": trials, "confirm_top": 2, "confirm_seeds": 2})
    with console.status("Reading the images"):
        plan = plan_study(study, out.expanduser().absolute())
    began = time.monotonic()
    execute([plan], Settings.parse({"dashboard": False}), console, Explained)
    console.print(f"\n{_CHOICE}", style="bold", highlight=False)
    console.print(f"That took {duration(time.monotonic() - began)}.\n{_YOURS}", highlight=False, soft_wrap=True)
