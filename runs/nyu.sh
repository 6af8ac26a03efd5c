#!/usr/bin/env bash
# Run NYU's four-view classifier and GMIC with the published weights on your exams: convert, scan and evaluate.
#
#   WEIGHTS=/data/nyu-weights EXAMS=/data/exams OUT=/data/nyu runs/nyu.sh
#
# WEIGHTS contains any of the published files, with their original names, in any folders below it:
#   sample_image_model.p              classifier that reads only images
#   sample_imageheatmaps_model.p      classifier that reads heatmaps; needs sample_patch_model.p
#   ImageOnly__ModeImage_weights.p, ImageHeatmaps__ModeImage_weights.p    for exams that lack a view
#   sample_model_1.p … _5.p           GMIC; the scores of the models are averaged
# EXAMS is a folder of DICOM files, a manifest (cohort.csv), or a published exam list (.pkl, .json). The PNG images
# of an exam list are beside it or in the folder IMAGES. If the manifest or the list has labels, the results are
# evaluated.
#
# If the script is stopped, run the same command again to continue. Environment variables:
#   COMPAT     own: one random stream per exam (default); nyu: one random stream for all exams, as published
#   PAINTING   exact: heatmaps patch by patch, as published (default); fast
#   PIXELS     nyu-raw: stored pixel values (default); voi: values after the first window of the file
#   SETTINGS   further scan settings of the four-view models (not of GMIC), such as "reading.epochs=1 reading.augmentation=false"
# DEVICE, PRECISION, MAX_RAM, RESAMPLES and PLOTS are described in runs/lib.sh. Nothing is trained here, so WORKERS,
# PROCESSES and SEED have no effect.
# Research use only: not a medical device, not for diagnosis.
set -euo pipefail

: "${WEIGHTS:?the folder of the published weights, e.g. WEIGHTS=/data/nyu-weights}"
: "${EXAMS:?a folder of DICOM files, a manifest or an exam list, e.g. EXAMS=/data/exams}"
OUT=${OUT:-nyu}
IMAGES=${IMAGES:-}
COMPAT=${COMPAT:-own}
PAINTING=${PAINTING:-exact}
PIXELS=${PIXELS:-nyu-raw}
SETTINGS=${SETTINGS:-}
PRECISION=${PRECISION:-float32} # the published numbers are in float32

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
file() { find -L "$WEIGHTS" -type f -name "$1" 2>/dev/null | sort | head -n 1; }
require_folder WEIGHTS "$WEIGHTS"
[ -e "$EXAMS" ] || { echo "EXAMS: no such folder or file: $EXAMS" >&2; exit 2; }
mkdir -p "$OUT"

say "cohort: the exams and their views"
case "$EXAMS" in
  *.csv | *.parquet) COHORT=$EXAMS ;;
  *.pkl | *.json)
    COHORT=$OUT/cohort.csv
    [ -e "$COHORT" ] || "$PYTHON" - "$EXAMS" "${IMAGES:-$(dirname "$EXAMS")}" "$COHORT" <<'PY'
import sys
from pathlib import Path

from lobule.cohort import Case, Cohort, write_cohort
from lobule.mammograms.exam_list import read_exam_list

listed, images, out = sys.argv[1:]
files: dict[str, str] = {}
for path in sorted(Path(images).rglob("*.png")):
    if path.stem in files:
        sys.exit(f"two images are named {path.name}: {files[path.stem]} and {path}; say which with IMAGES=folder")
    files[path.stem] = str(path.absolute())
cases = []
for number, exam in enumerate(read_exam_list(listed)):
    missing = [name for names in exam.images.values() for name in names if Path(name).stem not in files]
    if missing:
        sys.exit(f"exam {number}: no image {missing[0]}.png below {images}")
    views = {
        view.lower().replace("-", "_"): tuple(files[Path(name).stem] for name in names)
        for view, names in exam.images.items()
    }
    labels = {name: bool(value) for name, value in exam.labels.items() if name.count("_") == 1}
    flip = {"horizontal_flip": exam.horizontal_flip} if exam.horizontal_flip else {}
    cases.append(Case(f"exam{number}", f"exam{number}", "exam", views=views, breast_labels=labels, attributes=flip))
write_cohort(Cohort(tuple(cases)), out)
print(f"{len(cases)} exams")
PY
    ;;
  *)
    COHORT=$OUT/cohort.csv
    [ -e "$COHORT" ] || lobule cohort "$EXAMS" --from dicom --out "$COHORT"
    ;;
esac

estimate "$COHORT" --bytes-per-pixel 0.01

