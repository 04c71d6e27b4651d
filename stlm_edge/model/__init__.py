"""The network, one part per file: encoders, mask decoder, feature aggregation, and their assembly."""

from stlm_edge.model.stlm import STLM, ModelConfig

__all__ = ["STLM", "ModelConfig"]
