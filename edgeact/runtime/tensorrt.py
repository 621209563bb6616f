"""Placeholder."""

MODULES = ("tensorrt",)
