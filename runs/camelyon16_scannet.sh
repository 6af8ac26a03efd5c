#!/usr/bin/env bash
# ScanNet on Camelyon16: from the data set as it is published to the official measures, beside published ones.
#
#   CAMELYON16=/data/CAMELYON16 OUT=/data/scannet runs/camelyon16_scannet.sh
#
# CAMELYON16 holds training/ and testing/ in any layout in which the set was ever published; about 700 GB.
# Stopped at any instant, the same command goes on. What can be chosen, by environment variables:
#   TRUNK      a dense net of `lobule train scannet --dry-run`; the paper's VGG-16 if not given
#   WEIGHTS    a file of pretrained trunk weights (torchvision's VGG-16, for the paper's net)
#   STEPS BATCH ROUNDS ROUND_STEPS    the length of the training and of the rounds of hard-negative mining
#   STRIDE     pixels a map cell of the test scans: 32, 16 (Fast ScanNet-16) or 8
#   SLIDE_SCORE    forest (31 features of the map, cross-fitted) or max
#   SETTINGS   further settings of the training, as "key=value key=value"
#   GPUS       processes of the training, one a GPU; DEVICE for one
#   RESAMPLES  of the intervals; PLOTS=1 draws plots, which needs `pip install lobule[plots]`
# Research use only: not a medical device, not for diagnosis.
set -euo pipefail

: "${CAMELYON16:?the folder of the data set, e.g. CAMELYON16=/data/CAMELYON16}"
OUT=${OUT:-camelyon16-scannet}
PYTHON=${PYTHON:-python}
TRUNK=${TRUNK:-scannet_vgg16}
WEIGHTS=${WEIGHTS:-}
STEPS=${STEPS:-100000}
BATCH=${BATCH:-64}
ROUNDS=${ROUNDS:-2}
ROUND_STEPS=${ROUND_STEPS:-25000}
STRIDE=${STRIDE:-16}
SLIDE_SCORE=${SLIDE_SCORE:-forest}
SETTINGS=${SETTINGS:-}
SEED=${SEED:-0}
GPUS=${GPUS:-1}
DEVICE=${DEVICE:-auto}
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

say "training: patches from the slides, then rounds of hard negatives, then the slide score"
if [ ! -e "$OUT/bundle/model.json" ]; then
  settings=(trunk="$TRUNK" weights="$WEIGHTS" steps="$STEPS" batch="$BATCH" rounds="$ROUNDS"
    round_steps="$ROUND_STEPS" stride="$STRIDE" slide_score="$SLIDE_SCORE")
  read -r -a more <<<"$SETTINGS"
  arguments=()
  for setting in "${settings[@]}" ${more[@]+"${more[@]}"}; do arguments+=(--set "$setting"); done
  [ -e "$OUT/bundle/training/settings.json" ] && arguments+=(--resume)
  launch=("$PYTHON" -m lobule)
  if [ "$GPUS" -gt 1 ]; then launch=("$PYTHON" -m torch.distributed.run --nproc-per-node "$GPUS" -m lobule); fi
  "${launch[@]}" train scannet "$OUT/cohort.csv" --out "$OUT/bundle" --seed "$SEED" --device "$DEVICE" \
    "${arguments[@]}"
fi
for gallery in "$OUT"/bundle/training/round-*/gallery.html; do
  [ -e "$gallery" ] && echo "what was mined, to be looked through: $gallery"
done

say "scan of the test slides"
lobule scan "$OUT/bundle" "$OUT/test.csv" --out "$OUT/results" --device "$DEVICE" ||
  accounted "$?" "$OUT/results/results.csv"

say "official measures: findings as stored, and by non-maximum suppression of the maps"
plots=--no-plots
[ "$PLOTS" = 1 ] && plots=--plots
judge=(--lesion-scale official --resamples "$RESAMPLES")
lobule evaluate "$OUT/results" "$OUT/test.csv" "${judge[@]}" $plots --to "$OUT/evaluation" ||
  accounted "$?" "$OUT/evaluation/table.csv"
lobule evaluate "$OUT/results" "$OUT/test.csv" "${judge[@]}" $plots --findings nms --to "$OUT/evaluation-nms" \
  --json >/dev/null || accounted "$?" "$OUT/evaluation-nms/table.csv"

say "the same as a submission: a CSV a slide, and one of all slides, judged again from these files"
"$PYTHON" - "$OUT" <<'PY'
import sys
from pathlib import Path
from lobule.cohort import read_cohort
from lobule.evaluation import Options, open_source
from lobule.files import make_folder, write_text

out = Path(sys.argv[1])
source = open_source(out / "results", Options())
folder, rows = make_folder(out / "submission" / "detections"), []
for case in read_cohort(out / "test.csv", check_files=False):
    said = source.said(case)
    if said.detections is None:
        print(f"{case.id}: {said.status}, no file")
        continue
    lines = [f"{score!r},{int(x)},{int(y)}\n" for score, x, y in said.detections.tolist()]
    write_text(folder / f"{case.id}.csv", "".join(lines))
    rows.append(f"{case.id},{next(iter(said.scores.values()))!r}\n")
write_text(out / "submission" / "slides.csv", "".join(rows))
PY
lobule evaluate --submission "$OUT/submission/detections" --submission "$OUT/submission/slides.csv" \
  "$OUT/test.csv" "${judge[@]}" --no-plots --to "$OUT/evaluation-submission" --json >/dev/null ||
  accounted "$?" "$OUT/evaluation-submission/table.csv"

"$PYTHON" - "$OUT" <<'PY'
import json
import sys
from pathlib import Path

out = Path(sys.argv[1])


def measured(folder):
    data = json.loads((out / folder / "evaluation.json").read_text())
    (task,) = data["tasks"].values()
    return data["lesions"]["all"]["froc_score"], task["all"]["auroc"]


def shown(found):
    if found["value"] is None:
        return "undefined"
    low, high = found.get("low"), found.get("high")
    return f"{found['value']:.4f}" + (f" ({low:.3f} to {high:.3f})" if low is not None else "")


stored, sent = measured("evaluation"), measured("evaluation-submission")
if [found["value"] for found in stored] != [found["value"] for found in sent]:
    sys.exit(f"the submission is judged otherwise than the results: {sent} against {stored}")
rows = [("here, findings as stored", *map(shown, stored))]
rows += [("here, non-maximum suppression", *map(shown, measured("evaluation-nms")))]
rows += [
    ("CULab III, the group's entry (JAMA 2017)", "0.703 (0.605 to 0.799)", "0.940 (0.888 to 0.980)"),
    ("HMS & MIT II, the winner (JAMA 2017)", "0.807 (0.732 to 0.889)", "0.994 (0.983 to 0.999)"),
    ("Fast ScanNet-16, as later papers quote it", "0.8533", "0.9875"),
]
print(f"\n{'Camelyon16, test set':<44}{'FROC':<26}slide AUC")
for name, froc, auc in rows:
    print(f"{name:<44}{froc:<26}{auc}")
print("\nThe submission gives the same numbers.\nResearch use only: not a medical device, not for diagnosis.")
PY
