"""Sphinx configuration."""

project = "sdekit"
author = "The sdekit authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
exclude_patterns = ["_build"]
suppress_warnings = ["myst.xref_missing", "myst.header"]
autodoc_typehints = "none"


def setup(app):
    """Docstrings are plain text with mathematics: |x| and a * b are not markup."""

    def escape(app, what, name, obj, options, lines):
        lines[:] = [line.replace("|", r"\|").replace("*", r"\*") for line in lines]

    app.connect("autodoc-process-docstring", escape, priority=100)
