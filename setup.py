"""Map the top-level folders onto sub-packages of one import package, `panoserve`.

The folder names (`kernels`, `configs`, `benchmarks`, ...) belong to other distributions on PyPI, so they are never
importable by themselves: `serve/` is `panoserve.serve`, and so on. Metadata lives in pyproject.toml.
"""

from glob import glob

from setuptools import Extension, find_packages, setup

FOLDERS = ("configs", "kernels", "vq", "models", "redirect", "serve", "train", "benchmarks")

package_dir = {"panoserve": "panoserve"} | {f"panoserve.{folder}": folder for folder in FOLDERS}
packages = list(package_dir) + [f"panoserve.{f}.{sub}" for f in FOLDERS for sub in find_packages(f)]

# Optional: without a C compiler, or with one that does not know AMX's or AVX-512's names, the CPU keeps vLLM's and
# torch's own operators.
native = Extension(
    "panoserve.kernels._native",
    sorted(glob("kernels/native/*.c")),
    depends=sorted(glob("kernels/native/*.h")),
    extra_compile_args=["-O3", "-fopenmp"],
    extra_link_args=["-fopenmp"],
    py_limited_api=True,
    optional=True,
)

setup(
    ext_modules=[native],
    packages=packages,
    package_dir=package_dir,
    package_data={
        "panoserve": ["py.typed"],
        "panoserve.configs": ["presets/*.yaml"],
        "panoserve.serve.http": ["page/*"],
    },
)
