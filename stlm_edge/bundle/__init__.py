"""A bundle: the packed model, its manifest, and the golden images with the trained model's outputs."""

from stlm_edge.bundle.reader import Bundle, open_bundle

__all__ = ["Bundle", "open_bundle"]
