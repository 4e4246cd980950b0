"""Modules of checks inside the host's interpreter, which takes seconds to start, one after another.

Usage: `python checks.py COMFYUI PACK MODULE...`. Prints a JSON object: for each module what its
`results()` gives, or the traceback of its failure.
"""

import importlib
import json
import sys
import traceback

modules, sys.argv[3:] = sys.argv[3:], []
found = {}
for name in modules:
    try:
        found[name] = importlib.import_module(name).results()
    except Exception:  # reported by the tests that want them
        found[name] = traceback.format_exc()
print(json.dumps(found))
