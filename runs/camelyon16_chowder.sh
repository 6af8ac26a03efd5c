#!/usr/bin/env bash
# CHOWDER on Camelyon16: from slide labels alone to the official measures, beside published ones.
#
#   CAMELYON16=/data/CAMELYON16 OUT=/data/chowder runs/camelyon16_chowder.sh
#
# CAMELYON16 holds training/ and testing/ in any layout in which the set was ever published; about 700 GB.
# Outlines are read by the evaluation alone, never by the training. Stopped at any instant, the same command
# goes on. What can be chosen, by environment variables:
#   BACKBONE WEIGHTS    the encoder (resnet50, timm:NAME, …) and its weights: pretrained, or a file
#   MPP TILE INPUT      µm/px and pixels of the tiles, and what they are resized to (nothing: as they are)
#   MODELS              what is trained and compared: chowder chowder_modern weldon mean_pool max_pool abmil
#                       transmil; the first is also judged on its own submission
#   FOLDS REPEATS       cross-validation on the training slides, by patient; FOLDS=0 leaves it out
#   SETTINGS            further settings of the training, as "key=value key=value"
#   FEATURES            a folder of features that exist already (TRIDENT's, CLAM's or Lobule's own)
#   DEVICE PRECISION    of the extraction
#   RESAMPLES           of the intervals; PLOTS=1 draws plots, which needs `pip install lobule[plots]`
# Research use only: not a medical device, not for diagnosis.
set -euo pipefail

: "${CAMELYON16:?the folder of the data set, e.g. CAMELYON16=/data/CAMELYON16}"
OUT=${OUT:-camelyon16-chowder}
PYTHON=${PYTHON:-python}
BACKBONE=${BACKBONE:-resnet50}
WEIGHTS=${WEIGHTS:-pretrained}
MPP=${MPP:-0.5}
TILE=${TILE:-224}
INPUT=${INPUT:-}
MODELS=${MODELS:-chowder}
FOLDS=${FOLDS:-3}
REPEATS=${REPEATS:-3}
SETTINGS=${SETTINGS:-}
FEATURES=${FEATURES:-}
SEED=${SEED:-0}
DEVICE=${DEVICE:-auto}
PRECISION=${PRECISION:-auto}
RESAMPLES=${RESAMPLES:-2000}
PLOTS=${PLOTS:-0}

lobule() { "$PYTHON" -m lobule "$@"; }
say() { printf '\n== %s\n' "$*"; }
accounted() { [ "$1" -eq 1 ] && [ -e "$2" ]; } # some slides failed, and are in the results with their cause
mkdir -p "$OUT"

say "cohort: slides, annotations and masks by name; who is excluded, and why"
[ -e "$OUT/cohort.csv" ] || lobule cohort "$CAMELYON16" --from camelyon16 --out "$OUT/cohort.csv"
"$PYTHON" - "$OUT" <<'PY'
import sys
from pathlib import Path
from lobule.cohort import read_cohort, write_cohort

out = Path(sys.argv[1])
cohort = read_cohort(out / "cohort.csv")
test = cohort.split("test")
if not len(test):
    sys.exit("no slide of the test set is there: its files are named test_001.tif and so on")
write_cohort(test, out / "test.csv")
print(f"{len(cohort.split('train'))} slides to train on, {len(test)} to be judged on")
PY

if [ -z "$FEATURES" ]; then
  say "features of every tile of tissue"
  FEATURES="$OUT/features"
  resized=()
  [ -n "$INPUT" ] && resized=(--input "$INPUT")
  lobule features "$OUT/cohort.csv" --backbone "$BACKBONE" --weights "$WEIGHTS" --mpp "$MPP" --tile "$TILE" \
    ${resized[@]+"${resized[@]}"} --device "$DEVICE" --precision "$PRECISION" --out "$FEATURES"
fi

judge=(--lesion-scale official --resamples "$RESAMPLES")
plots=--no-plots
[ "$PLOTS" = 1 ] && plots=--plots
for model in $MODELS; do
  place="$OUT/$model"
  if [ ! -e "$place/bundle/model.json" ]; then
    say "$model: cross-validation, then the ensemble, its orientation and its calibration"
    read -r -a more <<<"$SETTINGS"
    arguments=(--set features="$FEATURES" --set folds="$FOLDS" --set repeats="$REPEATS")
    for setting in ${more[@]+"${more[@]}"}; do arguments+=(--set "$setting"); done
    [ -e "$place/bundle/training/settings.json" ] && arguments+=(--resume)
    lobule train "$model" "$OUT/cohort.csv" --out "$place/bundle" --seed "$SEED" --device "$DEVICE" \
      "${arguments[@]}"
  fi
  say "$model: scan of the test slides, from their features, and the official measures"
  lobule scan "$place/bundle" "$OUT/test.csv" --out "$place/results" --device "$DEVICE" --set features="$FEATURES" ||
    accounted "$?" "$place/results/results.csv"
  lobule evaluate "$place/results" "$OUT/test.csv" "${judge[@]}" $plots --to "$place/evaluation" ||
    accounted "$?" "$place/evaluation/table.csv"
done

"$PYTHON" - "$OUT" $MODELS <<'PY'
import json
import sys
from pathlib import Path

out, models = Path(sys.argv[1]), sys.argv[2:]


def shown(found):
    if found is None or found["value"] is None:
        return "undefined"
    low, high = found.get("low"), found.get("high")
    return f"{found['value']:.4f}" + (f" ({low:.3f} to {high:.3f})" if low is not None else "")


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
