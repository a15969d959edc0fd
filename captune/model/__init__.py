"""Models: frozen CLIPs, what is learned beside them, class prompts and descriptions.

In captune's own processes (`captune.own_process`) open_clip is imported here without three packages that cost every
process about 200 MB and seconds, and that most never use. timm and transformers are imported when a model with one of
their towers is asked for (`use_timm`, `use_transformers`). torchvision asks torch's compiler a single question when it
is imported: a stand-in module answers it, and is replaced by the compiler itself as soon as anything else is asked of
it. In other people's processes nothing is left out.
"""

from __future__ import annotations

import sys
from importlib import import_module, reload
from types import ModuleType
from typing import Any

from captune import own_process

_COMPILER, _QUESTION = "torch._dynamo", "torch._dynamo.utils"
# open_clip expects that these may be missing.
_LEFT_OUT = ("timm", "transformers")


class _StandIn(ModuleType):
    """A placeholder: asked for an attribute that it lacks, it is replaced by the real module."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _remove_stand_ins()
        return getattr(import_module(self.__name__), name)


def _remove_stand_ins() -> None:
    for name in (_COMPILER, _QUESTION):
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


def _import_open_clip() -> None:
    if "open_clip" in sys.modules or not own_process.is_own():
        return
    if _COMPILER not in sys.modules:
        sys.modules |= {_COMPILER: _StandIn(_COMPILER), _QUESTION: _StandIn(_QUESTION)}
        sys.modules[_QUESTION].is_compile_supported = lambda device_type: False  # type: ignore[attr-defined]
    left_out = [name for name in _LEFT_OUT if name not in sys.modules]
    for name in left_out:
        sys.modules[name] = None  # type: ignore[assignment]  # its import then fails
    try:
        import_module("open_clip")
    finally:
        _remove_stand_ins()
        for name in left_out:
            del sys.modules[name]


def use_timm() -> None:
    """Let open_clip find timm, for a model with one of timm's towers."""
    _use("open_clip.timm_model", "timm")


def use_transformers() -> None:
    """Let open_clip find transformers, for a model with one of its text towers."""
    _use("open_clip.hf_model", "transformers")


def _use(module_name: str, package: str) -> None:
    # Reloading keeps the module object, so classes that were imported from it before find the package too.
    module: Any = import_module(module_name)
    if getattr(module, package) is None:
        reload(module)


_import_open_clip()
