"""Heads, a file each. What a head brings with it is said in `Head`."""

from yoloyard.models.heads.anchor_based import AnchorBasedHead
from yoloyard.models.heads.anchor_free import AnchorFreeHead
from yoloyard.models.heads.auxiliary import AuxiliaryHead
from yoloyard.models.heads.end_to_end import EndToEndHead
from yoloyard.models.heads.head import Found, Head

__all__ = ["AnchorBasedHead", "AnchorFreeHead", "AuxiliaryHead", "EndToEndHead", "Found", "Head"]
