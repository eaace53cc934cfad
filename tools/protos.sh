#!/usr/bin/env bash
# Regenerates the stubs in potluck/v1 from proto/. Pass --check to fail when they are stale.
# The generator lives in an environment of its own: its pins differ from the runtime's.
set -euo pipefail
cd "$(dirname "$0")/.."
env_dir="${POTLUCK_PROTO_ENV:-.protoenv}"
if [ ! -x "$env_dir/bin/python" ]; then
  python3 -m venv "$env_dir"
  "$env_dir/bin/pip" install -q 'grpcio-tools==1.71.2' 'mypy-protobuf==3.7.0' 'setuptools<81'
fi
out="$(mktemp -d)"
trap 'rm -rf "$out"' EXIT
PATH="$env_dir/bin:$PATH" "$env_dir/bin/python" -m grpc_tools.protoc -I proto \
  --python_out="$out" --grpc_python_out="$out" --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" \
  proto/potluck/v1/*.proto
touch "$out/potluck/v1/__init__.py"
if [ "${1:-}" = "--check" ]; then
  diff -r --exclude=__pycache__ "$out/potluck/v1" potluck/v1 && echo "stubs are fresh"
else
  cp "$out"/potluck/v1/* potluck/v1/
  echo "stubs written to potluck/v1"
fi
