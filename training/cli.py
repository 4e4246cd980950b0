"""The `pbe-train` command."""

from __future__ import annotations

import sys

from training.config import load_config


def main() -> None:
    from training.loop import train

    train(load_config(sys.argv[2], sys.argv[3:]))


if __name__ == "__main__":
    main()
