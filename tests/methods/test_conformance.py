"""Every method passes the conformance suite that the package ships."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.models import squeezenet1_1

from lobule.api import extract_features
from lobule.bundles import Bundle, read_bundle, write_bundle
from lobule.cohort import Case, Cohort, read_cohort
from lobule.methods import classifier, colour, rakhlin, reverse_distillation
from lobule.methods.chowder import Config as ChowderConfig
from lobule.methods.chowder.train import train as train_chowder
from lobule.nets.four_view import TARGETS
from lobule.nets.published import GMIC_TOP_SHARES
from lobule.phantoms.exams import write_exams
from lobule.testing.method import MethodConformance
from lobule.training.fitting import TrainMachine
from tests.methods.chowder.test_slides import MACHINE, write_case
from tests.methods.four_view.support import bundle_of
from tests.methods.gmic.test_gmic_scan import SMALL as SMALL_GMIC
from tests.methods.gmic.test_gmic_scan import small_net
from tests.methods.probe.support import probe_bundle
from tests.methods.rakhlin.support import CONFIG as RAKHLIN_CONFIG
from tests.methods.rakhlin.support import MACHINE as RAKHLIN_MACHINE
from tests.methods.rakhlin.support import cohort_in, painted
from tests.methods.reverse_distillation.test_predictor import predictor_of
from tests.methods.scannet.support import write_tiny_bundle
from tests.scanning.support import cohort_of, pixels_of, write_slide


def slide_case(folder: Path) -> Case:
    """A slide of 0.5 µm/px on which everything is tissue."""
    (case,) = cohort_of(write_slide(folder / "one.tif", pixels_of(229, 170)))
    return case


def exam_case(folder: Path) -> Case:
    return read_cohort(write_exams(folder, exams=1, size=(300, 220), seed=5)).cases[0]


class SlideMethod(MethodConformance):
    scores: tuple[str, ...] = ("tumour",)

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, tmp_path_factory: pytest.TempPathFactory) -> Case:
        return slide_case(tmp_path_factory.mktemp("slide"))


class ExamMethod(MethodConformance):
    scores: tuple[str, ...] = TARGETS

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, tmp_path_factory: pytest.TempPathFactory) -> Case:
        return exam_case(tmp_path_factory.mktemp("exam"))


class TestScannet(SlideMethod):
    @pytest.fixture(scope="class")
    @classmethod
    def bundle(cls, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
        return read_bundle(write_tiny_bundle(tmp_path_factory.mktemp("scannet"), mpp=0.5))


class TestReverseDistillation(SlideMethod):
    scores = ("tumour", "anomaly")

    @pytest.fixture(scope="class")
    @classmethod
    def bundle(cls, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
        return reverse_distillation.save(tmp_path_factory.mktemp("reverse"), predictor_of(form="shared"))


class TestColour(SlideMethod):
    @pytest.fixture(scope="class")
    @classmethod
    def bundle(cls, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
        config = colour.Config(mpp=0.5, window=48, stride=16)
        weights = {
            "coefficients": torch.tensor([0.02, -0.03, 0.01, 0.05, 0.0, -0.04], dtype=torch.float64),
            "intercept": torch.tensor([0.4], dtype=torch.float64),
        }
        bundle = Bundle("colour", config.to_dict(), config.classes, config.mpp)
        return write_bundle(tmp_path_factory.mktemp("colour"), bundle, weights)


class TestProbe(SlideMethod):
    @pytest.fixture(scope="class")
    @classmethod
    def bundle(cls, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
        return probe_bundle(tmp_path_factory.mktemp("probe"))


class TestClassifier(SlideMethod):
    @pytest.fixture(scope="class")
    @classmethod
    def bundle(cls, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
        torch.manual_seed(3)
        config = classifier.Config(
            architecture="torchvision:squeezenet1_1", classes=("normal", "tumour"), mpp=0.5, tile=64, input=64
        )
        bundle = Bundle("classifier", config.to_dict(), config.classes, config.mpp)
        net = squeezenet1_1(num_classes=2)
        return write_bundle(tmp_path_factory.mktemp("classifier"), bundle, net.state_dict())


class TestChowder(SlideMethod):
    """A bundle that contains its encoder, and scans slides."""

    @pytest.fixture(scope="class")
    @classmethod
    def bundle(cls, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
        folder = tmp_path_factory.mktemp("chowder")
        cohort = Cohort(tuple(write_case(folder, number) for number in range(4)))
        extract_features(
            cohort, folder / "features", backbone="lobule:tiny", weights="random", mpp=0.5, tile=64,
            input_px=224, tissue=False, dtype="float32", **MACHINE,
        )  # fmt: skip
        config = ChowderConfig(members=2, epochs=2, r=1, features=str(folder / "features"))
        machine = TrainMachine(device="cpu", precision="float32")
        return train_chowder(config, cohort, folder / "bundle", val=None, machine=machine)


class TestRakhlin(MethodConformance):
    scores = ("normal", "benign", "in situ", "invasive", "carcinoma")

    @pytest.fixture(scope="class")
    @classmethod
    def bundle(cls, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
        folder = tmp_path_factory.mktemp("rakhlin")
        return rakhlin.METHOD.trainer()(
            RAKHLIN_CONFIG, cohort_in(folder), folder / "bundle", machine=RAKHLIN_MACHINE
        )

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, tmp_path_factory: pytest.TempPathFactory) -> Case:
        path = tmp_path_factory.mktemp("image") / "one.png"
        Image.fromarray(painted("invasive", 90)).save(path)
        return Case("one", "p", "image", path=str(path), mpp=1.0)


class TestFourView(ExamMethod):
    @pytest.fixture(scope="class")
    @classmethod
    def bundle(cls, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
        folder = tmp_path_factory.mktemp("four_view")
        return read_bundle(bundle_of(folder, heatmaps=True, epochs=1))


class TestGmic(ExamMethod):
    @pytest.fixture(scope="class")
    @classmethod
    def bundle(cls, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
        bundle = Bundle("gmic", SMALL_GMIC.to_dict(), TARGETS, None)
        net = small_net("a", GMIC_TOP_SHARES[0])
        weights = {f"1.{name}": tensor for name, tensor in net.state_dict().items()}
        return write_bundle(tmp_path_factory.mktemp("gmic"), bundle, weights)
