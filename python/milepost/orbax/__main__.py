"""Runs a script whose `orbax.checkpoint` is `milepost.orbax`.

```text
python -m milepost.orbax train.py --steps 100
python -m milepost.orbax -m package.train --steps 100
```
"""

from __future__ import annotations

import os
import runpy
import sys

from . import install

USAGE = """usage: python -m milepost.orbax SCRIPT [ARGUMENT …]
       python -m milepost.orbax -m MODULE [ARGUMENT …]"""


def main(arguments: list[str]) -> int:
    """Runs the script or module of the arguments; returns 2 where there is none."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    install()
    if arguments[0] == "-m":
        if len(arguments) < 2:
            print(USAGE, file=sys.stderr)
            return 2
        sys.argv = arguments[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return 0
    script = arguments[0]
    if not os.path.exists(script):
        print(f"milepost.orbax: {script} does not exist\n{USAGE}", file=sys.stderr)
        return 2
    sys.argv = arguments
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    runpy.run_path(script, run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
