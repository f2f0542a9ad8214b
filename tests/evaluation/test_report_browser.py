"""The report page as a person meets it, in headless Chromium."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from support.browser import chromium, opened

from understudy.evaluation.report import render_report

ERRORS = {"base": 0.9, "sft": 0.04, "aligned": 0.06, "champion": 0.03}
PROVENANCE = {
    "Records and digests": {
        "dataset": {"md5": "d" * 32 + ".dir", "rows": 90, "splits": {"test": 80}, "source_sha256": "5" * 64},
        "aligned": {"stage": "aligned", "sha256": "a" * 64, "parent_sha256": "b" * 64, "code_sha256": "c" * 64},
        "sft": {"stage": "sft", "sha256": "b" * 64, "parent_sha256": None, "dataset_md5": "d" * 32 + ".dir"},
    },
    "Versions": {"torch": "2.13.0", "image": "sha256:" + "e" * 64},
}
HOSTILE = [
    "</script ><script>document.title = 'broken into'</script><!-- ",
    "<img src=x onerror=\"document.title='broken into'\"> javascript:alert(1)",
    "\u202eright to left\u202c \u05e9\u05dc\u05d5\u05dd \u2028 line \u0000 \x07 lone \ud800",
    "W" * 3000,
    "👩\u200d🔧🏳️\u200d🌈 emoji",
    "",
]


def hostile_result(fakes):
    """A result whose rows drawn first hold hostile texts everywhere."""
    result = fakes.result(ERRORS, samples_shown=len(HOSTILE))
    for index, text in zip(result.shown, HOSTILE, strict=True):
        group = text[:60] or "empty"
        result.test[index] = dataclasses.replace(result.test[index], prompt=text, response=text, group=group)
        for policy in ("sft", "aligned", "champion"):
            samples = result.generated[policy]["tuned"].samples
            samples[index] = dataclasses.replace(samples[index], text=text)
    return result


@pytest.fixture(scope="module")
def result(fakes):
    return fakes.result(ERRORS)


@pytest.fixture(scope="module")
def path(result, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    ladder = [{"version": str(n), "rating": 1000 + 10 * n, "low": 990, "high": 1060, "matches": 9} for n in range(1, 4)]
    numbers = {"ladder": ladder, "judge_agreement": [{"a": "no_oops", "b": "other", "kappa": 0.61234}]}
    path.write_text(render_report(result, {}, PROVENANCE, "shop-bot", None, numbers), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def hostile_path(fakes, tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "report.html"
    path.write_text(render_report(hostile_result(fakes), {}, PROVENANCE, HOSTILE[1]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


def count(view) -> int:
    """Return how many prompts the page says it found, once it has said so."""
    return int(re.match(r"(\d+) of", view.page.locator("#sample-count").inner_text()).group(1))


def expect_count(view, number):
    view.page.wait_for_function(
        "wanted => document.getElementById('sample-count').textContent.startsWith(wanted + ' of ')", arg=str(number)
    )


def test_it_has_all_parts_loads_nothing_and_complains_of_nothing(browser, path, result):
    with opened(browser, path) as view:
        page = view.page
        assert page.title() == "shop-bot: evaluation"
        assert page.locator("h2").all_inner_texts() == [
            "Challenger beside champion",
            "Head to head",
            "Plots",
            "Where it got better and worse",
            "The worst regressions",
            "All samples",
            "Numbers",
            "Provenance",
        ]
        assert page.locator("#sides tbody th").all_inner_texts()[0] == "no_oops"
        assert "Elo ladder of the registered versions" in page.locator("#plots h3").all_inner_texts()
        assert "0.612" in page.locator("#numbers").inner_text()
        tree = page.locator(".tree").inner_text()
        kinds = ["challenger policy", "code", "image", "parent policy", "dataset version", "raw source"]
        assert [tree.index(kind) for kind in kinds] == sorted(tree.index(kind) for kind in kinds)
        assert (count(view), page.locator("#sample-list article").count()) == (len(result.test), 10)
        assert [request for request in view.requests if request != path.as_uri()] == []
        assert view.complaints == []


def test_search_and_filters_find_what_is_there(browser, path, result):
    gain = (
        result.generated["aligned"]["tuned"].scores["no_oops"] - result.generated["champion"]["tuned"].scores["no_oops"]
    )
    texts = [
        "\n".join(
            [row.prompt, row.response, *(result.generated[p]["tuned"].samples[i].text for p in ERRORS if p != "base")]
        )
        for i, row in enumerate(result.test)
    ]
    has_both = [i for i, text in enumerate(texts) if "unarchive" in text.lower() and "oops" in text.lower()]
    assert 0 < len(has_both) < len(texts) and 0 < (gain < 0).sum() < len(texts)
    with opened(browser, path) as view:
        page = view.page
        page.get_by_role("searchbox").press_sequentially("UNARCHIVE  oops")
        expect_count(view, len(has_both))
        page.get_by_role("button", name="Show all").press("Enter")
        expect_count(view, len(texts))
        page.get_by_label("Challenger is", exact=True).select_option("worse")
        expect_count(view, int((gain < 0).sum()))
        page.get_by_label("Group", exact=True).select_option(index=1)
        group = page.get_by_label("Group", exact=True).input_value()
        expect_count(view, sum(row.group == group and gain[i] < 0 for i, row in enumerate(result.test)))
        page.get_by_label("Group", exact=True).select_option(index=0)
        page.get_by_label("Challenger is", exact=True).select_option("all")
        page.get_by_role("searchbox").fill("no such word at all")
        expect_count(view, 0)
        assert "Take a filter away" in page.locator("#sample-count").inner_text()
        assert view.complaints == []


def test_pages_turn_by_keyboard_and_orders_follow_the_difference(browser, path, result):
    with opened(browser, path) as view:
        page = view.page
        first = page.locator("#sample-list h3").first
        prompts = [row.prompt for row in result.test]
        assert [first.inner_text().split(maxsplit=1)[1]] == [prompts[result.shown[0]]]
        page.get_by_role("button", name="Next").focus()
        page.keyboard.press("Enter")
        assert page.locator("#where").inner_text() == "Page 2 of 8"
        assert "11 to 20 shown" in page.locator("#sample-count").inner_text()
        assert page.evaluate("document.activeElement.id") == "next"
        for _ in range(9):
            page.keyboard.press("Space")
        assert page.locator("#where").inner_text() == "Page 8 of 8"
        assert page.get_by_role("button", name="Next").get_attribute("aria-disabled") == "true"
        page.get_by_label("Order", exact=True).select_option("worst")
        assert "difference −1.00" in page.locator("#sample-list .who").first.inner_text()
        page.get_by_label("Order", exact=True).select_option("best")
        assert "difference 1.00" in page.locator("#sample-list .who").first.inner_text()


def test_hostile_texts_are_only_text(browser, hostile_path):
    with opened(browser, hostile_path) as view:
        page = view.page
        assert page.locator("#sample-list article").count() == 10
        shown = page.locator("#sample-list").inner_text()
        assert HOSTILE[0].strip() in shown and HOSTILE[1] in shown and "👩\u200d🔧" in shown
        for spelled in ("U+202E", "U+2028", "U+0000", "U+0007", "U+D800"):
            assert spelled in shown
        assert page.locator("#sample-list pre").get_by_text("empty", exact=True).count() == 4
        assert page.title().startswith("<img src=x") and page.locator("img").count() == 0
        assert [request for request in view.requests if request != hostile_path.as_uri()] == []
        assert view.complaints == []
        page.get_by_role("searchbox").fill("</SCRIPT ><script>")
        expect_count(view, 1)
    with opened(browser, hostile_path, width=375) as view:
        assert view.overflow() == 0


@pytest.mark.parametrize(("width", "dark"), [(1280, True), (375, False)], ids=["dark", "phone"])
def test_it_is_accessible_and_fits(browser, path, width, dark):
    with opened(browser, path, width, dark) as view:
        view.page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        assert view.overflow() == 0
        found = Axe().run(view.page).response["violations"]
        assert [(each["id"], each["nodes"][0]["html"][:200]) for each in found] == []


def test_without_scripts_the_drawn_samples_are_there(browser, path, result):
    with opened(browser, path, scripts=False) as view:
        assert view.page.locator("#sample-list article").count() == len(result.shown)
        assert not view.page.locator("#filters").is_visible()
        assert "need JavaScript" in view.page.locator("#sample-count").inner_text()


def test_print_leaves_controls_out_and_cuts_no_table(browser, path):
    with opened(browser, path, width=700) as view:
        view.page.emulate_media(media="print")
        assert not view.page.locator("#filters").is_visible() and not view.page.locator("nav").is_visible()
        assert view.page.locator("#sample-list article").first.is_visible()
        assert view.overflow() == 0


def test_thousands_of_rows_are_a_page_at_a_time_and_stay_small(browser, fakes, tmp_path):
    result, times = fakes.result(ERRORS), 25
    result.test = [dataclasses.replace(row, id=f"{n}-{row.id}") for n in range(times) for row in result.test]
    result.clusters = np.tile(result.clusters, times)
    result.expert_scores = {name: np.tile(scores, times) for name, scores in result.expert_scores.items()}
    result.likelihood = {name: (np.tile(a, times), np.tile(b, times)) for name, (a, b) in result.likelihood.items()}
    for policy in ("sft", "aligned", "champion"):
        for decoding, generated in list(result.generated[policy].items()):
            scores = {name: np.tile(values, times) for name, values in generated.scores.items()}
            samples = [dataclasses.replace(sample, text=sample.text + "x") for sample in generated.samples] * times
            result.generated[policy][decoding] = dataclasses.replace(generated, samples=samples, scores=scores)
    path = tmp_path / "report.html"
    path.write_text(render_report(result, {}, {}, "x"), encoding="utf-8")
    assert 1_000_000 < path.stat().st_size < 5_000_000
    with opened(browser, path) as view:
        assert (count(view), view.page.locator("#sample-list article").count()) == (2000, 10)
        view.page.get_by_role("searchbox").fill("7-42")
        expect_count(view, sum("7-42" in row.id for row in result.test))
        assert view.complaints == []
