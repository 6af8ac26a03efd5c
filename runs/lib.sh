# shellcheck shell=bash
# What the scripts in this folder share. Each script sets its default of OUT and sources this file.
#
# Environment variables that every script reads:
#   OUT          folder for everything that the script writes
#   PYTHON       the Python with Lobule
#   DEVICE       auto, cpu or cuda:0
#   PRECISION    auto, float32 or bfloat16, for trainings, features and scans
#   MAX_RAM      memory to use in addition to the model, such as 8GiB
#   WORKERS      number of workers that sample patches in trainings; by default one per core
#   PROCESSES=1  use processes instead of threads as these workers
#   SEED         seed of the training
#   RESAMPLES    number of resamples for intervals
#   PLOTS=1      draw plots; needs `pip install lobule[plots]`
set -euo pipefail

PYTHON=${PYTHON:-python}
DEVICE=${DEVICE:-auto}
PRECISION=${PRECISION:-auto}
MAX_RAM=${MAX_RAM:-}
WORKERS=${WORKERS:-}
PROCESSES=${PROCESSES:-0}
SEED=${SEED:-0}
RESAMPLES=${RESAMPLES:-2000}
PLOTS=${PLOTS:-0}

# Options of `lobule features` and `lobule scan`, and of `lobule train`.
SCAN_MACHINE=(--device "$DEVICE" --precision "$PRECISION")
if [ -n "$MAX_RAM" ]; then SCAN_MACHINE+=(--max-ram "$MAX_RAM"); fi
TRAIN_MACHINE=("${SCAN_MACHINE[@]}" --seed "$SEED")
if [ -n "$WORKERS" ]; then TRAIN_MACHINE+=(--workers "$WORKERS"); fi
if [ "$PROCESSES" = 1 ]; then TRAIN_MACHINE+=(--processes); fi

# Options of `lobule evaluate`.
EVALUATE=(--resamples "$RESAMPLES")
if [ "$PLOTS" = 1 ]; then EVALUATE+=(--plots); else EVALUATE+=(--no-plots); fi

lobule() { "$PYTHON" -m lobule "$@"; }

say() { printf '\n== %s\n' "$*"; }

# Exit status 1 means that some cases failed. The script continues, because the results state the cause.
accounted() { [ "$1" -eq 1 ] && [ -e "$2" ]; }

require_folder() { # arguments: name of the variable, folder
  [ -d "$2" ] || { echo "$1: no such folder: $2" >&2; exit 2; }
}

# Print an estimate of time and disk space; the arguments are those of estimate.py. A failure does not stop the run.
estimate() {
  "$PYTHON" "$(dirname "${BASH_SOURCE[0]}")/estimate.py" "$@" --device "$DEVICE" || echo "no estimate"
}

# Fill the array SET_OPTIONS with --set for each argument of the form key=value.
set_options() {
  local setting
  SET_OPTIONS=()
  for setting in "$@"; do SET_OPTIONS+=(--set "$setting"); done
}

# Write OUT/cohort.csv from the published folder layout of Camelyon16, and OUT/test.csv with its test slides.
camelyon16_cohort() {
  require_folder CAMELYON16 "$CAMELYON16"
  mkdir -p "$OUT"
  say "cohort: slides with their annotations and masks, and the excluded slides with the reason"
  [ -e "$OUT/cohort.csv" ] || lobule cohort "$CAMELYON16" --from camelyon16 --out "$OUT/cohort.csv"
  "$PYTHON" - "$OUT" <<'PY'
import sys
from pathlib import Path

from lobule.cohort import read_cohort, write_cohort

out = Path(sys.argv[1])
cohort = read_cohort(out / "cohort.csv")
test = cohort.split("test")
if not len(test):
    sys.exit("the data set contains no test slide: their files are named test_001.tif and so on")
write_cohort(test, out / "test.csv")
print(f"{len(cohort.split('train'))} slides for training, {len(test)} for testing")
PY
}
