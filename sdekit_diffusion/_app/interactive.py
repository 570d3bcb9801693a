"""The interactive page of solves: a single HTML file, which works offline."""

import json
import math
from html import escape
from importlib.resources import files
from typing import Any

from sdekit_diffusion._app.explored import Explored
from sdekit_diffusion._app.options import Sampler
from sdekit_diffusion._models.checkpoint import versions

_DESCRIPTIONS = {
    "points": "Coloured points are states of the solves, grey points the data.",
    "images": "Each tile is a sample on its way from noise to an image.",
}
_CLASSES = {
    "points": " Sample i has class i modulo the number of classes, and the colour of its class.",
    "images": " A column has the images of one class, whose number stands below it.",
}
# What to look for at each slider: in points and in images.
_SLIDER_CAPTIONS = {
    "time": (
        "From noise at the left to data at the right. At the end the coloured points should "
        "cover the grey ones, equally densely, unless guidance is above 1.",
        "From noise at the left to data at the right. Look for the time from which on one can see "
        "what the image will be.",
    ),
    "eta": (
        "The noise level of the reverse equation. With 0, the probability flow, paths are smooth; "
        "with more noise they are rough, and samples end elsewhere. The law of the samples should "
        "stay the same.",
        "The noise level of the reverse equation. With 0, the probability flow, nothing but the "
        "first state is random; with more noise the same first state becomes another image.",
    ),
    "steps": (
        "Steps of the solver. Compare the last states with the grey points: with eta above 0 and "
        "few steps they spread too far, with eta = 0 much less.",
        "Steps of the solver. Compare few steps with many, with eta = 0 and above: the less an "
        "image changes, the smaller its error.",
    ),
    "guidance": (
        "The scale w. With 0 the class has no influence, 1 is the law given the class, and more "
        "moves samples away from the other classes, to places where the data have fewer points.",
        "The scale w. With 0 the class has no influence, 1 is the law given the class, and more "
        "makes images more typical of their class, and more alike.",
    ),
    "seed": (
        "Other random numbers: other samples of the same law.",
        "Other random numbers: other samples of the same law.",
    ),
}
_PATH = (
    "One Brownian path per sample for all numbers of steps: samples tend to a limit as the number "
    "of steps grows."
)


def page_of(explored: Explored, frames: dict[str, Any], sampler: Sampler) -> str:
    """The page of `explored_frames`."""
    kind: str = frames["kind"]
    shown = ["time", *(name for name, values in frames["axes"].items() if len(values) > 1)]
    items = [
        f"<dt>{name}</dt><dd>{escape(_SLIDER_CAPTIONS[name][kind == 'images'])}</dd>"
        for name in shown
    ]
    if sampler.noise == "path" and any(frames["axes"]["eta"]) and "steps" in shown:
        items.append(f"<dt>noise</dt><dd>{_PATH}</dd>")
    lead = f"{explored.kind} {_DESCRIPTIONS[kind]}{_CLASSES[kind] if frames['classes'] else ''}"
    size = math.prod(explored.shape)
    if kind == "points" and size > 2:
        lead += f" The first two of their {size} coordinates are drawn."
    made = {"method": sampler.method, "grid": sampler.grid, "diffusion": sampler.sde}
    library = versions()
    notes = [f"{name} {value}" for name, value in made.items() if value is not None]
    notes += [f"{name} {library[name]}" for name in ("sdekit", "torch")]
    title = f"{explored.name.replace('_', ' ')}: from noise to data"
    texts = {
        "title": escape(title),
        "lead": escape(lead),
        "items": "".join(items),
        "notes": escape(f"{frames['n']} samples; {', '.join(notes)}"),
        "frames": json.dumps(frames, separators=(",", ":"), allow_nan=False).replace("</", r"<\/"),
    }
    page = files("sdekit_diffusion._app").joinpath("interactive.html").read_text(encoding="utf-8")
    for name, text in texts.items():
        page = page.replace(f"{{{{{name}}}}}", text)
    return page
