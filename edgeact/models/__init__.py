"""The model zoo: one family per file, every preset registered under its function's name."""

from edgeact.models import c3d as _c3d  # noqa: F401 (registers its presets)
from edgeact.models import csn as _csn  # noqa: F401
from edgeact.models import mict as _mict  # noqa: F401
from edgeact.models import resnet3d as _resnet3d  # noqa: F401
from edgeact.models._factory import build_model
from edgeact.models._registry import create_model, default_spec, list_models, options_for_spec

__all__ = ["build_model", "create_model", "default_spec", "list_models", "options_for_spec"]
