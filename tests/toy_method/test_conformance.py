"""The toy method does what the scanner expects of every method."""

import pytest
import torch

from lobule.bundles import Bundle, write_bundle
from lobule.cohort import Case
from lobule.phantoms.phantom import SlidePhantom
from lobule.phantoms.slides import write_slide
from lobule.testing.method import MethodConformance
from toy_method import Config, load


class TestToyMethod(MethodConformance):
    scores = ("tumour",)

    def load(self, bundle):
        return load(bundle)

    @pytest.fixture(scope="class")
    @classmethod
    def bundle(cls, tmp_path_factory):
        weights = {"slope": torch.tensor([-2.0, 1.0, 0.5]), "offset": torch.tensor([0.3])}
        bundle = Bundle("toy", Config().to_dict(), ("tumour",), Config().mpp)
        return write_bundle(tmp_path_factory.mktemp("bundle"), bundle, weights)

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, tmp_path_factory):
        path = tmp_path_factory.mktemp("slides") / "slide.tif"
        write_slide(SlidePhantom(seed=1, width=768, height=512, mpp=1.0, micro=1), path)
        return Case("slide", "patient", "slide", str(path))
