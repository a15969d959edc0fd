"""What `captune run` and `captune resume` print while studies run, and when they have ended."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from rich import progress as bars
from rich.console import Console
from rich.table import Table
from rich.text import Text

from captune.cli.console import labelled, outlived
from captune.cli.options import say_notes
from captune.decisions.criteria import ORACLE
from captune.plain_text import counted, resume_command, typed_path
from captune.records import Role, State, StudyRecord, is_against_zero_shot
from captune.records.events import Chosen
from captune.records.layout import BEST_CONFIG, CHECKPOINT, PAGE, PREDICTIONS_CSV
from captune.studies.planning import Plan
from captune.studies.running import Settings, Watcher, run_studies
from captune.tuning.allotment import Allotment
from captune.tuning.cell import Cell
from captune.tuning.cluster import Cluster, token_file
from captune.tuning.progress import Progress, standing

INTERRUPTED = 130
_SHOWN_REASONS = 3


class Screen(Watcher):
    """Prints what happens."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._waiting: bars.Progress | None = None
        self._watching = False

    def wait_for(self, what: str | None) -> None:
        """Show on a terminal what is waited for, and for how long; None ends the display."""
        if self._waiting is not None:
            self._waiting.stop()
            self._waiting = None
        if what is not None and self._console.is_terminal:
            columns = (bars.SpinnerColumn(), bars.TextColumn("{task.description}"), bars.TimeElapsedColumn())
            self._waiting = bars.Progress(*columns, console=self._console, transient=True)
            self._waiting.add_task(what, total=None)
            self._waiting.start()

    def note(self, text: str) -> None:
        """Print a note."""
        say_notes(self._console, [text])

    def warn(self, text: str) -> None:
        """Print a warning."""
        self._console.print(labelled("warning", text, "yellow"))

    def started(self, cells: Sequence[Cell], cluster: Cluster, allotment: Allotment) -> None:
        """Say where trials run, how many at once, and where to watch."""
        _say_start(cells, cluster, allotment, self._console)
        self.wait_for("Preparing images")

    def dashboard(self, cluster: Cluster) -> None:
        """Say where the Ray dashboard is."""
        self._console.print(
            f"Ray dashboard: http://{cluster.dashboard}"
            + (f" (asks for the token in {token_file()})" if cluster.authenticated else ""),
            highlight=False,
        )

    @contextlib.contextmanager
    def watching(
        self, cells: Sequence[Cell], *, concurrency: int, budget: Callable[[], str | None]
    ) -> Iterator[Callable[[], None]]:
        """Show a live table on a terminal, lines anywhere else."""
        self.wait_for(None)
        progress = Progress(cells, self._console, concurrency=concurrency, budget=budget)
        self._watching = True
        with progress.shown():
            yield progress.refresh
        self._watching = False

    def ended(self, cells: Sequence[Cell]) -> None:
        """Say what is waited for, because closing a study takes seconds in which nothing else is shown."""
        self._console.print("All trials have ended. Choosing, measuring on the test, drawing the report …")
        self.wait_for("Closing the study" if len(cells) == 1 else "Closing the studies")

    def interrupted(self, cells: Sequence[Cell]) -> None:
        """Say what is kept and how to go on."""
        _say_kept(cells, self._console)
        self.wait_for("Ending Ray")

    def closed(self, record: StudyRecord, files: Sequence[Path]) -> None:
        """Show the advice and the candidates."""
        show_result(record, files, self._console)
        if not self._watching:
            self.wait_for("Ending Ray")

    def compared(self, directory: Path, num_studies: int) -> None:
        """Say where the common report is."""
        self._console.print(f"\nAll {num_studies} studies side by side: {directory}", highlight=False, soft_wrap=True)


def execute(
    plans: Sequence[Plan], settings: Settings, console: Console, screen: Callable[[Console], Screen] = Screen
) -> None:
    """Run studies to their end and show their progress and results on a screen.

    Raises:
        typer.Exit: 130 when interrupted, with what is kept and how to go on.
        StudyError: a study had to be given up.
    """
    shown = screen(console)
    with outlived(console, "The study goes on without it; `captune status` shows how far it is."):
        shown.wait_for("Starting Ray")
        try:
            run_studies(plans, settings, shown)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        finally:
            shown.wait_for(None)


def show_result(study: StudyRecord, files: Sequence[Path], console: Console) -> None:
    """Print the answer and why, the candidates beside the references, where the files are, and what to type next."""
    from captune.results.answer import answer_of  # imports pandas and scipy.stats, which a starting study does not use

    choice, answer = study.choice or Chosen(), answer_of(study)
    console.print(Text.assemble("\n", (study.name, "bold"), ": ", (answer.sentence, "bold")))
    if answer.caveat:
        console.print(answer.caveat, highlight=False)
    console.print(f"Why: {choice.reason}.\n", highlight=False)
    console.print(_candidates(study, choice, answer.name))
    if study.select_by == ORACLE:
        from captune.results.tables import ORACLE_STAMP

        console.print(ORACLE_STAMP, style="bold red", highlight=False)
    config = choice.config
    searched = [name for name, entry in study.space.items() if entry.get("role") != "fixed" and name in config]
    if searched:
        told = ", ".join(f"{name} {_short(config[name])}" for name in searched)
        console.print(f"\nBest configuration (c{choice.config_id}): {told}", highlight=False)
    for line in failures_told(study):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if files:
        console.print(f"Files in {typed_path(study.directory)}: {_kinds(files)}", highlight=False)
        for line in next_steps(study, study.directory, width=console.width):
            console.print(line, highlight=False, soft_wrap=True, markup=False)


