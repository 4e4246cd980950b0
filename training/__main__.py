"""`python -m training` is the `pbe-train` command."""

import sys

from training.cli import main

sys.exit(main())
