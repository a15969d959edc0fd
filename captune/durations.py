"""Read times as people type them (45s, 90m, 6h, 2d, 1h30m), and write them for reading (45 s, 3 min, 2 h 10 min)."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator


def parse_duration(value: Any) -> Any:
    """Convert a time such as 45s, 90m, 6h, 2d or 1h30m to seconds; a value that is no text is returned unchanged.

    Raises:
        ValueError: the text is no such time.
    """
    if not isinstance(value, str):
        return value
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", value.strip())
    seconds = sum(float(number) * units[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != value.strip() or seconds <= 0:
        raise ValueError("must be a time such as 45s, 90m, 6h, 2d or 1h30m")
    return seconds


Duration = Annotated[float, BeforeValidator(parse_duration)]


def duration(seconds: float) -> str:
    """A time span for reading: 45 s, 3 min, 2 h 10 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
