"""Conformance suites: inherit one in your own tests to check a slide backend or a method.

The suites need pytest, which `pip install lobule` does not install. Each suite has its own module, and no
other module of Lobule imports one.
"""
