"""Make the demo's artefacts: ``python -m cdserve.demo.tiny.build``."""

import argparse
from pathlib import Path

from cdserve.demo.tiny import DEMO_DIR

from .stages import FULL, QUICK, STAGES, run


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(prog="python -m cdserve.demo.tiny.build", description=__doc__)
    parser.add_argument("--out", type=Path, default=DEMO_DIR, help="default: the package itself")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE")
    parser.add_argument("--quick", action="store_true", help="a tiny build, to test this script")
    args = parser.parse_args()
    run(args.out, QUICK if args.quick else FULL, tuple(args.only))


if __name__ == "__main__":
    main()
