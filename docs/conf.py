"""Sphinx configuration. The pages need no network: formulas are MathML, drawn by the browser."""

import json
import re
import sys
import warnings
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import MathError, tex2mathml
from sphinx.util import logging

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parent / "examples"))  # networks.py, for all galleries

from sdekit_diffusion.__main__ import explore

import plotted
from api_pages import write
from printed import STORED, differing
from registered import completed, made_from

logger = logging.getLogger(__name__)

project = "sdekit"
author = "The sdekit authors"
project_copyright = author
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
# The folder of scripts, and that of the pages which are built from them.
GALLERIES = {
    "tutorials": "tutorial_pages",
    "how_to": "how_to_guides",
    "examples": "gallery",
}
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_js_files = ["interactive.js"]
html_search_scorer = str(Path(__file__).parent / "_static" / "scorer.js")
exclude_patterns = ["_build", "_cache", *GALLERIES]
# The look of pictures is a function, which Sphinx cannot keep between two builds.
suppress_warnings = ["myst.header", "config.cache"]
default_role = "literal"  # `x` in docstrings is code
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80


def style(gallery_conf, script):
    """One look for the pictures of all examples."""
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "figure.constrained_layout.use": True,
            "font.size": 9,
            "legend.frameon": False,
        }
    )


# torch scripts some of its derivatives itself, and from Python 3.13 on warns of that in scripts.
warnings.filterwarnings("ignore", message="`torch.jit")

sphinx_gallery_conf = {
    "examples_dirs": list(GALLERIES),
    "gallery_dirs": list(GALLERIES.values()),
    "reset_modules": ("matplotlib", style),
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "ignore_pattern": r"(networks|strip)\.py",
    "plot_gallery": True,
    "capture_repr": (),  # of the last line of a block: legends, lists of labels
    "abort_on_example_error": True,
    "min_reported_time": 0,
    "write_computation_times": False,  # these pages load scripts from other sites
}


SPACE = '<mspace width="0.1667em"></mspace>'
OPERAND = r"(</m(?:[in]|sup|sub|subsup|row|frac)>|<mo[^>]*>[)\]]</mo>)"
FUNCTION = r"(\s*<mi>[a-z]{2,}</mi>\s*<mo>&ApplyFunction;</mo>)"


def mathml(node, *, block):
    """MathML of a formula, with thin spaces around the names of functions as TeX has them."""
    try:
        found = tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        logger.warning("%s in the formula %s", error, node.astext(), location=node)
        return ""
    found = re.sub(OPERAND + FUNCTION, rf"\1{SPACE}\2", found)
    return re.sub(r"<mo>&ApplyFunction;</mo>(?!\s*<mo[^>]*>[(\[{])", SPACE, found)


def inline_formula(translator, node):
    translator.body.append(mathml(node, block=False))
    raise nodes.SkipNode


def formula(translator, node):
    found = mathml(node, block=True)
    translator.body.append(f'<div class="formula">{found}</div>')
    raise nodes.SkipNode


def escape(app, what, name, obj, options, lines):
    """Docstrings are plain text with formulas and tables: |x| and a * b are not markup; examples
    are code.
    """
    example = False
    found = []
    for line in lines:
        example = bool(line.strip()) and (example or line.lstrip().startswith(">>>"))
        if example:
            found.append(line)
        elif re.fullmatch(r"\|.*\|", line):
            found += table_row(line, first=not found or not found[-1].startswith("     - "))
        else:
            found.append(line.replace("|", r"\|").replace("*", r"\*"))
    lines[:] = found


def table_row(line, *, first):
    """A row of a Markdown table, as one of a list-table; the line below its head is none."""
    if set(line) <= set("|-: "):
        return []
    head = [".. list-table::", "   :header-rows: 1", ""] if first else []
    start, *rest = [cell.strip().replace("*", r"\*") for cell in line.strip("|").split("|")]
    return [*head, f"   * - {start}", *(f"     - {cell}" for cell in rest)]


def at_the_root(app, path, parent, content):
    """The README links pages of the repository's root, which are included here by other names."""
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        content[0] = content[0].replace(f"({name})", f"(docs/{name.lower()})")


def with_all_rows(app, name, source):
    for path in made_from(source[0]):
        app.env.note_dependency(str(path), docname=name)
    source[0] = completed(name, indexed(source[0]))


def indexed(text):
    """Comments `<!-- index: TERM, TERM -->`, which GitHub does not show, as index entries."""

    def entries(match):
        return f"```{{index}} ! {match[1].replace(', ', ', ! ')}\n```"

    return re.sub(r"^<!-- index: (.+) -->$", entries, text, flags=re.MULTILINE)


def interactive_page(app, error):
    """The page that docs/interactive.md shows, computed by the command line's function."""
    page = Path(app.outdir) / "_static" / "three_modes.html"
    if error is None and app.builder.format == "html":
        explore(mixture="three_modes", out=page)


def compared(app, env, docnames):
    """Warns of scripts that print something else than what is stored."""
    if str(app.config.plot_gallery) in ("0", "False"):
        return  # nothing was run
    stored = json.loads(STORED.read_text())
    for name, text in differing(stored).items():
        if name in stored:
            logger.warning(
                "%s prints\n%s\n, not\n%s\n: if that is right, python docs/printed.py",
                name,
                text,
                stored[name],
            )


def without_pictures(app, config):
    """A quick build, with -D plot_gallery=0, has no pictures of the gallery to show elsewhere."""
    if str(config.plot_gallery) in ("0", "False"):
        config.suppress_warnings.append("image.not_readable")


def setup(app):
    app.connect("config-inited", without_pictures)
    app.connect("builder-inited", lambda app: write())
    app.connect("builder-inited", lambda app: plotted.write())
    app.connect("env-before-read-docs", compared)
    app.connect("build-finished", interactive_page)
    app.connect("source-read", with_all_rows)
    app.connect("include-read", at_the_root)
    app.add_html_math_renderer("mathml", (inline_formula, None), (formula, None))
    app.connect("autodoc-process-docstring", escape, priority=100)
