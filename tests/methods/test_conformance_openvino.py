"""Methods with convolutional networks, classifiers, teachers and exams also conform with OpenVINO."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lobule.scanning.openvino_library import is_installed
from lobule.testing.method import MACHINE
from tests.methods import test_conformance as in_torch

pytestmark = pytest.mark.skipif(not is_installed(), reason="the extra 'openvino' is not installed")
IN_OPENVINO = replace(MACHINE, runtime="openvino")


@pytest.mark.campaign
class TestScannet(in_torch.TestScannet):
    machine = IN_OPENVINO


@pytest.mark.campaign
class TestClassifier(in_torch.TestClassifier):
    machine = IN_OPENVINO


@pytest.mark.campaign
class TestReverseDistillation(in_torch.TestReverseDistillation):
    machine = IN_OPENVINO


class TestFourView(in_torch.TestFourView):
    machine = IN_OPENVINO


@pytest.mark.campaign
class TestChowder(in_torch.TestChowder):
    machine = IN_OPENVINO


@pytest.mark.campaign
class TestRakhlin(in_torch.TestRakhlin):
    machine = IN_OPENVINO


@pytest.mark.campaign
class TestGmic(in_torch.TestGmic):
    machine = IN_OPENVINO
