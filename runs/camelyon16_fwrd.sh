#!/usr/bin/env bash
# Run FW-RD on Camelyon16: train a detector on ten outlined slides, compute the official measures and print them
# beside published figures.
#
#   CAMELYON16=/data/CAMELYON16 OUT=/data/fwrd runs/camelyon16_fwrd.sh
#
# CAMELYON16 contains training/ and testing/ in any of the published layouts; about 700 GB. The ten training slides
# are those of the paper that exist there. Other training slides are used for calibration, and their outlines only
# for that.
#
# If the script is stopped, run the same command again to continue. Environment variables:
#   SLIDES     numbers of the tumour slides to train on; by default the ten of the paper
#   TEACHER    wide_resnet50_2 or another network
#   WEIGHTS    file of the teacher's weights; by default torchvision's weights are downloaded
#   CHECKPOINT published checkpoint (wres50.pth) to evaluate instead of training a model
#   LOSS       focal (FW-RD) or plain (RD4AD)
#   VAL        number of tumour slides, and of normal slides, for calibration; 0 uses the paper's threshold
#   FORM       exact (every patch, as published) or shared (about ten times faster; the bundle records how well both
#              agree)
#   SETTINGS   further training settings, as "key=value key=value"
# DEVICE, PRECISION, MAX_RAM, WORKERS, PROCESSES, SEED, RESAMPLES and PLOTS are described in runs/lib.sh.
# Research use only: not a medical device, not for diagnosis.
set -euo pipefail

: "${CAMELYON16:?the folder of the data set, e.g. CAMELYON16=/data/CAMELYON16}"
OUT=${OUT:-camelyon16-fwrd}
SLIDES=${SLIDES:-001 011 022 034 045 057 070 082 095 108}
TEACHER=${TEACHER:-wide_resnet50_2}
WEIGHTS=${WEIGHTS:-}
CHECKPOINT=${CHECKPOINT:-}
LOSS=${LOSS:-focal}
VAL=${VAL:-15}
FORM=${FORM:-exact}
SETTINGS=${SETTINGS:-}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
camelyon16_cohort
# A Wide ResNet-50 and its student have about 4 × 11.4e9 operations for 224 × 224 pixels; patches overlap 4 times.
estimate "$OUT/test.csv" --mpp 0.25 --passes "$([ "$FORM" = exact ] && echo 4 || echo 1)" --flop-per-pixel 909000 \
  --bytes-per-pixel 0.001

say "the outlined slides for training, and slides for calibration"
# shellcheck disable=SC2086 # split into one word per number
"$PYTHON" - "$OUT" "$VAL" $SLIDES <<'PY'
import sys
from dataclasses import replace
from pathlib import Path

from lobule.cohort import Cohort, read_cohort, write_cohort

out, val = Path(sys.argv[1]), int(sys.argv[2])
chosen = {f"tumor_{number}" for number in sys.argv[3:]}
cohort = read_cohort(out / "cohort.csv")
train = cohort.split("train")
learns = [case for case in train if case.id.lower() in chosen]
if not learns:
    sys.exit(f"the data set contains none of the slides to train on: {', '.join(sorted(chosen))}")
missing = chosen - {case.id.lower() for case in learns}
whole = [case for case in train if case not in learns and case.attributes.get("exhaustive") != "false"]


def from_all_sites(cases):
    """The first cases of every hospital in turn."""
    sites = {}
    for case in cases:
        sites.setdefault(case.site, []).append(case)
    longest = max(map(len, sites.values()), default=0)
    return [group[turn] for turn in range(longest) for group in sites.values() if turn < len(group)][:val]


outlined = from_all_sites(case for case in whole if case.label != "normal" and case.annotation)
normal = from_all_sites(case for case in whole if case.label == "normal")
calibration = [replace(case, split="val") for case in (*outlined, *normal)]
write_cohort(Cohort((*learns, *calibration)), out / "few.csv")
print(f"{len(learns)} outlined slides learn, {len(calibration)} calibrate, of them {len(outlined)} outlined")
if missing:
    print(f"missing slides: {', '.join(sorted(missing))}")
PY