def _candidates(study: StudyRecord, choice: Chosen, advised: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    learned = is_against_zero_shot({row["name"]: row["mean_score"] for row in choice.candidates})
    score = (
        "score, zero-shot 0" if learned else "score (unlabelled)" if choice.weights else f"{study.select_by} (search)"
    )
    shares = choice.weights if len(choice.weights) > 1 else {}
    headings = ("candidate", score, *(["share"] if shares else []), f"{_metric_words(study)} (sealed test)", "seeds")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    rows = sorted(choice.candidates, key=lambda row: -(row["mean_score"] or 0.0))
    for row in rows:
        trials = [trial for trial in study.trials if row["name"] in (trial.key, trial.name)]
        reports = [trial for trial in trials if trial.role == Role.REPORT] or trials
        metrics = [trial.metric for trial in reports if trial.metric is not None]
        own = {trial.method for trial in trials if row["config_id"] is not None} - {None, study.method}
        said = sorted(str(method) for method in own)  # in a study over several methods each candidate has its own
        said += [study.first_origin] if row["config_id"] == 0 else []
        said += ["advised"] if row["name"] == advised else []
        table.add_row(
            row["name"] + (f" ({', '.join(said)})" if said else ""),
            f"{row['mean_score']:+.1f}" if learned else _mean_sd(row["mean_score"], row["sd"]),
            *([f"{100 * shares[row['name']]:.0f} %" if row["name"] in shares else ""] if shares else []),
            _percent(metrics) if study.measurable else "no labels: not measured",
            str(row["num_seeds"]),
        )
    return table


def _metric_words(study: StudyRecord) -> str:
    return study.metric_name.replace("_", " ")


def _kinds(files: Sequence[Path]) -> str:
    """What a report wrote, in one line: files that a person opens by name, tables and figures by number."""
    names = {path.name for path in files}
    opened = [name for name in (PAGE, BEST_CONFIG, PREDICTIONS_CSV, CHECKPOINT) if name in names]
    tables = {name for name in names if name.endswith(".csv")} - {PREDICTIONS_CSV}
    figures = {name.rpartition(".")[0] for name in names if name.endswith((".png", ".svg"))}
    return ", ".join([*opened, f"{len(tables)} tables (CSV)", f"{len(figures)} figures (PNG, SVG)"])


def next_steps(study: StudyRecord, where: Path, *, width: int) -> list[str]:
    """What to do with a study that has ended, one line each; two if a line would be wider than the terminal."""
    steps = [(f"open {typed_path(where / PAGE)}", "the same with figures and pictures")]
    if str(study.task.get("dataset", "")).startswith("features:"):
        steps.append((f"captune predict {typed_path(where)} NEW.npz", "classify new features"))
    else:
        steps.append((f"captune predict {typed_path(where)} PHOTOS", "classify new images"))
    longest = max(len(command) for command, _ in steps)
    lines = [f"  {command:<{longest}}  {why}" for command, why in steps]
    if any(len(line) > width for line in lines):
        lines = [line for command, why in steps for line in (f"  {why}:", f"    {command}")]
    return ["Next:", *lines]


def failures_told(study: StudyRecord) -> list[str]:
    """How many trials failed and why, the most frequent reasons first, and how to try them again; empty if none did."""
    failed = [trial for trial in study.trials if trial.state is State.FAILED]
    if not failed:
        return []
    reasons = Counter((trial.reason or "no reason recorded").splitlines()[0] for trial in failed)
    lines = [f"{len(failed)} of {len(study.trials)} trials failed:"]
    lines += [f"  {count} × {reason}" for reason, count in reasons.most_common(_SHOWN_REASONS)]
    if len(reasons) > _SHOWN_REASONS:
        lines.append(f"  and {counted(len(reasons) - _SHOWN_REASONS, 'other reason')}, in trials.csv")
    return [*lines, f"Once the cause is gone: {resume_command(study.directory)} --retry-failed"]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _mean_sd(mean: float | None, sd: float | None) -> str:
    if mean is None:
        return "–"
    return f"{mean:.4f}" + (f" ± {sd:.4f}" if sd is not None else "")


def _percent(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = sum(values) / len(values)
    return f"{100 * mean:.2f} %" + (f" ({100 * min(values):.1f}–{100 * max(values):.1f})" if len(values) > 1 else "")


def _say_start(cells: Sequence[Cell], cluster: Cluster, allotment: Allotment, console: Console) -> None:
    where = "this machine" if cluster.local else "the cluster"
    share = f"{allotment.cpus:g} CPU" + (f", {allotment.gpus:g} GPU" if allotment.gpus else "")
    share += f", {allotment.memory_bytes / 1e9:.1f} GB" if allotment.memory_bytes else ""
    console.print(
        f"{counted(len(cells), 'study')} on {where}: {counted(allotment.concurrency, 'trial')} at once, {share} each",
        highlight=False,
    )
    if cluster.warning:
        console.print(labelled("warning", str(cluster.warning), "yellow"))


def _say_kept(cells: Sequence[Cell], console: Console) -> None:
    if not cells:
        console.print("Interrupted before the first trial: nothing is left behind, the same command begins again.")
    for cell in cells:
        kept = f"{counted(standing(cell).done, 'finished trial')} kept"
        left = (
            "none is left but the choice and the report" if cell.finished else "the others go on from their last epoch"
        )
        console.print(
            f"Interrupted. {cell.name}: {kept}, {left}.",
            highlight=False,
            soft_wrap=True,
        )
    if cells:
        # In one command, because a study may start from another one's best configurations.
        command = resume_command(*[cell.directory for cell in cells])
        console.print(f"Continue with: {command}", highlight=False, soft_wrap=True)