MODELS=()
convert() { # arguments: name, method, patch network, weight files…
  local name=$1 method=$2 patch=$3
  shift 3
  local files=("$@")
  if [ ! -e "$OUT/$name/model.json" ]; then
    say "converting $name: ${files[*]}"
    lobule weights convert "${files[@]}" --method "$method" ${patch:+--patch "$patch"} --out "$OUT/$name"
  fi
  MODELS+=("$name")
}
IMAGE=$(file sample_image_model.p) HEATMAPS=$(file sample_imageheatmaps_model.p) PATCH=$(file sample_patch_model.p)
ALONE=$(file ImageOnly__ModeImage_weights.p) ALONE_HEATMAPS=$(file ImageHeatmaps__ModeImage_weights.p)
if [ -n "$IMAGE" ]; then convert image four-view "" "$IMAGE" ${ALONE:+"$ALONE"}; fi
if [ -n "$HEATMAPS" ]; then
  [ -n "$PATCH" ] || { echo "the classifier with heatmaps needs sample_patch_model.p" >&2; exit 2; }
  convert heatmaps four-view "$PATCH" "$HEATMAPS" ${ALONE_HEATMAPS:+"$ALONE_HEATMAPS"}
fi
GMIC=()
for number in 1 2 3 4 5; do
  model=$(file "sample_model_$number.p")
  if [ -n "$model" ]; then GMIC+=("$model"); fi
done
if [ ${#GMIC[@]} -gt 0 ]; then convert gmic gmic "" "${GMIC[@]}"; fi
[ ${#MODELS[@]} -gt 0 ] || { echo "WEIGHTS holds none of the published files" >&2; exit 2; }

for name in "${MODELS[@]}"; do
  say "scanning with $name"
  # shellcheck disable=SC2086 # split into one word per setting
  if [ "$name" = gmic ]; then set_options; else set_options "reading.compat=$COMPAT" "reading.pixels=$PIXELS" $SETTINGS; fi
  if [ "$name" = heatmaps ]; then SET_OPTIONS+=(--set "reading.painting=$PAINTING"); fi
  lobule scan "$OUT/$name" "$COHORT" --out "$OUT/$name-results" "${SCAN_MACHINE[@]}" \
    ${SET_OPTIONS[@]+"${SET_OPTIONS[@]}"} || accounted "$?" "$OUT/$name-results/results.csv"
done

say "predictions, as the published tools write them"
"$PYTHON" - "$OUT" "$COHORT" "${MODELS[@]}" <<'PY'
import sys
from pathlib import Path

from lobule.cohort import read_cohort
from lobule.methods.four_view.sample_exams import comparison
from lobule.results import open_results

out, cohort, *models = sys.argv[1:]
exams = read_cohort(cohort, check_files=False)
columns = ("left_benign", "right_benign", "left_malignant", "right_malignant")
for name in models:
    results = open_results(Path(out) / f"{name}-results")
    lines, all_scores = [",".join(("case", *columns))], {}
    for case in exams:
        scores = all_scores[case.id] = (results.case_folder(case.id).result or {}).get("scores", {})
        lines.append(",".join([case.id, *(f"{scores[c]:.4f}" if c in scores else "" for c in columns)]))
    (Path(out) / f"{name}.csv").write_text("\n".join(lines) + "\n")
    print(f"{name}:", *lines[:6], sep="\n")
    published = comparison(name, exams, all_scores)
    if published:
        print("the published scores of the sample exams, which COMPAT=nyu reproduces:", *published, sep="\n")
PY

if "$PYTHON" - "$COHORT" <<'PY'
import sys

from lobule.cohort import read_cohort

sys.exit(0 if any(case.breast_labels for case in read_cohort(sys.argv[1], check_files=False)) else 1)
PY
then
  for name in "${MODELS[@]}"; do
    say "evaluating $name"
    against=()
    if [ "$name" != "${MODELS[0]}" ]; then against=(--against "$OUT/${MODELS[0]}-results"); fi
    lobule evaluate "$OUT/$name-results" "$COHORT" --out "$OUT/$name-evaluation" \
      "${EVALUATE[@]}" ${against[@]+"${against[@]}"} || accounted "$?" "$OUT/$name-evaluation/table.csv"
  done
  "$PYTHON" - "$OUT" "${MODELS[@]}" <<'PY'
import json
import sys
from pathlib import Path

out, *models = sys.argv[1:]
print("AUC of malignancy per breast, on your exams; the published one is on NYU's screening population")
for name in models:
    tasks = json.loads((Path(out) / f"{name}-evaluation" / "evaluation.json").read_text())["tasks"]
    value = next((task["all"]["auroc"]["value"] for key, task in tasks.items() if "malignant" in key), None)
    print(f"{name:12s}{'undefined' if value is None else format(value, '.3f')}")
print("published   0.895 with heatmaps (arXiv 1903.08297), 0.93 for GMIC in a reader study (arXiv 2002.07613)")
PY
  say "to calibrate to your site: lobule weights calibrate $OUT/${MODELS[0]} $OUT/${MODELS[0]}-results $COHORT --out …"
else
  say "no labels, so nothing to evaluate: add left_benign … right_malignant to $COHORT"
fi
