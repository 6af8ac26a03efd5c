"""Slow, plain versions of what production computes faster."""
