"""`python -m pbe_model` is the `pbe` command."""

import sys

from .cli.main import main

sys.exit(main())
