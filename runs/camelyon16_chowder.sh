#!/usr/bin/env bash
# Run CHOWDER on Camelyon16: train on slide labels alone, compute the official measures and print them beside
# published figures.
#
#   CAMELYON16=/data/CAMELYON16 OUT=/data/chowder runs/camelyon16_chowder.sh
#
# CAMELYON16 contains training/ and testing/ in any of the published layouts; about 700 GB. Only the evaluation reads
# outlines; the training does not.
#
# If the script is stopped, run the same command again to continue. Environment variables:
#   BACKBONE            encoder: resnet50, timm:NAME, …
#   WEIGHTS             weights of the encoder: pretrained, or a file
#   MPP TILE            µm/px of the tiles, and their size in pixels
#   INPUT               size in pixels to which tiles are resized; by default they are not resized
#   MODELS              models to train and compare: chowder chowder_modern weldon mean_pool max_features max_pool abmil
#                       transmil
#   FOLDS REPEATS       cross-validation on the training slides, by patient; FOLDS=0 skips it
#   VAL PATIENCE        validation split, and epochs without a better validation before a member stops. By default none
#                       and 0, as in the paper: all slides, 30 epochs, last weights
#   SETTINGS            further training settings, as "key=value key=value"
#   FEATURES            folder of existing features (of TRIDENT, CLAM, Lobule, or the .npy files of Owkin's challenge)
# DEVICE, PRECISION, MAX_RAM, WORKERS, PROCESSES, SEED, RESAMPLES and PLOTS are described in runs/lib.sh.
# Research use only: not a medical device, not for diagnosis.
set -euo pipefail

: "${CAMELYON16:?the folder of the data set, e.g. CAMELYON16=/data/CAMELYON16}"
OUT=${OUT:-camelyon16-chowder}
BACKBONE=${BACKBONE:-resnet50}
WEIGHTS=${WEIGHTS:-pretrained}
MPP=${MPP:-0.5}
TILE=${TILE:-224}
INPUT=${INPUT:-}
MODELS=${MODELS:-chowder}
FOLDS=${FOLDS:-3}
REPEATS=${REPEATS:-3}
SETTINGS=${SETTINGS:-}
VAL=${VAL:-none}
PATIENCE=${PATIENCE:-0}
FEATURES=${FEATURES:-}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
camelyon16_cohort
# ResNet-50 has 2 × 4.1e9 operations and 2,048 features of 2 bytes for a tile of 224 × 224 pixels.
if [ -z "$FEATURES" ]; then
  estimate "$OUT/cohort.csv" --mpp "$MPP" --flop-per-pixel 163000 --bytes-per-pixel 0.082
fi

if [ -z "$FEATURES" ]; then
  say "features of every tissue tile"
  FEATURES="$OUT/features"
  resized=()
  [ -n "$INPUT" ] && resized=(--input "$INPUT")
  lobule features "$OUT/cohort.csv" --backbone "$BACKBONE" --weights "$WEIGHTS" --mpp "$MPP" --tile "$TILE" \
    ${resized[@]+"${resized[@]}"} "${SCAN_MACHINE[@]}" --out "$FEATURES" ||
    accounted "$?" "$FEATURES/scan/results.csv"
fi

for model in $MODELS; do
  folder="$OUT/$model"
  if [ ! -e "$folder/bundle/model.json" ]; then
    say "$model: cross-validation, then training, orientation and calibration of the ensemble"
    # shellcheck disable=SC2086 # split into one word per setting
    set_options features="$FEATURES" folds="$FOLDS" repeats="$REPEATS" patience="$PATIENCE" $SETTINGS
    lobule train "$model" "$OUT/cohort.csv" --out "$folder/bundle" --val "$VAL" "${TRAIN_MACHINE[@]}" \
      "${SET_OPTIONS[@]}"
  fi
  say "$model: scan of the test slides from their features, then the official measures"
  lobule scan "$folder/bundle" "$OUT/test.csv" --out "$folder/results" "${SCAN_MACHINE[@]}" \
    --set features="$FEATURES" || accounted "$?" "$folder/results/results.csv"
  lobule evaluate "$folder/results" "$OUT/test.csv" --lesion-scale official "${EVALUATE[@]}" \
    --out "$folder/evaluation" ||
    accounted "$?" "$folder/evaluation/table.csv"
done

"$PYTHON" - "$OUT" $MODELS <<'PY'
import json
import sys
from pathlib import Path

out, models = Path(sys.argv[1]), sys.argv[2:]


def shown(measure):
    if measure is None or measure["value"] is None:
        return "undefined"
    low, high = measure.get("low"), measure.get("high")
    return f"{measure['value']:.4f}" + (f" ({low:.3f} to {high:.3f})" if low is not None else "")


rows = []
for model in models:
    data = json.loads((out / model / "evaluation" / "evaluation.json").read_text())
    bundle = json.loads((out / model / "bundle" / "model.json").read_text())["metrics"]
    (task,) = data["tasks"].values()
    lesions = data["lesions"]
    froc = lesions["all"]["froc_score"] if lesions and lesions.get("all") else None
    folds = bundle.get("cross_validation", {}).get("spread_of_folds")
    cv = "not done" if bundle.get("cv_auc") is None else f"{bundle['cv_auc']:.3f}"
    cv += "" if folds is None else f" ± {folds:.3f}"
    rows.append((f"here, {model}", cv, shown(task["all"]["auroc"]), shown(froc)))
    check = bundle.get("counterfactual")
    if check:
        print(
            f"{model}: without the highest tiles the score falls on {check['removed']['fell']:.0%} of slides; put into "
            f"normal slides they raise it on {check['inserted']['rose']:.0%}"
        )
rows += [
    ("CHOWDER, R = 5 (as recalled)", "0.903", "0.858", "0.31"),
    ("CHOWDER, R = 10 (as recalled)", "0.900", "0.843", ""),
    ("WELDON, R = 10 (as recalled)", "0.832", "0.670", ""),
    ("mean pooling (as recalled)", "0.802", "0.530", ""),
    ("max pooling (as recalled)", "0.749", "0.655", ""),
    ("re-implementations of R = 5", "", "0.80 to 0.86", ""),
]
print(f"\n{'Camelyon16, slide labels alone':<34}{'CV AUC':<18}{'test AUC':<26}FROC")
for name, cv, auc, froc in rows:
    print(f"{name:<34}{cv:<18}{auc:<26}{froc}".rstrip())
print("\nResearch use only: not a medical device, not for diagnosis.")
PY
