"""Reading whole-slide images."""

from lobule.slides.backend import RGB, Backend, Level, StatedMpp
from lobule.slides.slide import READERS, Slide, open_slide

__all__ = ["RGB", "READERS", "Backend", "StatedMpp", "Level", "Slide", "open_slide"]
