"""Arguments to a run: python -m training ... trains, python -m training precompute ... writes features into shards."""

from __future__ import annotations

import logging
import sys

from ipadapter_core.errors import IPAdapterError

from .config import Precompute, Settings, parse

log = logging.getLogger("training")


def main(arguments: list[str]) -> int:
    """The exit code: 0 done, 1 a sentence that says what was wrong was logged, 130 stopped with Ctrl+C."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if arguments[:1] == ["precompute"]:
            options = parse(Precompute, arguments[1:], "precompute")
            from .precompute import precompute

            precompute(options)
            return 0
        settings = parse(Settings, arguments, "")
        from .loop import train

        return 130 if train(settings).stopped else 0
    except IPAdapterError as error:
        log.error("%s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
