"""The list of commands: true to the commands, and there at once."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from captune.cli.main import COMMANDS, app, command, main
from tests.slow import in_one_test


@in_one_test("name", COMMANDS)
def test_the_list_says_of_a_command_what_its_own_help_says(name: str) -> None:
    assert (inspect.getdoc(command(name)) or "").splitlines()[0] == COMMANDS[name]


def test_help_lists_every_command_without_importing_what_trains() -> None:
    program = (
        "import sys\nfrom captune.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'ray', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_an_unknown_command_is_named_with_the_nearest() -> None:
    program = "from captune.cli.main import main\nmain(['rnu'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "No such command 'rnu'" in done.stderr


def test_calls_in_one_process_do_not_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with pytest.raises(SystemExit):
            main(["export", "--help"])
    assert [command.name for command in app.registered_commands] == ["export"]
    assert capsys.readouterr().out.count("Write an adapted model") == 2


ENDING = """
import atexit, sys
import captune.cli.main as command

class Kept:
    def __del__(self):
        print("taken apart")

def main():
    kept.append(Kept())
    atexit.register(print, "put in order")
    print("said", end="")
    raise SystemExit({code})

kept = []
command.main = main
command.command_line()
"""


@pytest.mark.parametrize(("code", "wanted"), [("3", 3), ("None", 0), ("130", 130)])
def test_the_command_ends_in_order_and_without_taking_apart_what_it_imported(code: str, wanted: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDING.format(code=code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (wanted, "saidput in order\n", "")


def test_what_nobody_foresaw_ends_as_it_would_anywhere() -> None:
    script = ENDING.replace("raise SystemExit({code})", "raise KeyError('unforeseen')")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "KeyError: 'unforeseen'" in done.stderr and "taken apart" in done.stdout
