"""`lobule wsss4luad`: write the training cohort of WSSS4LUAD for reverse distillation."""

from __future__ import annotations

import click

from lobule.cli.base import CommandOutput, format_fields, lobule_command
from lobule.cli.options import out_option


@lobule_command("lobule wsss4luad WSSS4LUAD --out luad")
@click.argument("folder")
@out_option("DIR", "Folder for cohort.csv, normal.txt and tumour.txt.")
def command(folder: str, out: str) -> CommandOutput:
    """Write a cohort of the training images, and the lists of patches that the authors of FW-RD used.

    FOLDER is the release with 1.training, 2.validation and 3.testing.
    """
    from lobule.methods.reverse_distillation.wsss4luad import SIDE, write_training

    counts = write_training(folder, out)
    cohort = f"{out}/cohort.csv"
    lists = f"--coords {out}/normal.txt --coords {out}/tumour.txt"
    settings = f"--set patch={SIDE} --set mpp=0.5 --set val_slides=0 --val none"
    training = f"lobule train reverse_distillation {cohort} {lists} {settings} --out BUNDLE"
    lines = [("cohort", cohort), *((f"{name} patches", str(number)) for name, number in counts.items())]
    data = {"cohort": cohort, **counts, "train": training}
    return CommandOutput(data, format_fields([*lines, ("train with", training)]))
