"""Conversion to and from native Hugging Face classes: name maps, export, import, verification, completion."""
