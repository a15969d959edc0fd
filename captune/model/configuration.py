"""Read the configuration of an architecture, and refuse what a downloaded one must not ask for."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import open_clip

from captune.errors import ModelError
from captune.model.hub import offline_if_unreachable

CONFIG_FILE = "open_clip_config.json"
_ADDRESSES = ("local-dir:", "hf-hub:")
# Arguments that open_clip's own configurations give a tokenizer. Others would reach transformers, and one of those runs
# Python files.
_TOKENIZER_OPTIONS = ("clean", "strip_sep_token", "language", "tokenizer_mode")
# A configuration may name another model only by its name on a hub.
_NAMED_ELSEWHERE = (
    ("text_cfg", "hf_tokenizer_name"),
    ("text_cfg", "hf_model_name"),
    ("vision_cfg", "timm_model_name"),
)
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def read_configuration(name: str) -> dict[str, Any]:
    """The architecture as open_clip states it: of a built-in name, `local-dir:DIR` or `hf-hub:ORG/REPO`.

    Raises:
        ModelError: there is none, it cannot be read, or it asks for what only the user may (see `_refuse_requests`).
    """
    try:
        with offline_if_unreachable() if name.startswith("hf-hub:") else contextlib.nullcontext():
            config: Any = open_clip.get_model_config(name)
    except (OSError, ValueError, RuntimeError, AttributeError) as error:
        lines = str(error).strip().splitlines()
        got = (lines[0] if lines else type(error).__name__)[:200]
        if name.startswith("hf-hub:"):
            raise ModelError(
                f"the configuration of {name} must be on disk or the network reachable",
                got=got,
                next_step="Copy the weight file here and give its path by --pretrained; or use --backbone tiny, "
                "which needs no download.",
            ) from None
        raise ModelError("the model's configuration must be readable", got=got, where=name) from None
    if config is None:
        raise ModelError("the model must have a configuration", where=name)
    if name.startswith(_ADDRESSES):
        _refuse_requests(config, name)
    return dict(config)


def _refuse_requests(config: Any, where: str) -> None:
    """Refuse a downloaded configuration that would run code or open files of this machine."""
    parts = [config.get(part, {}) if isinstance(config, dict) else None for part in ("vision_cfg", "text_cfg")]
    if not all(isinstance(part, dict) for part in parts):
        raise ModelError(
            "a model's configuration must hold vision_cfg and text_cfg as tables",
            got=type(config).__name__,
            where=where,
        )
    asked = config.get("text_cfg", {}).get("tokenizer_kwargs") or {}
    beyond = sorted(set(asked) - set(_TOKENIZER_OPTIONS))
    if beyond:
        raise ModelError(
            f"tokenizer_kwargs of a model from elsewhere must be among {', '.join(_TOKENIZER_OPTIONS)}",
            got=", ".join(beyond),
            where=where,
            next_step="Others can make the tokenizer run code that comes with it, so captune never passes them on.",
        )
    for part, key in _NAMED_ELSEWHERE:
        value = config.get(part, {}).get(key)
        if value is not None and not _HUB_NAME.fullmatch(str(value)):
            raise ModelError(
                f"{key} of a model from elsewhere must be a published model's name, not a path",
                got=repr(value),
                where=where,
                next_step="If you trust it, copy those files into the model's own folder.",
            )


@contextlib.contextmanager
def without_remote_code(config: dict[str, Any]) -> Iterator[None]:
    """Within the block, transformers refuses Python files beside a model or tokenizer instead of asking to run them."""
    if not {"hf_tokenizer_name", "hf_model_name"} & set(config.get("text_cfg", {})):
        yield
        return
    from transformers import dynamic_module_utils

    seconds = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # seconds it would wait for the user's answer
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds
