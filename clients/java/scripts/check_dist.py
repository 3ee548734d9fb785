"""Looks into the jars that `mvn package` made: whole, and the protocol in them is the repository's."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
jars = {jar.name.split("0.1.0")[1]: zipfile.ZipFile(jar) for jar in (HERE / "target").glob("walcast-client-0.1.0*.jar")}
assert set(jars) == {".jar", "-sources.jar", "-javadoc.jar"}, sorted(jars)
for name in ("event.proto", "walcast.proto"):
    mine, repository = (
        jars[".jar"].read(f"walcast/v1/{name}"),
        (HERE.parents[1] / "proto/walcast/v1" / name).read_bytes(),
    )
    assert mine == repository, f"{name} in the jar is not the repository's"
wanted = {
    ".jar": ["dev/walcast/Client.class", "walcast/v1/Walcast.class", "META-INF/LICENSE"],
    "-sources.jar": ["dev/walcast/Client.java", "walcast/v1/Walcast.java"],
    "-javadoc.jar": ["dev/walcast/Client.html", "index.html"],
}
for kind, files in wanted.items():
    missing = set(files) - set(jars[kind].namelist())
    assert not missing, f"{kind} lacks {missing}"
assert jars[".jar"].read("dev/walcast/version.properties").strip() == b"version=0.1.0"
print("the jar with its sources and javadoc is whole", file=sys.stderr)
