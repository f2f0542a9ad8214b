#!/usr/bin/env bash
# Build the images and try them as a cluster would run them: user 10001, read-only root, no network.
#
#   docker/build.sh [steps|train|train-vllm]...        default: steps train
#
#   BUILDER       buildah, podman or docker (the first one found)
#   REGISTRY, TAG name of the images: $REGISTRY/steps-python:$TAG                 (understudy, the project's version)
#   BUILD_FLAGS   more flags for the build, e.g. --network=host, --build-arg PYTHON_IMAGE=…, -v of a CA bundle
#   RUN_FLAGS     more flags for the smoke runs
set -euo pipefail
cd "$(dirname "$0")/.."

builder=${BUILDER:-}
for candidate in buildah podman docker; do
  if [ -z "$builder" ] && command -v "$candidate" >/dev/null; then builder=$candidate; fi
done
if [ -z "$builder" ]; then
  echo "No image builder was found: install buildah or podman (both are Debian packages), or set BUILDER." >&2
  exit 5
fi
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
registry=${REGISTRY:-understudy}
tag=${TAG:-$version}
# What the image tells of its code (platform/registry.py): a commit only of the repository that holds this folder, and
# never as clean while the context differs from it.
revision=unknown
if git ls-files --error-unmatch docker/build.sh >/dev/null 2>&1 &&
  commit=$(git rev-parse HEAD 2>/dev/null) && changes=$(git status --porcelain -- . 2>/dev/null); then
  revision=$commit${changes:+-dirty}
fi
read -ra build_flags <<<"${BUILD_FLAGS:-}"
read -ra run_flags <<<"${RUN_FLAGS:-}"

# buildah has no `run IMAGE`; podman reads the same storage.
runner=$builder
[ "$builder" != buildah ] || runner=podman

build() { # file target image
  echo "== $3 ($1, target $2, $builder)"
  "$builder" build "${build_flags[@]}" --build-arg "VERSION=$version" --build-arg "REVISION=$revision" \
    --target "$2" --tag "$3" --file "docker/$1" .
}

try() { # image command…
  local image=$1
  shift
  echo "-- $*"
  "$runner" run --rm "${run_flags[@]}" --network=none --read-only --user 10001:10001 --cap-drop=ALL \
    --security-opt no-new-privileges --volume /var/understudy "$image" "$@"
}

[ $# -gt 0 ] || set -- steps train
for target in "$@"; do
  case $target in
    steps) file=steps.Dockerfile image=$registry/steps-python:$tag ;;
    train) file=train.Dockerfile image=$registry/train-python:$tag ;;
    train-vllm) file=train.Dockerfile image=$registry/train-vllm-python:$tag ;;
    *) echo "There is no image $target; choose steps, train or train-vllm." >&2 && exit 2 ;;
  esac
  build "$file" "$target" "$image"
  try "$image" --help >/dev/null
  try "$image" data ingest examples/tiny/demonstrations.jsonl --json
  echo "built and tried: $image"
done
