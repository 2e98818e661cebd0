"""A panorama without an end, tile by tile: stop it by Ctrl-C or --limit, and let it change on the way.

python examples/requests_endless.py "hills at dawn" --then 1000 "hills at night" --limit 3000 -o tiles/
"""

from __future__ import annotations

import argparse
import base64
import json
from pathlib import Path

import requests

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("prompt")
parser.add_argument("--then", nargs=2, metavar=("PX", "PROMPT"), help="draw something else from this pixel on")
parser.add_argument("--limit", type=int, metavar="PX", help="stop at this width")
parser.add_argument("--crops", type=int, default=4, help="crops a segment: fewer come sooner, more are faster")
parser.add_argument("-o", "--output", type=Path, default=Path("tiles"), help="folder")
parser.add_argument("--server", default="http://127.0.0.1:8000")
arguments = parser.parse_args()

arguments.output.mkdir(parents=True, exist_ok=True)
address = f"{arguments.server}/v1/images/endless"
body = {"prompt": arguments.prompt, "limit": arguments.limit, "crops": arguments.crops}
with requests.post(address, json=body, stream=True, timeout=600) as response:
    if not response.ok:
        raise SystemExit(f"{response.status_code}: {response.json()['error']['message']}")
    for line in response.iter_lines(decode_unicode=True):
        if not line.startswith("data: "):
            continue  # the event's name, and progress
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            raise SystemExit(event["error"]["message"])
        if event["type"] == "image_endless.started" and arguments.then:
            place, prompt = arguments.then
            steer = requests.post(
                f"{address}/{event['id']}/steer", json={"prompt": prompt, "at": int(place)}, timeout=60
            )
            print(f"from pixel {steer.json()['at']} on: {prompt}")
        if event["type"] == "image_endless.tile":
            path = arguments.output / f"{event['index']:05}.png"
            path.write_bytes(base64.b64decode(event["b64_json"]))
            print(f"{path}: from pixel {event['start']} on, {event['width']} wide")
