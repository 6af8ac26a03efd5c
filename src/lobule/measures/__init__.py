"""Measures: arrays in, numbers with intervals out."""
