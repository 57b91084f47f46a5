"""Autoencoders: stacks, training, bundles, the registry and the scorers."""

from models.autoencoder import Autoencoder
from models.blocks import Progress
from models.bundle import Bundle, load, save
from models.codec import Codec, Restored
from models.registry import Registry
from models.samples import SeriesRows
from models.scorer import StackScorer
from models.spec import ModelSpec
from models.training import rows_needed, train

__all__ = [
    "Autoencoder",
    "Bundle",
    "Codec",
    "ModelSpec",
    "Progress",
    "Registry",
    "Restored",
    "SeriesRows",
    "StackScorer",
    "load",
    "rows_needed",
    "save",
    "train",
]
