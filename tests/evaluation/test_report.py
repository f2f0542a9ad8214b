from __future__ import annotations

import base64
import dataclasses
import hashlib
import html.parser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from understudy.evaluation.report import number, render_report, visible

ROOT = Path(__file__).parents[2]
HISTORIES = {
    "sft": [{"step": step, "loss": 3.0 - 0.1 * step} for step in range(1, 9)] + [{"step": 8, "validation_nll": 2.4}],
    "aligned": [
        {"step": step, "reward": 0.1 * step, "kl": 0.2 * step, "discriminator_accuracy": 0.7, "held_out_auc": 0.72}
        for step in range(1, 6)
    ],
}
PROVENANCE = {"Records": {"dataset": {"md5": "abc.dir", "splits": {"test": 80}}}, "Versions": {"torch": "2.13.0"}}
HOSTILE = (
    "<script>alert('x')</script> <img src=//evil.example/a onerror=x> \u202eright to left\u202c\x07\x00\u2028 שלום"
)


class Outline(html.parser.HTMLParser):
    """Collects what a browser would load or run, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.text += data


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    return parser


@pytest.fixture(scope="module")
def page(fakes):
    return render_report(fakes.result(), HISTORIES, PROVENANCE, "understudy-test")


def test_page_loads_nothing_and_runs_its_own_script_only(page):
    found = outline(page)
    assert not {"link", "iframe", "img", "object", "embed", "base"} & set(found.tags)
    assert found.tags.count("script") == 2 and page.count('<script type="application/json"') == 1
    code = page[page.rindex("<script>") + len("<script>") : page.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    policy = re.search('http-equiv="Content-Security-Policy" content="([^"]*)"', page).group(1)
    assert f"script-src &#39;sha256-{digest}&#39;;" in policy and "default-src 'none'" in policy
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    targets = [value for name, value in found.attributes if name in {"href", "src", "xlink:href", "action"}]
    assert targets and all(target.startswith("#") for target in targets)
    assert "url(http" not in page and "@import" not in page
    assert len(page.encode()) < 1_000_000


def test_order_is_verdict_evidence_samples_numbers_provenance(page):
    names = ["sides", "comparisons", "plots", "slices", "regressions", "samples", "numbers", "provenance"]
    positions = [page.index(mark) for mark in ["<h1>", *(f'<section id="{name}"' for name in names)]]
    assert positions == sorted(positions)
    assert "No difference shown between aligned and SFT by no_oops." in page


def test_hostile_text_stays_text(fakes):
    result = fakes.result()
    shown = result.shown[0]
    result.test[shown] = dataclasses.replace(result.test[shown], prompt=HOSTILE, response=HOSTILE)
    generated = result.generated["aligned"]["tuned"]
    generated.samples[shown] = dataclasses.replace(generated.samples[shown], text=HOSTILE)
    page = render_report(result, HISTORIES, {"Records": {HOSTILE: HOSTILE}}, HOSTILE)
    found = outline(page)
    assert found.tags.count("script") == 2 and "img" not in found.tags
    assert page.count("&lt;script&gt;alert(") >= 4
    outside_title = page[page.index("</h1>") : page.rindex('<script type="application/json"')]
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u2028\x00-\x08\x0b-\x1f]", outside_title)
    assert "U+202E" in page and "U+0007" in page and "U+0000" in page and "U+2028" in page
    assert "שלום" in page


def test_visible_spells_out_what_hides_and_cuts_what_is_long():
    assert visible("a\tb\nc") == "a\tb\nc"
    assert visible("<b>&") == "&lt;b&gt;&amp;"
    assert visible("x\u200by") == 'x<span class="control" title="zero width space">U+200B</span>y'
    assert "👩\u200d🔧" in visible("👩\u200d🔧")
    assert "1000 more characters" in visible("y" * 5000)


def test_numbers_have_three_digits_and_a_true_minus():
    assert [number(value) for value in (0.05, -0.1234, 12.0, 123.4, 12345.6, 0.0, 1e-9, -0.0)] == [
        "0.0500",
        "−0.123",
        "12.0",
        "123",
        "12346",
        "0",
        "1.00e−09",
        "0",
    ]


def test_each_figure_has_a_name_and_a_table_of_its_data(page):
    figures = re.findall(r"<figure>.*?</figure>", page, flags=re.DOTALL)
    titles = [re.search("<h3>(.*?)</h3>", figure).group(1) for figure in figures]
    assert titles == [
        "Score differences, prompt by prompt",
        "Quality and diversity",
        "Length of responses",
        "Supervised training",
        "Discriminator",
        "Reward against drift",
    ]
    for figure in figures:
        assert re.search('role="img" aria-label="[^"]{40,}"', figure)
        assert figure.count("<tr>") > 2
        assert "var(--ink)" in figure and "#0" not in re.sub(r"clip-path: url\(#\w+\)|href=\"#\w+\"", "", figure)


def test_figures_read_what_training_logs(fakes):
    """Each name occurs in the training steps; what no step logs is no figure."""
    from understudy.evaluation.plots import draw_plots

    keys = {plot.key: {row[0] for row in plot.rows} for plot in draw_plots(fakes.result(), HISTORIES)}
    assert keys["training-curves"] == {"SFT, training", "SFT, validation"}
    assert keys["discriminator"] == {"AUC on held-out text", "batch accuracy"} and "reward-kl" in keys
    names = {"loss", "validation_nll", "reward", "kl", "discriminator_accuracy", "held_out_auc"}
    assert names | {"step"} == {name for rows in HISTORIES.values() for row in rows for name in row}
    code = "".join(path.read_text() for path in (ROOT / "understudy" / "training").glob("*.py"))
    assert all(f'"{name}"' in code for name in names)
    aliases = {"loss": "train_loss", "kl": "kl_mean", "reward": "mean_reward"}
    other = {
        policy: [{aliases.get(k, k): v for k, v in row.items()} for row in rows] for policy, rows in HISTORIES.items()
    }
    drawn = {plot.key: {row[0] for row in plot.rows} for plot in draw_plots(fakes.result(), other)}
    assert drawn["training-curves"] == {"SFT, validation"} and "reward-kl" not in drawn


def test_figures_without_data_are_left_out(fakes):
    page = render_report(fakes.result(), {}, PROVENANCE, "x")
    assert "Supervised training" not in page and "Discriminator</h3>" not in page
    assert "Quality and diversity" in page


def test_ids_are_unique_and_references_resolve(page):
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page))
    assert references <= set(ids)


def test_no_judge_page_says_so(fakes):
    result = fakes.result({"sft": 0.1, "aligned": 0.1}, judged=False, judges=(), tuning_judge=None)
    page = render_report(result, {}, {}, "x")
    assert "cannot be compared: no judge is configured" in page


def test_same_input_same_bytes_in_another_process(fakes, page):
    again = render_report(fakes.result(), HISTORIES, PROVENANCE, "understudy-test")
    assert again == page
    program = (
        "import sys, hashlib; sys.path[:0] = sys.argv[1:3]; import conftest, test_report as t\n"
        "page = t.render_report(conftest.namespace().result(), t.HISTORIES, t.PROVENANCE, 'understudy-test')\n"
        "sys.stdout.buffer.write(page.encode())"
    )
    folder = __file__.rpartition("/")[0]
    run = subprocess.run([sys.executable, "-c", program, folder, folder], capture_output=True, check=True)
    assert run.stdout.decode() == page
