"""The command ``python -m bbdm.runtime``; see :mod:`bbdm.runtime.command`."""

import sys

from bbdm.base import scripts
from bbdm.base.scripts import import_modules
from bbdm.runtime.command import Runtime

main = Runtime.main

if __name__ == "__main__":
    scripts.run(lambda: main(import_modules(sys.argv[1:])))
