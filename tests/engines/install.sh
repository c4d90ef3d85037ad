#!/usr/bin/env bash
# Install into .engines/ what the engine tests start: what is there stays, and what cannot be had is named and left out.
# Needs Go for Prism, Beam's boot program and fake-gcs-server; Java and Maven for Flink and its job server. No registry
# is asked for long: all together get twelve minutes.
set -u
cd "$(dirname "$0")/../.."
python=$PWD/.venv/bin/python
root=$PWD/.engines
beam=$("$python" -c 'from importlib.metadata import version; print(version("apache-beam"))')
job_server=2.62.0 # the newest whose jars are all published; newer clients speak to it
flink=1.19.3
until=$((SECONDS + 720))
left() { echo $((until > SECONDS ? until - SECONDS : 1)); }
mkdir -p "$root/bin" "$root/log"

# go_program NAME MODULE BUILT: install a Go program as .engines/bin/NAME; `go install` calls it BUILT.
go_program() {
  [ -x "$root/bin/$1" ] && return
  command -v go >/dev/null || { echo "engines: no $1, for there is no Go on PATH"; return; }
  echo "engines: installing $1"
  local built="$root/build-$1"
  if GOBIN="$built" timeout "$(left)" go install "$2" >"$root/log/$1" 2>&1; then
    mv "$built/$3" "$root/bin/$1"
  else
    echo "engines: no $1: $(tail -n 1 "$root/log/$1")"
  fi
  rm -rf "$built"
}

# folder NAME WHAT COMMAND...: fill .engines/NAME by a command that finds the folder's draft in DRAFT.
folder() {
  local folder="$root/$1" what=$2
  [ -d "$folder" ] && return
  echo "engines: installing $what"
  export DRAFT="$folder.draft"
  rm -rf "$DRAFT" && mkdir -p "$DRAFT"
  if timeout "$(left)" "${@:3}" >"$root/log/$1" 2>&1; then
    mv "$DRAFT" "$folder"
  else
    echo "engines: no $what: $(grep -m 1 -e ERROR "$root/log/$1" || tail -n 1 "$root/log/$1")"
    rm -rf "$DRAFT"
  fi
}

job_server_jars() {
  dependency() { echo "<dependency><groupId>$1</groupId><artifactId>$2</artifactId><version>$3</version></dependency>"; }
  cat >"$DRAFT/pom.xml" <<POM
<project><modelVersion>4.0.0</modelVersion>
<groupId>worldloom</groupId><artifactId>job-server</artifactId><version>1</version>
<dependencies>
$(dependency org.apache.beam beam-runners-flink-${flink%.*} $job_server)
$(dependency org.apache.beam beam-sdks-java-extensions-google-cloud-platform-core $job_server)
$(dependency org.slf4j slf4j-simple 1.7.30)
</dependencies></project>
POM
  mvn -B -q -f "$DRAFT/pom.xml" dependency:copy-dependencies -DoutputDirectory="$DRAFT/lib" -DincludeScope=runtime
}

cluster_jars() { # Flink's Python package brings the whole of Flink, less its scripts
  "$python" -m pip download --quiet --no-deps --no-binary :all: --no-build-isolation -d "$DRAFT" "apache-flink-libraries==$flink" &&
    tar -xzf "$DRAFT"/*.tar.gz -C "$DRAFT" --strip-components=2 --wildcards '*/deps/lib' && rm "$DRAFT"/*.tar.gz
}

google_part() { # of Beam, which is no part of the environment: its tests alone need it
  .venv/bin/uv pip install --quiet --python "$python" --target "$DRAFT" --no-deps \
    cachetools==6.2.6 google-apitools==0.5.31 google-auth-httplib2==0.2.1 google-cloud-dataflow-client==0.13.0
}
export -f job_server_jars cluster_jars google_part
export python flink job_server

go_program prism "github.com/apache/beam/sdks/v2/go/cmd/prism@v$beam" prism
go_program boot "github.com/apache/beam/sdks/v2/python/container@v$beam" container
go_program fake-gcs-server github.com/fsouza/fake-gcs-server@v1.56.1 fake-gcs-server
folder gcp "Beam's part for Google Cloud" bash -c google_part
if command -v java >/dev/null && command -v mvn >/dev/null; then
  folder flink "Flink's job server" bash -c job_server_jars
  folder flink-cluster "Flink's own programs" bash -c cluster_jars
else
  echo 'engines: no Flink, for there is no Java with Maven on PATH'
fi
exit 0
