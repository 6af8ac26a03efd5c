"""Generated cohorts of slides: files, annotations, masks and the manifest; patients, sites and splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lobule.cohort import SPLITS, Case, Cohort, Kind, write_cohort
from lobule.errors import ConfigError
from lobule.files import make_folder, write_text
from lobule.phantoms.layout import ROOM_UM, layout_of
from lobule.phantoms.noise import generator, mixed
from lobule.phantoms.phantom import SlidePhantom
from lobule.phantoms.slides import write_slide
from lobule.phantoms.truth import SlideTruth, write_annotation_files, write_mask_tiff

LAYOUTS = ("folder", "camelyon16")

LESION_MIX: tuple[tuple[int, int, int], ...] = ((1, 1, 1), (0, 2, 2), (1, 0, 2), (0, 1, 3))
"""Numbers of macro, micro and isolated-cell lesions; tumour slides take the entries in turn."""

Progress = Callable[[int, int], None]
"""Called with the number of finished slides and the number of all slides."""


@dataclass(frozen=True)
class Member:
    """One case of a generated cohort, before its slide is painted."""

    index: int
    patient: str
    split: str
    site: str
    positive: bool

    def case(self, name: str, kind: Kind, path: Path, label: str, mpp: float, **details: Any) -> Case:
        return Case(
            name,
            self.patient,
            kind,
            str(path),
            split=self.split,
            label=label,
            site=self.site,
            mpp=mpp,
            **details,
        )


def members(
    count: int,
    *,
    normal: float,
    patients: int | None,
    sites: int,
    split: Sequence[float],
    seed: int,
    unseen_site: bool = False,
) -> list[Member]:
    """The cases of a cohort. A patient has one site and one split; splits get both labels if possible.

    With `unseen_site` the last site is in the test split alone, and the test split is that site.
    """
    if count < 1 or sites < 1 or not 0 <= normal <= 1 or len(split) != 3 or sum(split) <= 0:
        raise ConfigError(
            "a generated cohort needs cases, sites, a share of normal ones and three shares of splits",
            actual=f"{count} cases, {sites} sites, normal {normal:g}, split {tuple(split)}",
        )
    patients = min(count, patients or count)
    rng = generator(seed, 0xC0407)
    negatives = round(count * normal)
    order = rng.permutation(patients)
    # patients in one sequence, each holding every `patients`-th case: labels spread evenly along it
    positive = [
        (i * (count - negatives)) // count < ((i + 1) * (count - negatives)) // count for i in range(count)
    ]
    cohort_members = []
    for index in range(count):
        patient = index % patients
        position = (int(order[patient]) + 0.5) / patients
        split_name = split_of(position, list(zip(SPLITS, split, strict=True)))
        site = int(order[patient]) % sites
        if unseen_site and sites > 1:
            site = sites - 1 if split_name == "test" else site % (sites - 1)
        cohort_members.append(
            Member(index, f"patient-{patient + 1:03d}", split_name, f"site-{site}", positive[index])
        )
    return cohort_members


def split_of(position: float, splits: Sequence[tuple[str, float]]) -> str:
    """The split at a position from 0 to 1; each split has its share of the positions."""
    total, reached = sum(share for _, share in splits), 0.0
    for name, share in splits:
        reached += share / total
        if position < reached:
            return name
    return splits[-1][0]


def write_slide_cohort(
    out: str | Path,
    *,
    slides: int,
    normal: float = 0.5,
    patients: int | None = None,
    sites: int = 2,
    split: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    unseen_site: bool = False,
    like: SlidePhantom | None = None,
    lesions: Sequence[tuple[int, int, int]] | None = None,
    layout: str = "folder",
    style: str = "generic",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a cohort of generated slides and return its manifest.

    `like` gives size, µm/px, tissue, mimics, artefacts and organ of every slide; `lesions` the macro, micro
    and isolated-cell counts of tumour slides in turn (without it, lesions that have no room are made smaller,
    then fewer). The layout "camelyon16" names and places files as the
    public set does (and adds mask TIFFs); the manifest lies beside either.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"no layout '{layout}'", expected=f"one of {', '.join(LAYOUTS)}")
    like = like or SlidePhantom(0, 6144, 6144, 0.5, mimics=2)
    folder = make_folder(out)
    people = members(
        slides, normal=normal, patients=patients, sites=sites, split=split, seed=seed, unseen_site=unseen_site
    )
    cases, reference, counts = [], [], {"tumor": 0, "normal": 0, "test": 0}
    for member in people:
        phantom = replace(like, seed=mixed(seed, member.index, 0x51), site=member.site)
        phantom = _with_lesions(phantom, lesions, counts["tumor"] + counts["test"], member.positive)
        label = "tumor" if member.positive else "normal"
        group = "test" if layout == "camelyon16" and member.split == "test" else label
        counts[group] += 1
        name = f"{group.capitalize() if layout == 'camelyon16' else group}_{counts[group]:03d}"
        paths = _CasePaths.of(folder, layout, group, name, style)
        truth = write_slide(phantom, paths.slide, style=style, threads=threads)
        annotation = _write_truth(truth, paths, layout)
        if group == "test":
            reference.append(_reference_row(name, truth))
        details = {"annotation": annotation and str(annotation), "attributes": {"exhaustive": "true"}}
        cases.append(member.case(name, "slide", paths.slide, label, phantom.mpp, **details))
        if progress is not None:
            progress(member.index + 1, slides)
    if layout == "camelyon16":
        # the public data set always has this file
        write_text(make_folder(folder / "testing") / "reference.csv", "".join(reference))
    manifest = folder / "cohort.csv"
    write_cohort(Cohort(tuple(cases)), manifest)
    return manifest


def _with_lesions(
    phantom: SlidePhantom, lesions: Sequence[tuple[int, int, int]] | None, turn: int, positive: bool
) -> SlidePhantom:
    """The slide with the requested numbers of lesions or, by default, with as many as fit."""
    mixes = lesions or LESION_MIX
    macro, micro, itc = mixes[turn % len(mixes)] if positive else (0, 0, 0)
    if lesions is None:
        width = min(phantom.size_um) * phantom.tissue**0.5
        if width < ROOM_UM["macro"]:
            macro, micro = 0, macro + micro
        if width < ROOM_UM["micro"]:
            micro, itc = 0, micro + itc
    phantom = replace(phantom, macro=macro, micro=micro, itc=itc)
    while lesions is None:
        try:
            layout_of(phantom)
            break
        except ConfigError:
            smaller = _smaller(phantom)
            if smaller is None:
                raise
            phantom = smaller
    return phantom


def _smaller(phantom: SlidePhantom) -> SlidePhantom | None:
    """Replace one lesion by the next smaller class, or remove one lesion of isolated cells."""
    if phantom.macro:
        return replace(phantom, macro=phantom.macro - 1, micro=phantom.micro + 1)
    if phantom.micro:
        return replace(phantom, micro=phantom.micro - 1, itc=phantom.itc + 1)
    return replace(phantom, itc=phantom.itc - 1) if phantom.itc > 1 else None


@dataclass(frozen=True)
class _CasePaths:
    slide: Path
    annotation: Path
    mask: Path
    lesions: Path

    @classmethod
    def of(cls, folder: Path, layout: str, group: str, name: str, style: str) -> _CasePaths:
        suffix = {"svs": ".svs", "ome": ".ome.tif"}.get(style, ".tif")
        if layout == "camelyon16":
            root = folder / ("testing" if group == "test" else "training")
            slide = root / ("images" if group == "test" else group) / f"{name}.tif"
            outline = root / "lesion_annotations" / f"{name}.xml"
            mask = root / "masks" / f"{name}_Mask.tif"
        else:
            slide = folder / "slides" / f"{name}{suffix}"
            outline = folder / "annotations" / f"{name}.xml"
            mask = folder / "masks" / f"{name}.png"
        lesions = folder / "lesions" / f"{name}.json"
        for path in (slide, outline, mask, lesions):
            make_folder(path.parent)
        return cls(slide, outline, mask, lesions)


def _write_truth(truth: SlideTruth, paths: _CasePaths, layout: str) -> Path | None:
    """Write lesions, mask and outlines of a slide. Return the path of the outlines, if it has any."""
    write_text(paths.lesions, truth.lesions_json() + "\n")
    if layout == "camelyon16":
        if truth.outlines:
            write_mask_tiff(truth, paths.mask)
    else:
        truth.write_mask(paths.mask)
    if not truth.outlines:
        return None
    write_annotation_files(truth, paths.annotation)
    return paths.annotation


def _reference_row(name: str, truth: SlideTruth) -> str:
    if not truth.outlines:
        return f"{name.lower()},Normal,None,None\n"
    largest = max(truth.outlines, key=lambda one: one.size_um).lesion_class
    return f"{name.lower()},Tumor,IDC,{ {'macro': 'Macro', 'micro': 'Micro', 'itc': 'None'}[largest] }\n"
