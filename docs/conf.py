"""How Sphinx makes a site of the pages beside this file (`make docs`)."""

import importlib.metadata

project = "dpipe"
author = "dpipe maintainers"
release = importlib.metadata.version("dpipe")
extensions = ["myst_parser"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"dpipe {release}"
# The pages link to files of the repository, which the site does not hold.
suppress_warnings = ["myst.xref_missing"]
