"""Configuration of the documentation, built with ``sphinx-build -W docs docs/_build``."""

import os
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The benchmarks make the tables of their results, and are found from the root.
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

from repository import repository_url  # noqa: E402

project = "sparseopt"
author = "The sparseopt authors"
project_copyright = author
release = version = installed_version("sparseopt")

extensions = [
    "code_map",
    "committed_results",
    "completeness",
    "drawings",
    "fresh_galleries",
    "kernel_results",
    "myst_parser",
    "overviews",
    "questions",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = [
    "_build",
    "_ext",
    "figures",
    "gallery",
    "generated/tutorials/index.rst",
    "tutorials/GALLERY_HEADER.rst",
]

# What has to be in the reference, and on its front page.
completeness_modules = ["sparseopt", "sparseopt.distributions", "sparseopt.typing"]
completeness_overview = "reference/index"

# A reference that leads nowhere is an error, unless it leads to another project or to a type
# variable or alias, which have no entry of their own.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(abc|collections|numpy|torch|typing)\..*"),
    ("py:class", r"sparseopt\.methods\.gradient_memory\.AccumulatedGradients"),
    ("py:class", r"sparseopt\.methods\.state\.(LayerState|MethodState|RunState)"),
    ("py:class", r"sparseopt\.optimizer\.(gradients\.GradientFlag|hooks\.Holder)"),
    ("py:class", r"sparseopt\.optimizer\.state\.base\.StateBackend"),
    ("py:class", r"sparseopt\.pruning_at_init\.lottery\._Masked"),
    ("py:class", r"pathlib\.Path"),
    ("py:class", r"sparseopt\.speedup\.timing\.Timing"),
    ("py:class", r"Kinds|Regrow|Schedule|Score|sparseopt\.(methods\.registry\.M|distributions\.D)"),
]

# Building must not need the network, so links into the documentation of Python, PyTorch and NumPy
# are made only on request.
if os.environ.get("SPARSEOPT_DOCS_INTERSPHINX") == "1":
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "numpy": ("https://numpy.org/doc/stable", None),
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "substitution"]
# The repository is wherever the build found it: nothing here says where that is.
repository = repository_url(os.environ)
myst_substitutions = {
    "release": release,
    "repository": f", [the repository]({repository})" if repository else "",
}
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

# Where the examples of the methods' pages find their network and training loop.
doctest_path = [str(Path(__file__).parent / "methods")]
# Code of other libraries, in "moving from", runs where they are installed.
doctest_global_setup = """
from importlib.util import find_spec
import torch
from sparseopt import *
from sparseopt.distributions import *
torch.manual_seed(0)
"""

# Every script is run, and one that fails fails the build.
sphinx_gallery_conf = {
    "examples_dirs": ["tutorials", "gallery"],
    "gallery_dirs": ["generated/tutorials", "generated/gallery"],
    "filename_pattern": "",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "capture_repr": (),
    "reset_modules": ("matplotlib", "gallery_scripts.prepare"),
    "doc_module": ("sparseopt",),
    "notebook_extensions": set(),
    "download_all_examples": False,
    "show_signature": False,
    "min_reported_time": float("inf"),
    "write_computation_times": False,
    "jupyterlite": None,
}

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "sparseopt"
html_static_path = ["_static"]
html_css_files = ["custom.css", "galleries.css"]
html_show_copyright = False
html_theme_options = {
    "navigation_with_keys": True,
    # The pencil and the eye at the top of each page.
    **(
        {"source_repository": repository, "source_branch": "main", "source_directory": "docs/"}
        if repository
        else {}
    ),
}
