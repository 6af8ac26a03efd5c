"""Run a mutation campaign from the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.mutations.campaign import report, run_campaign
from tests.mutations.mutants import choose_mutants


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="number of mutants")
    parser.add_argument("--seed", type=int, default=1, help="which random sample of all mutants")
    parser.add_argument("--out", type=Path, required=True, help="file of outcomes, one JSON object per line")
    parser.add_argument(
        "--cpu-seconds", type=int, help="limit for the tests of one mutant; try the rest later"
    )
    options = parser.parse_args()
    outcomes = run_campaign(choose_mutants(options.count, options.seed), options.out, options.cpu_seconds)
    print(report(outcomes))


if __name__ == "__main__":
    main()
