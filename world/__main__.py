"""python3 dev.py world: makes the pictures, reader, models and adapters of the tiny world from nothing; goes on where it was stopped.

Everything comes from fixed seeds.
"""

from __future__ import annotations

import argparse
import logging

from .beside import FORMAT
from .stages import World


def main() -> None:
    parser = argparse.ArgumentParser(prog="dev.py world", description="Make the tiny world's models from nothing.")
    parser.add_argument("--share", type=float, default=1.0, help="the share of the training steps (for a look; 1 makes what is committed)")
    logging.basicConfig(level=logging.INFO, format=FORMAT)
    World(parser.parse_args().share).run()


if __name__ == "__main__":
    main()
