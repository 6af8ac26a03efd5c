"""Engines: overlap reading, computing and writing, whatever the method."""
