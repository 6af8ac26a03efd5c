"""The table of encoders: sizes, widths and sources; which encoders are refused."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lobule.encoders import ENCODERS, NOT_SUPPORTED, find_entry
from lobule.encoders.build import build_network, parameter_count
from lobule.encoders.entry import DESCRIBED
from lobule.encoders.load import mpp_warning
from lobule.errors import ConfigError
from lobule.nets.vit import VitEncoder
from tests.encoders.published import LAYOUTS

DOCS = Path(__file__).parents[2] / "docs"

PUBLISHED = {
    "resnet50-v1": (23_508_032, 2048, None),
    "resnet50-v2": (23_508_032, 2048, None),
    "efficientnet-lite0": (3_371_008, 1280, None),
    "efficientnet-lite2": (4_811_072, 1280, None),
    "uni": (303_350_784, 1024, 197),
    "uni2-h": (681_394_176, 1536, 265),
    "virchow": (631_229_184, 2560, 257),
    "virchow2": (631_239_424, 2560, 261),
    "h-optimus-0": (1_134_774_272, 1536, 261),
    "h-optimus-1": (1_134_774_272, 1536, 261),
    "h0-mini": (85_739_520, 1536, 261),
    "prov-gigapath": (1_134_953_984, 1536, 197),
    "gigapath-flash": (21_681_024, 384, 197),
    "phikon": (85_798_656, 768, 197),
    "phikon-v2": (303_350_784, 1024, 197),
    "midnight-12k": (1_136_479_232, 3072, 257),
    "openmidnight": (1_134_774_272, 1536, 261),
    "hibou-b": (85_739_520, 768, 261),
    "hibou-l": (303_657_216, 1024, 261),
    "kaiko-vits16": (21_665_664, 384, 197),
    "kaiko-vits8": (21_670_272, 384, 785),
    "kaiko-vitb16": (85_798_656, 768, 197),
    "kaiko-vitb8": (85_807_872, 768, 785),
    "kaiko-vitl14": (304_370_688, 1024, 261),
    "lunit-vits16": (21_665_664, 384, 197),
    "lunit-vits8": (21_670_272, 384, 785),
    "gpfm": (303_227_904, 1024, 257),
    "keep": (303_350_784 + 1024 * 768 + 768 + 768 * 768 + 768, 768, 197),
}
"""Number of parameters, of features and of tokens at the size of the input."""

HEADS_AND_BLOCKS = {
    "uni": (16, 24), "uni2-h": (24, 24), "virchow": (16, 32), "virchow2": (16, 32), "h-optimus-0": (24, 40),
    "h-optimus-1": (24, 40), "h0-mini": (12, 12), "prov-gigapath": (24, 40), "gigapath-flash": (6, 12),
    "phikon": (12, 12), "phikon-v2": (16, 24), "midnight-12k": (24, 40), "openmidnight": (24, 40),
    "hibou-b": (12, 12), "hibou-l": (16, 24), "kaiko-vits16": (6, 12), "kaiko-vits8": (6, 12),
    "kaiko-vitb16": (12, 12), "kaiko-vitb8": (12, 12), "kaiko-vitl14": (16, 24), "lunit-vits16": (6, 12),
    "lunit-vits8": (6, 12), "gpfm": (16, 24), "keep": (16, 24),
}  # fmt: skip
"""Number of heads, which neither the tensors nor their number show, and of blocks."""

IN = (0.485, 0.456, 0.406, 0.229, 0.224, 0.225)
HALF = (0.5,) * 6
HOP = (0.707223, 0.578729, 0.703617, 0.211883, 0.230117, 0.177517)
HIB = (0.7068, 0.5755, 0.722, 0.195, 0.2316, 0.1816)
LUN = (0.70322989, 0.53606487, 0.66096631, 0.21716536, 0.26081574, 0.20723464)
INPUTS = {
    "resnet50-v1": (IN, "bilinear", 256, 224, ()),
    "resnet50-v2": (IN, "bilinear", 232, 224, ()),
    "efficientnet-lite0": (HALF, "bicubic", 256, 224, ()),
    "efficientnet-lite2": (HALF, "bicubic", 292, 260, ()),
    "uni": (IN, "bilinear", 224, 224, (0.5,)),
    "uni2-h": (IN, "bilinear", 224, 224, (0.5,)),
    "virchow": (IN, "bicubic", 224, 224, (0.5,)),
    "virchow2": (IN, "bicubic", 224, 224, (0.25, 0.5, 1, 2)),
    "h-optimus-0": (HOP, "bicubic", 224, 224, (0.5,)),
    "h-optimus-1": (HOP, "bicubic", 224, 224, (0.5,)),
    "h0-mini": (HOP, "bicubic", 224, 224, (0.5,)),
    "prov-gigapath": (IN, "bicubic", 256, 224, (0.5,)),
    "phikon": (IN, "bilinear", 224, 224, (0.5,)),
    "midnight-12k": (HALF, "bilinear", 224, 224, (0.25, 0.5, 1, 2)),
    "hibou-b": (HIB, "bicubic", 224, 224, (0.5,)),
    "hibou-l": (HIB, "bicubic", 224, 224, (0.5,)),
    "lunit-vits16": (LUN, "bicubic", 248, 224, (0.5,)),
    "lunit-vits8": (LUN, "bicubic", 248, 224, (0.5,)),
    "gpfm": (IN, "bicubic", 224, 224, (0.5,)),
    "keep": (IN, "bicubic", 224, 224, ()),
    "openmidnight": (IN, None, 224, 224, ()),
    **dict.fromkeys(
        ("kaiko-vits16", "kaiko-vits8", "kaiko-vitb16", "kaiko-vitb8", "kaiko-vitl14"),
        (HALF, None, 224, 224, ()),
    ),
}
"""Mean and standard deviation, interpolation (None: not stated), resized and cut to, and µm/px."""

COMMERCIAL = {
    "resnet50-v1", "resnet50-v2", "efficientnet-lite0", "efficientnet-lite2", "virchow", "h-optimus-0",
    "midnight-12k", "openmidnight", "hibou-b", "hibou-l", "keep",
}  # fmt: skip
NO_DERIVATIVES = {
    "uni", "uni2-h", "virchow2", "h-optimus-1", "h0-mini", "phikon", "phikon-v2", "gpfm",
}  # fmt: skip


def test_inputs_are_those_of_the_authors() -> None:
    confirmed = {name for name, entry in ENCODERS.items() if not entry.not_confirmed}
    assert set(INPUTS) == confirmed
    for name, (scaling, interpolation, resized, side, mpp) in INPUTS.items():
        entry = ENCODERS[name]
        assert (*entry.mean, *entry.std) == scaling, name
        assert (entry.resize_px, entry.input_px) == (resized, side), name
        assert sorted(entry.mpp) == list(mpp), name
        assert interpolation in (None, entry.interpolation), name


def test_licences_are_those_of_the_authors() -> None:
    assert {name for name, entry in ENCODERS.items() if entry.licence.commercial} == COMMERCIAL
    assert {name for name, entry in ENCODERS.items() if not entry.licence.redistribution} == NO_DERIVATIVES


def test_every_encoder_has_a_published_size() -> None:
    assert set(HEADS_AND_BLOCKS) == set(LAYOUTS)
    assert set(PUBLISHED) == set(ENCODERS)
    assert set(LAYOUTS) == {name for name, entry in ENCODERS.items() if entry.pooling != "average"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_network_is_built_offline_with_the_published_size(name: str) -> None:
    entry, (parameters, width, tokens) = ENCODERS[name], PUBLISHED[name]
    network = build_network(entry)
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"meta"}
    assert parameter_count(entry, network) == entry.network.parameters == parameters
    images = torch.empty(2, 3, entry.input_px, entry.input_px, device="meta")
    with torch.no_grad():
        if isinstance(network, VitEncoder):
            blocks: Any = network.body.blocks
            assert ({block.attn.num_heads for block in blocks}, len(blocks)) == (
                {HEADS_AND_BLOCKS[name][0]},
                HEADS_AND_BLOCKS[name][1],
            )
            all_tokens = network.all_tokens(images)
            assert all_tokens.shape[1] == entry.network.tokens == tokens
            assert network.pooled(all_tokens).shape == (2, width)
            assert network.dim == width
        else:
            assert network(images).shape == (2, width)
    assert entry.width == width


def test_every_confirmed_property_has_a_documented_source() -> None:
    page = (DOCS / "sources.md").read_text("utf-8")
    letters = set(re.findall(r"^\| ([A-Z]\d?) \|", page, re.MULTILINE))
    for entry in ENCODERS.values():
        assert set(entry.sources) == set(DESCRIBED), entry.name
        for described, sources in entry.sources.items():
            if described == "mpp" and not entry.mpp:
                continue
            assert set(sources.split(", ")) <= letters, (entry.name, described, sources)


def test_the_documentation_lists_every_encoder() -> None:
    page = (DOCS / "encoders.md").read_text("utf-8")
    for name in (*ENCODERS, *NOT_SUPPORTED):
        assert f"`{name}`" in page, name


def test_encoders_that_are_not_confirmed_are_refused() -> None:
    refused = {name for name, entry in ENCODERS.items() if entry.not_confirmed}
    assert refused == {"phikon-v2", "gigapath-flash"}
    for name in refused:
        with pytest.raises(ConfigError, match=rf"'{name}' is refused.*--unverified"):
            find_entry(name)
        assert find_entry(name, unverified=True) is ENCODERS[name]


@pytest.mark.parametrize("name", ["conch", "titan", "musk", "rudolfv-2", "openmidnight-1.1"])
def test_encoders_that_lobule_cannot_load_are_refused_in_any_case(name: str) -> None:
    for unverified in (False, True):
        with pytest.raises(ConfigError, match=rf"'{name}' is not supported: "):
            find_entry(name, unverified=unverified)


def test_other_names_are_not_in_the_table() -> None:
    assert find_entry("resnet18") is None
    assert find_entry("timm:vit_small_patch16_224") is None


def test_importing_the_table_loads_neither_torch_nor_timm() -> None:
    code = "import sys, lobule.encoders; assert not {'torch', 'timm', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_licences_that_forbid_something_say_so() -> None:
    uni, phikon, lite = (ENCODERS[name].licence for name in ("uni", "phikon", "efficientnet-lite0"))
    assert uni.is_restricted
    assert "CC-BY-NC-ND-4.0, which forbids commercial use and passing on" in uni.sentence("uni")
    assert phikon.is_restricted
    assert not lite.is_restricted
    assert ENCODERS["kaiko-vits16"].licence.as_dict("kaiko-vits16") == {
        "weights": "kaiko-vits16",
        "licence": "Kaiko non-commercial public licence",
        "commercial": False,
        "redistribution": True,
    }


def test_far_resolution_is_a_warning_that_says_by_how_much() -> None:
    assert mpp_warning(ENCODERS["uni"], 0.5) is None
    assert mpp_warning(ENCODERS["uni"], 0.46) is None
    text = mpp_warning(ENCODERS["uni"], 2.0)
    assert text is not None
    assert "4 times coarser than the 0.5 µm/px that 'uni'" in text
    finer = mpp_warning(ENCODERS["virchow2"], 0.125)
    assert finer is not None
    assert "2 times finer than the 0.25 µm/px" in finer
    assert mpp_warning(ENCODERS["virchow2"], 1.0) is None
    assert mpp_warning(ENCODERS["efficientnet-lite0"], 7.0) is None
