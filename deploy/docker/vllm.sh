#!/bin/sh
# Runs `vllm serve MODEL FLAG...`, the command of charts made for vLLM, as `cdserve serve`.
set -eu
if [ "${1:-}" != serve ]; then
    exec python3 -m vllm.entrypoints.cli.main "$@"
fi
shift
case "${1:-}" in
    "" | -*) exec cdserve serve "$@" ;;
esac
model=$1
shift
exec cdserve serve --set "model=$model" "$@"
