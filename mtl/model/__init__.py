"""Backbones, heads, and the patterns that join them."""

from mtl.model.backbone import build_backbone
from mtl.model.heads import HeadSpec
from mtl.model.sharing import PATTERNS, BoundaryModel, HardSharing, MultiTaskModel
from mtl.model.stages import Backbone

__all__ = ["PATTERNS", "Backbone", "BoundaryModel", "HardSharing", "HeadSpec", "MultiTaskModel", "build_backbone"]
