#!/usr/bin/env bash
# Build and try the steps image on a base made here from Debian packages, where no public registry can be reached:
# the same Dockerfile, another Python (/usr/bin/python3 of bookworm). Ends with 69 where this machine cannot do that.
#
#   docker/stand_in.sh [steps|train]...        default: steps; train gets no CUDA this way
#
#   CACHE   keeps the base between runs (a temporary folder, deleted)
set -euo pipefail
cd "$(dirname "$0")/.."

cannot() { echo "Images were only linted: $1." >&2 && exit 69; }
for tool in podman debootstrap runc; do
  command -v $tool >/dev/null || cannot "$tool is not installed (apt-get install podman debootstrap runc)"
done
[ "$(id -u)" = 0 ] || cannot "debootstrap needs root"

work=$(mktemp -d)
trap 'podman unmount --all >/dev/null 2>&1 || true; rm -rf "$work"' EXIT
cat >"$work/containers.conf" <<'CONF'
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
CONF
cat >"$work/storage.conf" <<CONF
[storage]
driver = "overlay"
graphroot = "$work/graph"
runroot = "$work/run"
CONF
export CONTAINERS_CONF=$work/containers.conf CONTAINERS_STORAGE_CONF=$work/storage.conf

base=localhost/stand-in-python:bookworm
rootfs=${CACHE:-$work}/bookworm.tar
if [ ! -s "$rootfs" ]; then
  echo "== a base from Debian packages"
  debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates bookworm "$work/root" >"$work/log" 2>&1 \
    || cannot "debootstrap failed: $(tail -n 1 "$work/log")"
  mkdir -p "$(dirname "$rootfs")"
  tar -C "$work/root" -cf "$rootfs" .
  rm -rf "$work/root"
fi
podman import --quiet "$rootfs" "$base" >/dev/null
podman run --rm --network=none "$base" true >"$work/log" 2>&1 || cannot "podman runs nothing here: $(tail -n 1 "$work/log")"

# What pip needs of this machine: its certificates and its configuration, if it has any.
mounts=(--network=host)
for path in /etc/ssl/certs /etc/pip.conf "$HOME/.config/pip"; do
  inside=${path/#$HOME//root}
  [ ! -e "$path" ] || mounts+=(--volume "$path:$inside:ro")
done
# Folders of packages that the configuration names.
for path in $(pip3 config list 2>/dev/null | grep -oE "(file://)?/[^' ]+" | sed 's#^file://##' | sort -u); do
  top=/$(echo "$path" | cut -d/ -f2-3)
  [ ! -d "$top" ] || [ "$top" = /etc/ssl ] || mounts+=(--volume "$top:$top:ro")
done
podman run --rm "${mounts[@]}" "$base" python3 -m pip download --quiet --no-deps --dest /tmp wheel >"$work/log" 2>&1 \
  || cannot "a container reaches no packages: $(tail -n 1 "$work/log")"
[ $# -gt 0 ] || set -- steps
flags=("${mounts[@]}" --format=docker --build-arg "PYTHON_IMAGE=$base" --build-arg "CUDA_IMAGE=$base")
BUILDER=podman BUILD_FLAGS="${flags[*]} ${BUILD_FLAGS:-}" docker/build.sh "$@"
