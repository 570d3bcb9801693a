"""The section of a report's page on quality: whether samples can be distinguished from held-out
ones.
"""

from typing import Any

from sdekit_diffusion._app.page_table import Card, table

_ROWS = {"model": "samples of the model", "train": "training {kind}"}


def quality(results: dict[str, Any]) -> tuple[str, list[Card]]:
    """The section, and its headline figures."""
    numbers = results["two_sample"]
    kind = "data" if results["data"]["levels"] is None else "images"
    rows = numbers["rows"]
    head = [
        f"against held-out {kind}",
        "accuracy",
        "p",
        "precision",
        "recall",
        kind,
    ]
    cells = [[name.format(kind=kind), *_cells(rows[key])] for key, name in _ROWS.items()]
    html = (
        f"<h2>Can the samples be distinguished from held-out {kind}?</h2>"
        f"<p>{_verdict(rows, kind)}</p>{table(head, cells, 0)}<p>{_explanation(numbers, kind)}</p>"
    )
    classified, card = _classified(results, kind)
    return html + f"<p>{classified}</p>", [*_cards(rows, kind), *card]


def _verdict(rows: dict[str, Any], kind: str) -> str:
    """The results of the tests, as sentences."""
    model = rows["model"]
    text = (
        f"The samples are {_distinguishable(model)} from held-out {kind} by this test "
        f"({_p(model['p_value'])}): a classifier of the two is right in {_percent(model)} % of "
        "cases, where chance is 50 %."
    )
    train = rows["train"]
    if train["distinguishable"]:
        return (
            f"{text} Training {kind} are distinguishable from held-out ones too "
            f"({_p(train['p_value'])}): the two parts of the data differ, and the test says little "
            "about the model."
        )
    return (
        f"{text} Training {kind} are not distinguishable from held-out ones "
        f"({_p(train['p_value'])}), as expected."
    )


def _explanation(numbers: dict[str, Any], kind: str) -> str:
    """What is tested, and what precision and recall are."""
    values = "pixels" if kind == "images" else "values in the model's scale"
    return (
        f"The test is a classifier two-sample test: kernel ridge regression on {values}, its "
        "accuracy on each sample without that sample, ± the standard deviation for labels in "
        f"random order. p is the share of {numbers['permutations']} such orders and the true one "
        f"with an accuracy as large. Below {numbers['level']:g} the samples are called "
        f"distinguishable: of perfect models, at most one in {1 / numbers['level']:.0f}. A larger "
        "number of samples shows smaller differences, so compare the accuracy of models with equal "
        "numbers. Precision is the share of samples that are within the third-neighbour balls of "
        f"the held-out {kind}, recall the reverse."
    )


def _classified(results: dict[str, Any], kind: str) -> tuple[str, list[Card]]:
    """The section on the classifier's predictions, and its headline figure; a sentence if there is
    no classifier.
    """
    if "frechet" not in results:
        return (
            "There is no classifier to name the classes of the samples and its confidence, because "
            f"these data are not labelled images of three classes or more; so only {kind} as "
            "they are have been compared.",
            [],
        )
    classes = results["frechet"]["classes"]
    shown = {
        name: f"{row['mean']:.4f} ± {row['stderr']:.4f}"
        for name, row in classes["confidence"].items()
    }
    text = (
        f"The mean confidence of a classifier of the training images in the class that it finds is "
        f"{shown['model']} for the samples and {shown['held_out']} for held-out images. The "
        "chi-squared test that it finds the classes equally often in both has "
        f"{_p(classes['p_value'])}."
    )
    return text, [
        (
            f"{classes['confidence']['model']['mean']:.3f}",
            "mean confidence of a classifier; held-out images "
            f"{classes['confidence']['held_out']['mean']:.3f}",
        )
    ]


def _cards(rows: dict[str, Any], kind: str) -> list[Card]:
    """The headline figures of the test, and of precision and recall."""
    model = rows["model"]
    train = rows["train"]
    return [
        (
            _p(model["p_value"]),
            f"{_distinguishable(model)} from held-out {kind}: a classifier of the two "
            f"is right in {_percent(model)} %, chance is 50 %; {model['n']} samples",
        ),
        (
            f"{model['precision']:.3f}, {model['recall']:.3f}",
            f"precision and recall; training {kind} {train['precision']:.3f}, "
            f"{train['recall']:.3f}",
        ),
    ]


def _cells(row: dict[str, Any]) -> list[str]:
    """The cells of a set in the table."""
    return [
        f"{_percent(row)} %",
        _p(row["p_value"]).removeprefix("p = "),
        f"{row['precision']:.3f}",
        f"{row['recall']:.3f}",
        str(row["n"]),
    ]


def _distinguishable(row: dict[str, Any]) -> str:
    return "distinguishable" if row["distinguishable"] else "not distinguishable"


def _percent(row: dict[str, Any]) -> str:
    return f"{100 * row['accuracy']:.1f} ± {100 * row['stderr']:.1f}"


def _p(p: float) -> str:
    return f"p = {p:.2g}"
