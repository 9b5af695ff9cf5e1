"""Typed configuration of an experiment."""
