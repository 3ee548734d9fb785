"""Looks into the wheel and the sdist; run_snippet.sh installs them."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

dist = Path(sys.argv[1])
(wheel,) = dist.glob("*.whl")
(sdist,) = dist.glob("*.tar.gz")
with tarfile.open(sdist) as archive:
    names = {name.partition("/")[2] for name in archive.getnames()}
missing = {"pyproject.toml", "README.md", "LICENSE", "src/walcast/py.typed", "src/walcast/v1/event_pb2.pyi"} - names
assert not missing, f"the sdist lacks {missing}"
missing = {"walcast/py.typed", "walcast/v1/event_pb2.pyi", "walcast/arrow.py"} - set(zipfile.ZipFile(wheel).namelist())
assert not missing, f"the wheel lacks {missing}"
print(f"{wheel.name} and {sdist.name} are whole")
