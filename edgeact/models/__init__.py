"""The model zoo: one family per file, every preset registered under its function's name."""

from edgeact.models import csn
from edgeact.models._factory import build_model
from edgeact.models._registry import create_model, default_spec, list_models

__all__ = ["build_model", "create_model", "csn", "default_spec", "list_models"]


def options_for_spec(name, spec):
    return {}
