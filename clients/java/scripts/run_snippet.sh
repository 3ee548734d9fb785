#!/usr/bin/env bash
# Programs in a Maven project that takes the jar from a repository as users do: `build DIRECTORY`, then `run DIRECTORY NUMBER`; see
# ../conformance/readme.py. Needs `mvn package` before.
set -euo pipefail
client=$(cd "$(dirname "$0")/.." && pwd)
if [ "$1" = run ]; then exec java -cp "$(cat "$2/classpath")" "$2/$3.java"; fi
cd "$2"
# A repository of its own, so that nothing of another version is found; what was downloaded before is linked into it.
mkdir repository
cp -rs "$HOME/.m2/repository/." repository 2>/dev/null || true
rm -rf repository/dev/walcast
mvn=(mvn --quiet --batch-mode "-Dmaven.repo.local=$PWD/repository")
(cd "$client" && "${mvn[@]}" org.apache.maven.plugins:maven-install-plugin:3.1.4:install-file \
    -Dfile=target/walcast-client-0.1.0.jar -DpomFile=pom.xml)
cat > pom.xml <<'POM'
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>snippet</groupId>
  <artifactId>snippet</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>dev.walcast</groupId>
      <artifactId>walcast-client</artifactId>
      <version>0.1.0</version>
    </dependency>
  </dependencies>
</project>
POM
"${mvn[@]}" org.apache.maven.plugins:maven-dependency-plugin:3.8.1:build-classpath -Dmdep.outputFile=classpath
