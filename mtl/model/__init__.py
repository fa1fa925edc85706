"""Backbones, heads, and the model that joins them."""

from mtl.model.backbone import build_backbone
from mtl.model.multitask import MultiTaskModel

__all__ = ["MultiTaskModel", "build_backbone"]
