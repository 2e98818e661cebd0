#!/usr/bin/env bash
# Plain HTTP with curl:  examples/curl.sh [PROMPT] [FILE] [SERVER]
set -euo pipefail
prompt=${1:-a red sunset over the sea}
file=${2:-picture.png}
server=${3:-http://127.0.0.1:8000}

body=$(python3 -c 'import json, sys; print(json.dumps({"prompt": sys.argv[1]}))' "$prompt")
curl --silent --fail-with-body "$server/v1/images/generations" -H 'Content-Type: application/json' -d "$body" |
    python3 -c 'import base64, json, sys; sys.stdout.buffer.write(base64.b64decode(json.load(sys.stdin)["data"][0]["b64_json"]))' \
        >"$file"
echo "$file"
