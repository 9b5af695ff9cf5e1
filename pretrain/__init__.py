"""kilolayer: distributed pretraining of very deep and deep-narrow transformers on DeepSpeed."""

__version__ = "0.1.0"
