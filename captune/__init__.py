"""captune adapts CLIP to unlabelled images: hyperparameter studies of CAP and other methods, on one machine or many.

    import captune

    model = captune.adapt("photos", ["cat", "dog"])   # one configuration, no search
    model.predict("photos/001.jpg")

The names below are the public API. Importing captune imports neither PyTorch nor Ray: each name is imported when it is
first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captune.adapted import AdaptedModel
    from captune.api import adapt, datasets, load
    from captune.errors import CaptuneError

__version__ = "0.1.0"
__all__ = ["AdaptedModel", "CaptuneError", "__version__", "adapt", "datasets", "load"]

_HOMES = {
    "AdaptedModel": "captune.adapted",
    "CaptuneError": "captune.errors",
    "adapt": "captune.api",
    "datasets": "captune.api",
    "load": "captune.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'captune' has no attribute '{name}'")
    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
