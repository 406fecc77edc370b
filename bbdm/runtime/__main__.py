"""The command ``python -m bbdm.runtime``; see :mod:`bbdm.runtime.command`."""

import sys

from bbdm.base import scripts
from bbdm.runtime.command import Runtime

if __name__ == "__main__":
    scripts.run(lambda: Runtime.main(scripts.import_modules(sys.argv[1:])))
