"""Reading whole-slide images."""

from lobule.slides.backend import RGB, Backend, FoundMpp, Level
from lobule.slides.slide import READERS, Slide, open_slide

__all__ = ["RGB", "READERS", "Backend", "FoundMpp", "Level", "Slide", "open_slide"]
