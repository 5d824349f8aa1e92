#!/usr/bin/env bash
# Discovery, an aligned answer, an aligned stream, and scoring: examples/curl.sh [URL]
set -euo pipefail
url=${1:-http://localhost:8000}

ask() { curl --silent --show-error --fail-with-body --no-buffer "$url$1" "${@:2}"; echo; }
post() { ask "$1" --header 'content-type: application/json' --data "$2"; }

ask /v1/alignment
ask /v1/models

post /v1/completions '{
  "model": "demo",
  "prompt": "Review of the film \"The Glass Harbour\":",
  "max_tokens": 120,
  "temperature": 0.8,
  "alignment": {"method": "best_of_n", "n": 4, "report": "trace"}
}'

post /v1/chat/completions '{
  "model": "demo:blockwise",
  "messages": [{"role": "user", "content": "Write a short review of the film \"Second Summer\"."}],
  "max_tokens": 120,
  "temperature": 0.8,
  "stream": true
}'

post /v1/alignment/score '{
  "prompt": "Review of the film \"The Glass Harbour\":",
  "responses": [" I loved it from the first scene to the last.", " The story is dull and the acting is bad."],
  "rewards": {"sentiment": 1.0, "brevity": 0.1}
}'
