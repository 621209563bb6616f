"""Rewriting weights for a device: what happens to a network between training and lowering."""

from edgeact.quantize.batch_norm import fold_batch_norm

__all__ = ["fold_batch_norm"]
