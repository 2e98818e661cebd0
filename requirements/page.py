"""Copy the page's one library from npm into the package: `make page`. Standard library only.

What is committed below serve/http/page is what the server sends; installing or running panoserve fetches nothing.
Run it after changing the version in requirements/page/package.json (and `npm install --package-lock-only` there).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKED = ROOT / "requirements" / "page"
PAGE = ROOT / "serve" / "http" / "page"
# Of npm's package, as it is: in the page.
FILES = {
    "pannellum/build/pannellum.js": "pannellum.js",
    "pannellum/build/pannellum.css": "pannellum.css",
    "pannellum/COPYING": "pannellum.license.txt",
}


def main() -> None:
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("page: error: npm was not found; install Node.js (only this command needs it)")
    folder = ROOT / "build" / "page"
    shutil.copytree(LOCKED, folder, dirs_exist_ok=True)
    if subprocess.run([npm, "ci"], cwd=folder, check=False).returncode != 0:
        sys.exit("page: error: npm ci failed, see above")
    for source, name in FILES.items():
        shutil.copyfile(folder / "node_modules" / source, PAGE / name)
        print(f"serve/http/page/{name}")


if __name__ == "__main__":
    main()