if [ ! -e "$OUT/bundle/model.json" ] && [ -n "$CHECKPOINT" ]; then
  say "converting $CHECKPOINT"
  lobule weights convert "$CHECKPOINT" --method reverse-distillation --architecture "$TEACHER" \
    ${WEIGHTS:+--teacher "$WEIGHTS"} --out "$OUT/bundle"
elif [ ! -e "$OUT/bundle/model.json" ]; then
  say "training on a few outlined slides, then calibration"
  val=val
  [ "$VAL" -gt 0 ] || val=none
  settings=(augmentation=false teacher="$TEACHER" weights="$WEIGHTS" loss="$LOSS" form="$FORM" slides="$(wc -w <<<"$SLIDES")")
  [ "$VAL" -gt 0 ] || settings+=(threshold=paper)
  # shellcheck disable=SC2086 # split into one word per setting
  set_options "${settings[@]}" $SETTINGS
  lobule train reverse-distillation "$OUT/few.csv" --out "$OUT/bundle" --val "$val" "${TRAIN_MACHINE[@]}" \
    "${SET_OPTIONS[@]}"
fi

say "scan of the test slides, $FORM"
lobule scan "$OUT/bundle" "$OUT/test.csv" --out "$OUT/results" "${SCAN_MACHINE[@]}" --set form="$FORM" ||
  accounted "$?" "$OUT/results/results.csv"

say "official measures: stored findings, then findings by non-maximum suppression of the maps"
EVALUATE+=(--lesion-scale official --score tumour)
lobule evaluate "$OUT/results" "$OUT/test.csv" "${EVALUATE[@]}" --out "$OUT/evaluation" ||
  accounted "$?" "$OUT/evaluation/table.csv"
stride=$("$PYTHON" -c "import sys; from lobule.bundles import read_bundle; \
print(read_bundle(sys.argv[1]).config.get('stride', 32))" "$OUT/bundle")
cells=$((384 / ${stride:-32})) # the published radius of FW-RD is 384 px
lobule evaluate "$OUT/results" "$OUT/test.csv" "${EVALUATE[@]}" --findings nms --nms-radius "$((cells > 0 ? cells : 1))" --out "$OUT/evaluation-nms" \
  --json >/dev/null || accounted "$?" "$OUT/evaluation-nms/table.csv"

"$PYTHON" - "$OUT" <<'PY'
import csv
import json
import sys
from pathlib import Path

out = Path(sys.argv[1])


def measured(folder):
    data = json.loads((out / folder / "evaluation.json").read_text())
    (task,) = data["tasks"].values()
    return task["all"]["auroc"], data["lesions"]["all"]["froc_score"]


def shown(measure):
    if measure["value"] is None:
        return "undefined"
    low, high = measure.get("low"), measure.get("high")
    return f"{measure['value']:.4f}" + (f" ({low:.3f} to {high:.3f})" if low is not None else "")


rows = [("here, findings as stored", *map(shown, measured("evaluation")))]
rows += [("here, non-maximum suppression", *map(shown, measured("evaluation-nms")))]
rows += [
    ("FW-RD, ten slides (its repository)", "0.9036", "not known"),
    ("plain reverse distillation (the same)", "0.6068", "not known"),
    ("HMS & MIT II, all slides (JAMA 2017)", "0.994 (0.983 to 0.999)", "0.807 (0.732 to 0.889)"),
]
print(f"\n{'Camelyon16, test set':<40}{'slide AUC':<26}FROC")
for name, auc, froc in rows:
    print(f"{name:<40}{auc:<26}{froc}")
with (out / "few.csv").open() as lines:
    chosen = list(csv.DictReader(lines))
calibrating = [row for row in chosen if row["split"] == "val" and row["annotation"]]
print(
    f"\n{len(chosen)} slides used, of them {len(chosen) - sum(row['label'] == 'normal' for row in chosen)} with "
    f"outlines: {len(calibrating)} of these only for choosing the epoch, the threshold and the calibration"
)
model = json.loads((out / "bundle" / "model.json").read_text())
budget = model["provenance"].get("budget")
if budget:
    print(f"\nlearned from {budget['slides']} outlined slides, {budget['tumour_patches']} tumour patches")
for note in model["provenance"].get("notes", ()):
    print(f"note: {note}")
print("Research use only: not a medical device, not for diagnosis.")
PY
