"""What a terminal shows: tables that fit it, a dry run on one screen, and the model of a study when it is asked for."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits

import captune
from captune.cli.console import say
from captune.cli.main import _PANELS, COMMANDS, main
from captune.cli.mismatch import _sentence
from captune.cli.predict import _show
from captune.cli.studies import Screen
from captune.config import StudyConfig, TaskConfig
from captune.data.labelling import Prediction
from captune.plain_text import typed_path
from captune.records.layout import ADAPTED, BEST_CONFIG
from captune.studies.planning import plan_study
from captune.tuning import progress
from captune.tuning.open_study import OpenStudy
from captune.tuning.progress import Progress, Standing, standings_table


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_table_of_studies_fits_the_terminal_and_cuts_no_number(width: int) -> None:
    standings = [
        Standing("digits-ul-cap", "screening on frozen features", 123, 456, 8, 40, 2, 0.8587, 0.8068, 0.8502, 8000.0),
        Standing("stanford_cars-trzsl-cap_mixture", "searching", 9, 26, 2, 5, 0, 0.8587, 0.8068, 0.8502, 38.0),
    ]
    text = io.StringIO()
    Console(file=text, width=width).print(standings_table(standings, width=width))
    lines = text.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    whole = " ".join(text.getvalue().split())
    for number in ("123/456", "9/26", "0.8587", "0.8068", "38 s", "2 h 13 min"):
        assert number in whole
    assert ("stopped" in whole) == (width >= 110)
    assert "2 failed" in whole or width >= 110
    assert "…" not in whole


def test_a_dry_run_is_one_screen(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    digits = ["run", "--dataset", "digits", "--dry-run", "--out", tmp_path / "out", "--steps-per-epoch", "2"]
    code, out, _ = call(capsys, *digits, "--paradigm", "ul")
    assert code == 0 and len(out.splitlines()) <= 40 and "at most" in out and "margin_scale" in out
    code, out, _ = call(capsys, *digits, "--paradigm", "ul,tft", "--method", "cap,fpl", "--trials", "2")
    assert code == 0 and len(out.splitlines()) <= 12
    assert "Total: 4 studies" in " ".join(out.split()) and "at most" in out
    code, out, _ = call(capsys, *digits, "--paradigm", "ul", "--method", "auto", "--trials", "4", "--epochs", "2")
    said = " ".join(out.split())
    assert code == 0 and len(out.splitlines()) <= 40 and "A trial of each method: grip" in said
    assert "at most" in said and "4 trials and 9 confirmations" in said
    assert not (tmp_path / "out").exists()


def test_every_command_stands_in_one_panel_and_newcomers_first() -> None:
    listed = [name for names in _PANELS.values() for name in names]
    assert sorted(listed) == sorted(COMMANDS) and list(COMMANDS)[:2] == ["demo", "doctor"]
    assert next(iter(_PANELS)) == "Start here"


def test_a_reader_that_leaves_ends_no_study() -> None:
    """`captune run | head -1` ended with code 1 and without a word; the study was lost where no trial had begun."""
    program = (
        "import sys, time\n"
        "from captune.cli.console import outlived, plain_console\n"
        "console = plain_console(file=sys.stdout)\n"
        "console.print('first')\n"
        "time.sleep(1)\n"
        "with outlived(console, 'The study goes on.'):\n"
        "    for _ in range(3):\n"
        "        console.print('more')\n"
        "console.print('after')\n"
        "print('at its end', file=sys.stderr)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout is not None and writer.stdout.readline() == b"first\n"
    writer.stdout.close()
    _, said = writer.communicate(timeout=60)
    told = "warning: output cannot be written (Broken pipe). The study goes on.\nat its end\n"
    assert (writer.returncode, said.decode()) == (0, told)


@pytest.mark.parametrize("name", ["run", "my study", "it's", "-v", "$(id)"])
def test_a_path_that_is_shown_to_be_typed_arrives_whole(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next steps of a study in `my study` were `captune predict my study PHOTOS`."""
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path / name, Path(name)):
        typed = subprocess.check_output(["sh", "-c", f"printf '%s\\n' {typed_path(place)}"], text=True)
        assert (tmp_path / typed.removesuffix("\n")) == tmp_path / name and not typed.startswith("-")
    assert typed_path(tmp_path.parent) == str(tmp_path.parent)


def test_prose_breaks_between_words_on_a_terminal_and_stays_a_line_in_a_file() -> None:
    text = "error: --dataset must name a dataset, but got 'cifar10'. Known: digits, caltech101, oxford_pets."
    screen, file = io.StringIO(), io.StringIO()
    say(Console(file=screen, width=40, force_terminal=True, color_system=None), text)
    say(Console(file=file, width=40), text)
    assert screen.getvalue().split() == text.split() and len(screen.getvalue().splitlines()) == 3
    assert file.getvalue() == f"{text}\n"


def test_the_list_of_commands_shows_flags_without_a_type(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "--help")
    assert "--version" in out and "<bool>" not in out


def test_status_where_no_study_was_begun_says_how_to_begin_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "status")
    assert code == 1 and "no folder 'runs'" in err and "captune demo" in err


