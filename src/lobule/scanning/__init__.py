"""Scanning of cases: the interface to methods, opened cases, the pipeline, output stores and devices."""
