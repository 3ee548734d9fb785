"""Installs the wheel into a directory of its own and imports it from there; looks into the sdist."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

dist = Path(sys.argv[1])
(wheel,) = dist.glob("*.whl")
(sdist,) = dist.glob("*.tar.gz")
with tarfile.open(sdist) as archive:
    names = {name.partition("/")[2] for name in archive.getnames()}
missing = {"pyproject.toml", "README.md", "LICENSE", "src/walcast/py.typed", "src/walcast/v1/event_pb2.pyi"} - names
assert not missing, f"the sdist lacks {missing}"
with tempfile.TemporaryDirectory() as target:
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--target",
        target,
    ]
    subprocess.run([*install, wheel], check=True)
    assert (Path(target) / "walcast" / "py.typed").exists()
    code = "import sys; sys.path.insert(0, sys.argv[1]); import walcast; print(walcast.__file__, walcast.__version__)"
    done = subprocess.run([sys.executable, "-c", code, target], check=True, capture_output=True, text=True)
    assert done.stdout.startswith(target), done.stdout
print(f"{wheel.name} and {sdist.name} are whole")
