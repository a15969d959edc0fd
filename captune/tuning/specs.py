"""What a study must know of its cell, and what a worker is given to run a trial."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from captune.conditions import METHOD
from captune.config import TrialConfig
from captune.records import Role
from captune.space import Space


@dataclass(frozen=True)
class CellInfo:
    """What a study must know of its cell before anything is trained. It holds no labels.

    Attributes:
        name: the name of the study's directory, `<dataset>-<paradigm>-<method>`.
        base: the method's default configuration (under `--preset paper` the published one) at the cell's budget, with
            what the command line fixed.
        references: trials without training beside the search: key, method, configuration.
        num_classes, class_names, num_pool, num_test: of the cell as it is reported.
        num_scored: images the selection score is measured on.
        class_size: estimated pool images per class in a search trial.
        metric_name: the report metric.
        criterion, criterion_help: what the search selects by.
        both_roles: True if report metrics need trials of their own, because score trials hide classes or test images.
        notes: sentences about data and backbone that the user should read.
        screen_base: the same as `base` for screening trials; None if the study does not screen.
        most_packed: the most trials on frozen features that one worker trains together.
        cheap_in_packs: True if that makes a trial several times cheaper.
        methods: in a study over several methods, the configuration that each begins with; `base` is the first one's.
    """

    name: str
    base: TrialConfig
    references: tuple[tuple[str, str, TrialConfig], ...]
    num_classes: int
    class_names: tuple[str, ...]
    num_pool: int
    num_test: int
    num_scored: int
    class_size: int
    metric_name: str
    criterion: str
    criterion_help: str
    both_roles: bool = False
    notes: tuple[str, ...] = ()
    screen_base: TrialConfig | None = None
    most_packed: int = 1
    cheap_in_packs: bool = False
    methods: Mapping[str, TrialConfig] = field(default_factory=dict)

    def starting_values(self, space: Space, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The first configuration's values of the searched settings, replaced by `given` where that has them."""
        given = given or {}
        method = given.get(METHOD, next(iter(self.methods), None))
        base = self.methods.get(str(method), self.base)
        own = {METHOD: method} | {p.name: getattr(base, p.name, None) for p in space.parameters if p.name != METHOD}
        if not self.methods:
            del own[METHOD]
        return space.active(own | dict(given))


@dataclass(frozen=True)
class TrialSpec:
    """Everything that a worker needs to run one trial, as plain data."""

    cell: str
    key: str
    directory: str
    method: str
    task: dict[str, Any]
    config: dict[str, Any]
    seed: int
    role: Role
    select_by: str
    reported: int
    attempt: int
    threads: int
    report_seconds: float = 1.0

    @staticmethod
    def pack_to_json(pack: Sequence[TrialSpec]) -> str:
        """The specs of trials that one worker trains together, as one line.

        It is a string because Tune copies and flattens the values of a configuration, but not strings.
        """
        return json.dumps([asdict(spec) for spec in pack])

    @classmethod
    def pack_from_json(cls, text: str) -> list[TrialSpec]:
        """The specs that `pack_to_json` wrote."""
        return [cls(**values | {"role": Role(values["role"])}) for values in json.loads(text)]

    def hyperparameters(self) -> dict[str, Any]:
        """The trial's settings and identity, as other loggers show them."""
        what = {"cell": self.cell, "key": self.key, "method": self.method, "seed": self.seed, "role": self.role}
        return self.config | what

    @property
    def path(self) -> Path:
        """The trial's own directory."""
        return Path(self.directory)
