"""The command ``python -m bbdm.runtime``; see :mod:`bbdm.runtime.command`."""

import sys
from importlib import import_module

from bbdm.base import scripts

if __name__ == "__main__":  # the import, too, says what is not installed
    command = "bbdm.runtime.command"
    scripts.run(lambda: import_module(command).Runtime.main(scripts.import_modules(sys.argv[1:])))
