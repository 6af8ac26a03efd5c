#!/usr/bin/env bash
# Run ScanNet on Camelyon16, from the published data set to the official measures, and print them beside published
# figures.
#
#   CAMELYON16=/data/CAMELYON16 OUT=/data/scannet runs/camelyon16_scannet.sh
#
# CAMELYON16 contains training/ and testing/ in any of the published layouts; about 700 GB.
#
# If the script is stopped, run the same command again to continue. Environment variables:
#   TRUNK          a dense net (see `lobule methods scannet`); by default the paper's VGG-16
#   WEIGHTS        weights that the trunk starts from: imagenet (as in the paper; downloaded once), random, or a file
#   STEPS BATCH    steps and batch size of the training
#   ROUNDS ROUND_STEPS    number and length of the rounds of hard-negative mining
#   STRIDE         pixels per map cell in scans of the test slides: 32, 16 (Fast ScanNet-16) or 8
#   SLIDE_SCORE    forest (31 features of the map, cross-fitted) or max
#   SETTINGS       further training settings, as "key=value key=value"
#   GPUS           number of training processes, one per GPU
# DEVICE, PRECISION, MAX_RAM, WORKERS, PROCESSES, SEED, RESAMPLES and PLOTS are described in runs/lib.sh.
# Research use only: not a medical device, not for diagnosis.
set -euo pipefail

: "${CAMELYON16:?the folder of the data set, e.g. CAMELYON16=/data/CAMELYON16}"
OUT=${OUT:-camelyon16-scannet}
TRUNK=${TRUNK:-scannet_vgg16}
WEIGHTS=${WEIGHTS:-imagenet}
STEPS=${STEPS:-100000}
BATCH=${BATCH:-64}
ROUNDS=${ROUNDS:-2}
ROUND_STEPS=${ROUND_STEPS:-25000}
STRIDE=${STRIDE:-16}
SLIDE_SCORE=${SLIDE_SCORE:-forest}
SETTINGS=${SETTINGS:-}
GPUS=${GPUS:-1}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
camelyon16_cohort
# VGG-16 has 2 × 15.4e9 operations for 224 × 224 pixels. A dense map at stride 16 computes its deep layers 4 times.
estimate "$OUT/test.csv" --mpp 0.25 --passes 2 --flop-per-pixel 614000 --bytes-per-pixel 0.008 \
  --train-pixels "$(((STEPS + ROUNDS * ROUND_STEPS) * BATCH * 244 * 244))"

say "training: patches from the slides, then rounds of hard negatives, then the slide score"
if [ ! -e "$OUT/bundle/model.json" ]; then
  settings=(trunk="$TRUNK" weights="$WEIGHTS" steps="$STEPS" batch="$BATCH" rounds="$ROUNDS"
    round_steps="$ROUND_STEPS" stride="$STRIDE" slide_score="$SLIDE_SCORE")
  # shellcheck disable=SC2086 # split into one word per setting
  set_options "${settings[@]}" $SETTINGS
  launch=("$PYTHON" -m lobule)
  if [ "$GPUS" -gt 1 ]; then launch=("$PYTHON" -m torch.distributed.run --nproc-per-node "$GPUS" -m lobule); fi
  "${launch[@]}" train scannet "$OUT/cohort.csv" --out "$OUT/bundle" "${TRAIN_MACHINE[@]}" \
    "${SET_OPTIONS[@]}"
fi
for gallery in "$OUT"/bundle/training/round-*/gallery.html; do
  [ -e "$gallery" ] && echo "hard negatives to review: $gallery"
done

say "scan of the test slides"
lobule scan "$OUT/bundle" "$OUT/test.csv" --out "$OUT/results" "${SCAN_MACHINE[@]}" ||
  accounted "$?" "$OUT/results/results.csv"

say "official measures: stored findings, then findings by non-maximum suppression of the maps"
EVALUATE+=(--lesion-scale official)
lobule evaluate "$OUT/results" "$OUT/test.csv" "${EVALUATE[@]}" --out "$OUT/evaluation" ||
  accounted "$?" "$OUT/evaluation/table.csv"
lobule evaluate "$OUT/results" "$OUT/test.csv" "${EVALUATE[@]}" --findings nms --out "$OUT/evaluation-nms" \
  --json >/dev/null || accounted "$?" "$OUT/evaluation-nms/table.csv"

say "submission: one CSV per slide and one for all slides, then an evaluation of these files"
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
    result = source.case_result(case)
    if result.detections is None:
        print(f"{case.id}: {result.status}, no file")
        continue
    lines = [f"{score!r},{int(x)},{int(y)}\n" for score, x, y in result.detections.tolist()]
    write_text(folder / f"{case.id}.csv", "".join(lines))
    rows.append(f"{case.id},{next(iter(result.scores.values()))!r}\n")
write_text(out / "submission" / "slides.csv", "".join(rows))
PY
lobule evaluate --submission "$OUT/submission/detections" --submission "$OUT/submission/slides.csv" \
  "$OUT/test.csv" "${EVALUATE[@]}" --out "$OUT/evaluation-submission" --json >/dev/null ||
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


def shown(measure):
    if measure["value"] is None:
        return "undefined"
    low, high = measure.get("low"), measure.get("high")
    return f"{measure['value']:.4f}" + (f" ({low:.3f} to {high:.3f})" if low is not None else "")


stored, sent = measured("evaluation"), measured("evaluation-submission")
if [measure["value"] for measure in stored] != [measure["value"] for measure in sent]:
    sys.exit(f"the evaluation of the submission differs from that of the results: {sent} instead of {stored}")
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
