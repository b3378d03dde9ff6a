"""The torch side of the models: attention mechanisms, the EdgeMeta backbone, heads, and models built from them."""

from edgeattn.nn.attention import ATTENTIONS, build_attention
from edgeattn.nn.attention._parts import gate
from edgeattn.nn.model import Classifier, build_model

__all__ = ["ATTENTIONS", "Classifier", "build_attention", "build_model", "gate"]
