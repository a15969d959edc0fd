"""Parametrisations of which the default tests run a part and `-m slow` the rest, and those that are one test."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest

Test = Callable[..., None]


def slow_but(kept: Callable[..., bool], values: Iterable[Any]) -> list[Any]:
    """All values of a parametrisation in their order; those that are not `kept` are run with `-m slow` only.

    `kept` is given a value, or the members of one that is a tuple.
    """
    cases = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*case, marks=() if kept(*case) else pytest.mark.slow) for case in cases]


def in_one_test(names: str | tuple[str, ...], values: Iterable[Any]) -> Callable[[Test], Test]:
    """As `pytest.mark.parametrize`, but all cases are one test: for those that take less time than to start a test.

    What fails says with which values. Cases share their fixtures.
    """
    own = (names,) if isinstance(names, str) else names
    cases = [(value,) if isinstance(names, str) else value for value in values]

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        def together(**fixtures: Any) -> None:
            for case in cases:
                given = dict(zip(own, case, strict=True))
                try:
                    test(**given, **fixtures)
                except BaseException as error:  # `pytest.fail` raises no Exception
                    error.add_note(f"with {given}")
                    raise

        signature = inspect.signature(test)
        kept = [parameter for name, parameter in signature.parameters.items() if name not in own]
        together.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        return together

    return decorate
