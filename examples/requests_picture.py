"""Plain HTTP with requests: ask for a URL, fetch it, and come back later when the queue is full.

python examples/requests_picture.py "a red sunset over the sea" -o sunset.webp
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import requests

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("prompt")
parser.add_argument("-o", "--output", type=Path, default=Path("picture.webp"))
parser.add_argument("--server", default="http://127.0.0.1:8000")
arguments = parser.parse_args()

body = {"prompt": arguments.prompt, "response_format": "url", "output_format": "webp", "output_compression": 90}
for _ in range(10):
    response = requests.post(f"{arguments.server}/v1/images/generations", json=body, timeout=600)
    if response.status_code != 429:
        break
    time.sleep(int(response.headers["Retry-After"]))
if not response.ok:
    raise SystemExit(f"{response.status_code}: {response.json()['error']['message']}")
[picture] = response.json()["data"]
arguments.output.write_bytes(requests.get(picture["url"], timeout=60).content)
print(f"{arguments.output}: seed {picture['seed']}")
