"""Writes the rendered set of the evidence: as `everest demo`, of another seed, with more test videos.

    python benchmarks/rendered_set.py FOLDER

The recipe `demo` was selected on the set of seed 0, so the evidence uses another one.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from everest_demo.motions import DEMO_SET

SEED = 1
TEST_PER_CLASS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    replace(DEMO_SET, test_per_class=TEST_PER_CLASS).write(folder, seed=SEED)


if __name__ == "__main__":
    main()
