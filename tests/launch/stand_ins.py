"""Stand-ins for the programs that the launch scripts call: each writes down how it was called and what it saw."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

_NOTE = """#!/usr/bin/env bash
note() {{ # one line a call: the token file's mode at that moment, Ray's authentication mode, program and arguments
    local mode
    mode=$(stat -c %a "${{RAY_AUTH_TOKEN_PATH:-/nowhere}}" 2>/dev/null || echo none)
    printf '%q ' "$mode" "${{RAY_AUTH_MODE:-none}}" "$@" | tr '\\n' ' ' | sed 's/$/\\n/' >>{calls}
}}
"""


class StandIns:
    """A folder at the head of PATH with stand-ins, and what they noted."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.home = folder / "home"
        self.calls_file = folder / "calls.txt"
        for directory in (self.bin, self.home):
            directory.mkdir()
        self.environment = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(self.home),
            "TMPDIR": str(folder),
        }

    def add(self, name: str, body: str, *, before: str = "") -> None:
        """A program `name` that notes its call, then runs `body`; traps belong `before`: tests act on the note."""
        path = self.bin / name
        path.write_text(_NOTE.format(calls=str(self.calls_file)) + f'{before}\nnote {name} "$@"\n{body}\n')
        path.chmod(0o755)

    def calls(self, name: str) -> list[dict[str, Any]]:
        """How `name` was called so far."""
        if not self.calls_file.exists():
            return []
        noted = [shlex.split(line) for line in self.calls_file.read_text().splitlines()]
        return [{"token_mode": call[0], "auth": call[1], "argv": call[3:]} for call in noted if call[2] == name]

    def start(self, script: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """The script in a process group of its own, its output in `out.txt` (pipes would wait for its children)."""
        with (self.calls_file.parent / "out.txt").open("a") as out:
            return subprocess.Popen(
                ["bash", str(script), *arguments],
                env=self.environment | environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                text=True,
            )

    def output(self) -> str:
        """All that scripts printed so far."""
        return (self.calls_file.parent / "out.txt").read_text()


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
