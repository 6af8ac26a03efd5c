#!/usr/bin/env bash
# Run Rakhlin's method on BACH (ICIAR 2018), from the published data set to its tables and a submission.
#
#   BACH=/data/ICIAR2018_BACH_Challenge OUT=/data/bach runs/bach_rakhlin.sh
#
# BACH contains Photos/{Normal,Benign,InSitu,Invasive} (400 images, 8 GB). It may also contain the 100 images of the
# test set in any folder below it (test0.tif and so on), and WSI/ with the slides. The full recipe computes
# descriptors of 50 augmentations × 20 crops of each image for each of six sets. This takes hours on a GPU and weeks
# on a CPU. RECIPE=quick computes 50 times fewer crops.
#
# If the script is stopped, run the same command again to continue. Environment variables:
#   RECIPE     full (as in the paper, default) or quick
#   ENCODERS   encoders; by default those of the paper: resnet50,inception_v3,vgg16
#   WEIGHTS    weight files, one per encoder, separated by commas; by default torchvision's ImageNet weights are
#              downloaded
#   KERAS=1    for weights converted from Keras: use the networks and the BGR input of Keras
#   FOLDS      folds.csv of another training, to compare with it
#   SETTINGS   further training settings, as "key=value key=value" (see `lobule train rakhlin … --dry-run`)
#   SLIDES=1   also compute maps of the slides in WSI/; MAP_SETTINGS are their settings, such as "stride=1536"
# DEVICE, PRECISION, MAX_RAM, WORKERS, PROCESSES, SEED, RESAMPLES and PLOTS are described in runs/lib.sh.
# Research use only: not a medical device, not for diagnosis.
set -euo pipefail

: "${BACH:?the folder of the data set, e.g. BACH=/data/ICIAR2018_BACH_Challenge}"
OUT=${OUT:-bach-rakhlin}
RECIPE=${RECIPE:-full}
ENCODERS=${ENCODERS:-}
WEIGHTS=${WEIGHTS:-}
KERAS=${KERAS:-0}
FOLDS=${FOLDS:-}
SETTINGS=${SETTINGS:-}
SLIDES=${SLIDES:-0}
MAP_SETTINGS=${MAP_SETTINGS:-}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
require_folder BACH "$BACH"
mkdir -p "$OUT"

say "cohort: images in class folders are for training, images without a class are the test set"
[ -e "$OUT/cohort.csv" ] || lobule cohort "$BACH" --from bach --out "$OUT/cohort.csv"

# Three encoders with 2 × (4.1 + 5.7 + 15.4)e9 operations for 224 × 224 pixels, on 20 crops of 50 augmentations.
passes=$([ "$RECIPE" = full ] && echo 150 || echo 3)
estimate "$OUT/cohort.csv" --passes "$passes" --flop-per-pixel 1000000 --bytes-per-pixel 0.02

say "training: descriptors, then boosted trees for each fold, seed and set"
if [ ! -e "$OUT/bundle/model.json" ]; then
  settings=(recipe="$RECIPE")
  [ -z "$ENCODERS" ] || settings+=(encoders="$ENCODERS")
  [ -z "$WEIGHTS" ] || settings+=(weights="$WEIGHTS")
  [ "$KERAS" = 0 ] || settings+=(keras=true)
  [ -z "$FOLDS" ] || settings+=(folds_file="$FOLDS")
  # shellcheck disable=SC2206 # split into one word per setting
  settings+=($SETTINGS)
  set_options "${settings[@]}"
  lobule train rakhlin "$OUT/cohort.csv" --out "$OUT/bundle" "${TRAIN_MACHINE[@]}" "${SET_OPTIONS[@]}"
fi

say "cross-validation, beside the published figures"
"$PYTHON" - "$OUT/bundle" <<'PY'
import sys

from lobule.bundles import read_bundle

published = {
    "resnet50-400": "84.2 ± 4.2", "resnet50-650": "83.5 ± 5.2", "vgg16-400": "83.6 ± 2.9",
    "vgg16-650": "83.4 ± 4.4", "inception_v3-400": "83.0 ± 6.5", "inception_v3-650": "82.5 ± 5.5",
    "fusion": "87.2 ± 2.6",
}
metrics = read_bundle(sys.argv[1]).metrics
rows = {name: values["single_seed_folds"] for name, values in metrics["sets"].items()}
rows["fusion"] = metrics["fold_accuracy"]
print(f"{'accuracy over folds, %':40s}{'here':>14s}{'published':>14s}")
for name, values in rows.items():
    here = f"{100 * values['mean']:.1f} ± {100 * values['std']:.1f}"
    print(f"{name:40s}{here:>14s}{published.get(name, ''):>14s}")
interval = metrics["accuracy_interval"]
print(f"fusion, all images: {interval['value']:.4f} ({interval['low']:.4f} to {interval['high']:.4f})")
print(f"mean of the members: {metrics['mean_of_members']:.4f}")
if two := metrics.get("carcinoma"):
    print(f"two classes: accuracy {two['accuracy']['value']:.4f} (published 0.9375), AUC {two['auc']:.4f} (0.9734)")
    known = {"0.33": "0.965, 0.880", "0.5": "0.930, 0.945"}
    for point, values in two["operating_points"].items():
        here = f"{values['sensitivity']['value']:.3f}, {values['specificity']['value']:.3f}"
        print(f"  at {point}: sensitivity and specificity {here} (published {known.get(point, '-')})")
PY

say "test set: probabilities, and the submission file case,class"
"$PYTHON" - "$OUT" <<'PY'
import sys
from pathlib import Path

from lobule.cohort import read_cohort, write_cohort

out = Path(sys.argv[1])
test = read_cohort(out / "cohort.csv").split("test")
print(f"{len(test)} images without a class")
if len(test):
    write_cohort(test, out / "test.csv")
PY
if [ -e "$OUT/test.csv" ]; then
  lobule scan "$OUT/bundle" "$OUT/test.csv" --out "$OUT/results" "${SCAN_MACHINE[@]}" ||
    accounted "$?" "$OUT/results/results.csv"
  "$PYTHON" -c "import sys; from lobule.methods.rakhlin import write_bach; \
print(write_bach(sys.argv[1], sys.argv[2]), 'predictions in', sys.argv[2])" "$OUT/results" "$OUT/pred.csv"
  if [ -e "$OUT/labelled-test.csv" ]; then # a file that you write if you know the labels
    lobule evaluate "$OUT/results" "$OUT/labelled-test.csv" --out "$OUT/evaluation" "${EVALUATE[@]}" ||
      accounted "$?" "$OUT/evaluation/table.csv"
  fi
fi

if [ "$SLIDES" = 1 ]; then
  say "slides: maps of class probabilities"
  mapfile -t slides < <(find -L "$BACH" -type f \( -ipath '*/WSI/*.svs' -o -ipath '*/WSI/*.tif' \) | sort)
  # shellcheck disable=SC2086 # split into one word per setting
  set_options $MAP_SETTINGS
  [ ${#slides[@]} -eq 0 ] || lobule scan "$OUT/bundle" "${slides[@]}" --out "$OUT/maps" "${SCAN_MACHINE[@]}" \
    ${SET_OPTIONS[@]+"${SET_OPTIONS[@]}"} || accounted "$?" "$OUT/maps/results.csv"
  echo "${#slides[@]} slides"
fi
