"""When a study is given up: its first trials all failed, and more of them would fail too."""

from __future__ import annotations

from captune.records import State, Trial

# A study whose first trials all fail the same way will not get better by running more of them.
_SAME_FAILURES, _ANY_FAILURES = 3, 6


class Failures:
    """Decides from the outcomes of a session's trials whether the study should be given up."""

    def __init__(self) -> None:
        self._reasons: list[str] = []
        self._succeeded = False

    def forget(self) -> None:
        """Forget earlier failures: their cause may have been removed since."""
        self._reasons.clear()

    def note(self, trial: Trial) -> None:
        """Enter the outcome of a trial."""
        if trial.state is State.FAILED:
            self._reasons.append((trial.reason or "").splitlines()[0] if trial.reason else "")
        else:
            self._succeeded = True

    def reason_to_give_up(self) -> str | None:
        """Why the study should be given up; None if it should go on."""
        first = self._reasons[:_SAME_FAILURES]
        same = len(first) == _SAME_FAILURES and len(set(first)) == 1
        if self._succeeded or not (same or len(self._reasons) >= _ANY_FAILURES):
            return None
        return self._reasons[0]