def test_the_version_says_the_revision_without_loading_torch() -> None:
    program = (
        "import sys\nfrom captune.cli.main import main\n"
        "try:\n    main(['--version'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'ray'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith(f"captune {captune.__version__}")
    if (Path(captune.__file__).parents[1] / ".git").exists():
        assert "(revision " in done.stdout


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of digits that has ended, as far as its model needs."""
    settings = StudyConfig(task=TaskConfig.parse({"dataset": "digits", "paradigm": "ul"}))
    plan = plan_study(settings, tmp_path / "study")
    OpenStudy(plan.directory, settings, plan.info, plan.space, durable=False).close()
    best = {"method": "cap", "epochs": 1, "steps_per_epoch": 2, "batch_size": 8}
    (plan.directory / BEST_CONFIG).write_text("# Advice: adapt. It gains.\n" + yaml.safe_dump(best))
    return plan.directory


def test_predict_with_a_study_adapts_its_best_configuration_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, study: Path
) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray((load_digits().images[0] * 15.9).astype(np.uint8)).resize((32, 32)).save(photo)
    code, _, err = call(capsys, "predict", study, photo)
    assert code == 2 and "Add --yes" in err  # nobody can be asked here
    assert not (study / ADAPTED).exists()
    code, first, err = call(capsys, "predict", study, photo, "--yes")
    assert code == 0 and "Adapted with the best configuration" in " ".join(err.split())
    metrics = json.loads((study / ADAPTED / "metrics.json").read_text())
    assert metrics["method"] == "cap" and metrics["zero_shot"] is not None
    code, again, err = call(capsys, "predict", study, photo)
    assert code == 0 and again == first and "Adapted" not in err
    config = (study / BEST_CONFIG).read_text()
    (study / BEST_CONFIG).write_text(config.replace("It gains.", "It gains a point."))
    code, again, err = call(capsys, "predict", study, photo)
    assert code == 0 and again == first, "the same configuration, described in other words"
    (study / BEST_CONFIG).write_text("method: fpl\n")
    code, _, err = call(capsys, "predict", study, photo)
    assert code == 1 and "one of an earlier choice" in " ".join(err.split())
    (study / BEST_CONFIG).unlink()
    code, _, err = call(capsys, "predict", study, photo)
    assert code == 1 and "captune resume" in err


def test_mismatch_ends_in_a_sentence() -> None:
    def row(name: str, verdict: str = "", description: str = "", number: int = 3) -> dict[str, object]:
        return {"class": name, "verdict": verdict, "zero_shot_count": number, "description": description}

    assert "No class name stands out" in _sentence([row("cat"), row("dog", "candidate")])
    never = _sentence([row("cat"), row("watch", number=0)])
    assert "predicts watch for no image" in never and "stands out" not in never
    said = _sentence([row("cat"), row("dog"), row("T4T8", "mismatched", "none: left alone")])
    assert said.startswith("1 of 3 names is hardly connected with any images: T4T8.")
    assert "The other 2 find theirs" in said and "--class-names" in said and "--descriptions" in said
    assert "Each has descriptions" in _sentence([row("cat"), row("dog", "mismatched", "a dog at rest")])


def terminal() -> tuple[Console, io.StringIO]:
    sent = io.StringIO()
    return Console(file=sent, force_terminal=True, width=80, color_system=None), sent


def test_the_live_table_shows_time_and_epochs_and_what_is_left_of_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: 100.0))
    console, sent = terminal()
    with Progress([], console, concurrency=1, budget=lambda: "5 min left").shown():
        pass
    assert "0:00 so far, 0 epochs trained, 5 min left" in sent.getvalue()


def test_what_is_waited_for_is_shown_on_a_terminal_and_in_no_file() -> None:
    console, sent = terminal()
    screen = Screen(console)
    screen.wait_for("Starting Ray")
    screen.wait_for("Preparing images")
    screen.wait_for(None)
    assert "Starting Ray" in sent.getvalue() and "Preparing images" in sent.getvalue()
    file = io.StringIO()
    silent = Screen(Console(file=file, width=80))
    silent.wait_for("Starting Ray")
    silent.wait_for(None)
    assert file.getvalue() == ""


def test_predictions_are_a_table_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    row = ["a.jpg", "ring", "75.0", "%", "cup", "20.0", "%"]
    _show([Prediction(str(Path.cwd() / "a.jpg"), "ring", 0.75, "cup", 0.2)], [], rows=False)
    assert capsys.readouterr().out.splitlines()[1].split() == row
    _show([], [("b.jpg", 1, "ring", 0.75), ("b.jpg", 2, "cup", 0.2)], rows=False)
    assert capsys.readouterr().out.splitlines()[2].split() == ["b.jpg", "2", "cup", "20.0", "%"]
    _show(
        [Prediction(f"/long/folder/{name}", "ring", 0.75, "cup", 0.2) for name in ("a.jpg", "of/b.jpg")], [], rows=False
    )
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "In /long/folder:", "said once"
    assert said[2].split() == row and said[3].startswith("of/b.jpg")
