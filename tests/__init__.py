"""The environment of tests and of processes that they start, which is set before all else is imported."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run on all cores

if not os.access(Path.home(), os.W_OK):
    # for other packages' caches; it ends with this process
    HOME = tempfile.TemporaryDirectory(prefix="home-")
    os.environ["HOME"] = HOME.name
