"""captune adapts CLIP to unlabelled images: hyperparameter studies of CAP and other methods, on one machine or many.

    import captune

    model = captune.adapt("photos", ["cat", "dog"])   # one configuration, no search
    model.predict("photos/001.jpg")

    study = captune.run("photos", ["cat", "dog"])     # a search: which configuration, and whether to adapt at all
    captune.open_study("runs/photos-ul-cap").trials

The names below are the public API. Importing captune imports neither PyTorch nor Ray: each name is imported when it is
first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captune.adapted import AdaptedModel
    from captune.api import Study, adapt, datasets, load, open_study, run
    from captune.errors import CaptuneError

__version__ = "0.1.0"
__all__ = ["AdaptedModel", "CaptuneError", "Study", "__version__", "adapt", "datasets", "load", "open_study", "run"]

_HOMES = {
    "AdaptedModel": "captune.adapted",
    "CaptuneError": "captune.errors",
    "Study": "captune.api",
    "adapt": "captune.api",
    "datasets": "captune.api",
    "load": "captune.api",
    "open_study": "captune.api",
    "run": "captune.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'captune' has no attribute '{name}'")
    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
