"""Corpora become tokens, tokens become samples, samples become batches."""
