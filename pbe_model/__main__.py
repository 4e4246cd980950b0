"""`python -m pbe_model` is the `pbe` command."""

import sys

from .cli import main

sys.exit(main())
