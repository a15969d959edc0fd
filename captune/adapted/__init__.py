"""Adapted models: open what `adapt` or a study saved, predict with it, export it.

Forms that give the same predictions: a checkpoint (what was learned), and what `exporting` makes of it.
"""

from captune.adapted.exporting import FORMS, export_adapted
from captune.adapted.model import WEIGHTS, AdaptedModel, top_k
from captune.adapted.opening import open_adapted

__all__ = ["FORMS", "WEIGHTS", "AdaptedModel", "export_adapted", "open_adapted", "top_k"]
