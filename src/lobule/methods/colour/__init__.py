"""Colour baseline: mean and standard deviation of red, green and blue in a window, and logistic regression.

This is not a published system but a baseline that every tissue model should exceed. It is scanned, evaluated
and compared like any other method. If it performs well on slides of another hospital, the data set is too
easy to measure how well a model recognises texture.

Research use only.
"""

from lobule.methods import Method, imported_when_called
from lobule.methods.colour.config import Config

__all__ = ["METHOD", "Config"]

METHOD = Method(
    name="colour",
    summary="A baseline that scores the colour of windows, learned from outlined slides.",
    config=Config,
    load=imported_when_called("lobule.methods.colour.model", "load"),
    train=imported_when_called("lobule.methods.colour.model", "train"),
)
