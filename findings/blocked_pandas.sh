#!/usr/bin/env bash
# pyarrow 26.0.1, bokeh 3.9.2: a program that wants to do without an installed pandas cannot block it by
# `sys.modules["pandas"] = None`, which is how Python blocks an import: compiled modules of Cython take the None for
# the module, so that pyarrow.array of a list raises AttributeError ('NoneType' object has no attribute
# '__version__') where it does well without pandas. Nor by a finder that raises: Bokeh asks by
# importlib.util.find_spec as soon as a property of a figure is set, and the error ends the figure.
#
# What works for both is a finder whose loader raises ModuleNotFoundError: pandas is found, and not loaded.
# Output: a line for each way, what became of an array and of a figure.
# Exits 0 while that is so, 1 once it changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pyarrow==26.0.1 pandas==3.1.1 numpy==2.4.6 bokeh==3.9.2
"$folder/venv/bin/python" - "$folder/venv/bin/python" <<'PYTHON'
import subprocess
import sys

WAYS = {
    "None in sys.modules": "sys.modules['pandas'] = None",
    "a finder that raises": """
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "pandas":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Finder())""",
    "a loader that raises": """
class Loader:
    def find_spec(self, name, path, target=None):
        return spec_from_loader(name, self) if name == "pandas" else None
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        raise ModuleNotFoundError(module.__name__)
sys.meta_path.insert(0, Loader())""",
}
USES = {
    "array": "import pyarrow; pyarrow.array([1.0, None])",
    "figure": "from bokeh.models import Plot; Plot().title = None",
}
EXPECTED = [
    ("None in sys.modules", "AttributeError", "works"),
    ("a finder that raises", "works", "ModuleNotFoundError"),
    ("a loader that raises", "works", "works"),
]
found = []
for way, block in WAYS.items():
    outcomes = []
    for use in USES.values():
        code = f"import sys\nfrom importlib.util import spec_from_loader\n{block}\n{use}"
        done = subprocess.run([sys.argv[1], "-c", code], capture_output=True, text=True)
        last = done.stderr.strip().splitlines()[-1:] or ["works"]
        outcomes.append(last[0].partition(":")[0])
    found.append((way, *outcomes))
    print(f"{way}: an array {outcomes[0]}, a figure {outcomes[1]}")
sys.exit(found != EXPECTED)
PYTHON
