"""What the scripts of tutorials, how-to guides and the gallery print: compared with
docs/printed.json when the pages are built.

`python docs/printed.py` after `make docs` writes there what differs. Scripts that have null there
print times, memory, rounding errors or numbers of trained networks, which depend on the processor,
and are not compared. Those without an entry differ.
"""

import json
import re
import sys
import textwrap
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from outputs import agree

HERE = Path(__file__).parent
STORED = HERE / "printed.json"
FOLDERS = ("tutorial_pages", "how_to_guides", "gallery")
OUTPUT = re.compile(
    r"^\.\. rst-class:: sphx-glr-script-out\n\n"
    r" \.\. code-block:: none\n\n(?P<text>(?:    .*\n|[ ]*\n)+)",
    re.MULTILINE,
)


def printed(page: str) -> str:
    """What the page of a script, in reStructuredText, shows as printed."""
    found = [textwrap.dedent(match["text"]).strip() for match in OUTPUT.finditer(page)]
    return "\n".join(found)


def differing(stored: dict[str, str | None], root: Path = HERE) -> dict[str, str]:
    """What scripts print, by their names, where it is not what is stored."""
    pages = [page for folder in FOLDERS for page in sorted((root / folder).glob("plot_*.rst"))]
    found = {page.stem: printed(page.read_text()) for page in pages}
    compared = {name: text for name, text in found.items() if stored.get(name, "") is not None}
    return {name: text for name, text in compared.items() if not agree(text, stored.get(name, ""))}


if __name__ == "__main__":
    stored = json.loads(STORED.read_text())
    renewed = differing(stored)
    STORED.write_text(json.dumps(stored | renewed, indent=2, sort_keys=True) + "\n")
    print("renewed", *renewed)
