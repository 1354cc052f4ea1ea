"""The page of a run as a person uses it: in Chromium, with mouse and keyboard.

Covers: tables, search, chains of columns, matrices, the slider of thresholds, colour schemes,
narrow screens, large pages; that nothing is refused, fetched or complained of.
Does not cover: what the page says (`test_report`). Without Chromium and its driver it is skipped.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pages import Browser, needs_browser
from results import NASTY, RHO, correlations, decision, dropped, record, write_run
from written_runs import EDGES, full_run, large_run, run_with_pairs, targeted_run

from dpipe.report import write_report

FIGURES_DRAWN = (
    "return ['matrix', 'curve', 'memory', 'pair'].every((name) => "
    "!JSON.parse(document.getElementById('figures').textContent)[name] || "
    "!document.getElementById('figure-' + name) || "
    "document.getElementById('figure-' + name).childElementCount > 0)"
)


@needs_browser
@pytest.mark.parametrize(
    ("edge", "scheme"), [*((edge, "light") for edge in EDGES), ("everything", "dark")]
)
def test_browser_has_nothing_to_complain_about(
    browser: Browser, tmp_path: Path, edge: str, scheme: str
) -> None:
    browser.scheme(scheme)
    browser.open(write_report(EDGES[edge](tmp_path)))
    browser.wait(FIGURES_DRAWN)
    assert browser.complaints() == []
    assert browser.requests() <= {"file", "data", "chrome-error"}
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.run("return document.querySelectorAll('main img, main script').length") == 0


@needs_browser
@pytest.mark.parametrize("width", [400, 700, 1200])
def test_page_is_read_on_any_screen(browser: Browser, tmp_path: Path, width: int) -> None:
    size = {"height": 768, "deviceScaleFactor": 1, "mobile": False}
    browser.command("Emulation.setDeviceMetricsOverride", width=width, **size)
    try:
        browser.open(write_report(targeted_run(tmp_path)))
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
        cut = (
            "return [...document.querySelectorAll('[data-table=decisions] th button')]"
            ".filter((e) => e.scrollWidth > e.parentNode.clientWidth).map((e) => e.textContent)"
        )
        assert browser.run(cut) == []
        share = (
            "return document.querySelector('.funnel .track').clientWidth / "
            "document.querySelector('.funnel').clientWidth"
        )
        assert browser.run(share) > 0.4
        grey = (
            "const stats = document.querySelector('.stats'), right = (e) => "
            "e.getBoundingClientRect().right; return right(stats) - right(stats.lastElementChild)"
        )
        assert browser.run(grey) < 3  # the last line of statistics is as wide as the others
    finally:
        browser.command("Emulation.setDeviceMetricsOverride", width=1366, **size)


@needs_browser
def test_table_is_searched_sorted_and_filtered(browser: Browser, tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(3000)]
    rows = [
        decision(n) if i % 2 else dropped(n, names[i + 1], value=0.95 + i * 1e-5)
        for i, n in enumerate(names)
    ]
    browser.open(write_report(write_run(tmp_path, rows, record([(2, 3000, 1500)]))))
    table = "[data-table=decisions]"
    first = f"{table} tr[data-row='0'] td:nth-child(2)"
    assert browser.texts(f"{table} .count") == ["3,000 columns"]
    assert len(browser.all(f"{table} tbody tr")) < 60  # the others are not in the document
    assert browser.texts(first) == ["c0"]

    browser.one(f"{table} th:nth-child(6) button").click()  # by value, falling
    assert browser.texts(first) == ["c2998"]
    assert browser.one(f"{table} th:nth-child(6)").get_attribute("aria-sort") == "descending"
    browser.one(f"{table} th:nth-child(6) button").click()
    assert browser.texts(first) == ["c0"]
    browser.one(f"{table} th:nth-child(2) button").click()  # by name, as a person counts
    assert browser.texts(f"{table} td:nth-child(2)")[:3] == ["c0", "c1", "c2"]

    browser.one(f"{table} input").send_keys("C12")
    assert browser.texts(f"{table} .count") == ["111 of 3,000 columns"]
    browser.one(f"{table} select").send_keys("Kept")
    assert browser.texts(f"{table} .count") == ["55 of 3,000 columns"]
    browser.one(f"{table} input").send_keys(" and nothing like it")
    assert browser.texts(f"{table} td") == ["Nothing matches."]

    browser.one(f"{table} input").clear()
    browser.one(f"{table} input").send_keys("c2999")
    browser.one(f"{table} td button.open").click()
    assert browser.texts("#column h3") == ["c2999"]
    browser.run("document.querySelector(arguments[0]).scrollTop = 1e6", f"{table} .scroll")
    assert browser.complaints() == []


@needs_browser
def test_tables_of_the_target_and_of_the_budget(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_report(targeted_run(tmp_path)))
    assert browser.texts("[data-table=relevance] tr[data-row] td")[:12] == [
        *("a", "0.8100", "kept", "", "", ""),
        *("c", "0.4250", "dropped", "b", "0.4050", "0.0200"),
    ]
    chosen = browser.texts("[data-table=chosen] tr[data-row] td")
    assert chosen[5:] == ["2", "b", "75.0 %", "62.5 %", "0.4050"]
    browser.one("#find").send_keys("d")
    browser.one("#columns [role=option]").click()
    assert "Of the columns kept the most similar is:" in browser.texts("#asked")[0]
    assert "limit" not in browser.texts("#asked")[0]
    assert browser.complaints() == []


@needs_browser
def test_a_difference_that_rounds_to_nothing_has_no_sign(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_report(targeted_run(tmp_path, relevance=0.405 - 4e-5)))
    cells = browser.texts("[data-table=relevance] tr[data-row] td")
    assert cells[12:18] == ["c", "0.4050", "dropped", "b", "0.4050", "0.0000"]


@needs_browser
def test_scrolling_a_table_shows_the_rows_of_that_place(browser: Browser, tmp_path: Path) -> None:
    rows = [decision(f"c{i}") for i in range(20000)]
    browser.open(write_report(write_run(tmp_path, rows)))
    table = "[data-table=decisions]"
    browser.run("document.querySelector(arguments[0]).scrollTop = 32 * 12345", f"{table} .scroll")
    browser.wait(
        "const row = document.querySelector(arguments[0]); return row && "
        "row.getBoundingClientRect().top - row.closest('.scroll').getBoundingClientRect().top < 80",
        f"{table} tr[data-row='12345']",
    )
    assert len(browser.all(f"{table} tbody tr")) < 60


@needs_browser
def test_column_is_found_and_read_with_the_keyboard_alone(browser: Browser, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(write_report(full_run(tmp_path)))
    assert browser.texts("#column h3") == ["a"]
    assert browser.texts("#columns .option .name") == ["a", "e"]
    browser.run("document.getElementById('find').focus()")
    browser.keys("d")
    assert browser.texts("#columns .option .name") == ["d"]
    browser.keys(Keys.ENTER)
    assert browser.texts("#column h3") == ["a"]
    assert browser.texts(".chain .name") == ["d", "b", "a"]
    assert "ρ −0.9900 with the next" in browser.texts(".chain small")[0]  # noqa: RUF001
    assert browser.texts(".chain .values") == ["100 valid, 0 % missing, 90 different"] * 2
    assert browser.texts("#asked") == [
        "d was dropped by pass 2 – redundant (ρ −0.9900, limit 0.95). "  # noqa: RUF001
        "By way of b, this column stands for it:"
    ]
    assert browser.texts(".alternatives td:nth-child(4)") == ["direct", "b"]
    browser.wait("return document.querySelector('#figure-pair').childElementCount > 0")
    browser.keys(Keys.TAB)  # to the list
    assert browser.run("return document.activeElement.id") == "columns"
    browser.run("document.getElementById('find').value = ''")
    browser.run("document.getElementById('find').dispatchEvent(new Event('input'))")
    browser.keys(Keys.END)
    assert browser.texts("#column h3") == ["e"]
    assert browser.texts("#asked") == []
    assert browser.texts("#column .hint") == ["It stands for no other column."]
    assert browser.complaints() == []


@needs_browser
def test_rows_on_one_spot_make_a_larger_point(browser: Browser, tmp_path: Path) -> None:
    rows = [decision("a"), dropped("b", "a")]
    codes = np.array([[1, 1, 1, 1, 255, 255, 0], [1, 1, 1, 255, 255, 255, 255]], np.uint8)
    browser.open(write_report(write_run(tmp_path, rows, sample=(["a", "b"], codes))))
    browser.one("#find").send_keys("b")
    browser.one("#columns .option").click()
    points = (
        "const plots = Bokeh.documents.flatMap((d) => d.roots());"
        "const plot = plots.find((r) => r.name === 'pair');"
        "const source = plot && [...plot.references()].find((r) => r.name === 'pair-points');"
        "if (!source) return [];"
        "const { x, y, size } = source.data;"
        "return Array.from(x, (_, k) => [x[k], y[k], (size[k] / 5) ** 2])"
    )
    wanted = [[0.0, 0.0, 3.0], [0.0, 1.0, 1.0], [1.0, 1.0, 2.0]]  # the seventh row misses a
    browser.wait(f"return (() => {{{points}}})().length > 0")
    found = sorted([x, y, round(rows, 6)] for y, x, rows in browser.run(points))
    assert found == wanted


@needs_browser
def test_dropped_column_is_in_sight_among_many(browser: Browser, tmp_path: Path) -> None:
    rows = [decision("a"), decision("v"), dropped("u", "v", 3, reason="inflated variance")]
    rows += [dropped(f"b{i}", "a", value=0.99 - i * 1e-4) for i in range(90)]
    browser.open(write_report(write_run(tmp_path, rows)))
    sight = (
        "const row = document.querySelector('.alternatives tr[aria-current=true]');"
        "const inner = row.getBoundingClientRect();"
        "const outer = row.closest('.scroll').getBoundingClientRect();"
        "return [row.textContent, inner.top >= outer.top + 32 && inner.bottom <= outer.bottom]"
    )
    for name in ("b70", "b0"):
        browser.run("document.getElementById('find').value = ''")
        browser.one("#find").send_keys(name)
        browser.one("#columns .option").click()
        found, seen = browser.run(sight)
        assert found.startswith(name)
        assert seen
    assert "This column stands for it:" in browser.texts("#asked")[0]
    browser.one(".alternatives tr[data-row='1'] button").click()  # another one of the table
    assert browser.texts("#asked")[0].startswith("b1 was dropped by pass 2")
    browser.run("document.getElementById('find').value = ''")
    browser.one("#find").send_keys("u")
    browser.one("#columns .option").click()
    assert "Kept columns determine it together" in browser.texts("#asked")[0]
    assert browser.complaints() == []


@needs_browser
def test_the_very_name_is_found_first(browser: Browser, tmp_path: Path) -> None:
    names = ("big nAring", "nAringing", "naring", "nAring")
    rows = [decision(name) for name in names[:3]] + [dropped("nAring", "big nAring")]
    browser.open(write_report(write_run(tmp_path, rows)))
    browser.one("#find").send_keys("nAring")
    found = browser.texts("#columns .option .name")
    assert found == ["nAring", "naring", "nAringing", "big nAring"]


@needs_browser
def test_list_says_what_its_numbers_mean(browser: Browser, tmp_path: Path) -> None:
    count = "#columns-count"
    browser.open(write_report(full_run(tmp_path / "some")))
    assert browser.texts(count) == ["2 kept columns; “for 5” means 5 similar ones"]
    browser.open(write_report(EDGES["one column"](tmp_path / "one")))
    assert browser.texts(count) == ["1 kept column"]
    browser.open(write_report(EDGES["everything constant"](tmp_path / "none")))
    assert browser.texts("#columns .empty")[0].startswith("No column was kept. Type")
    browser.one("#find").send_keys("nothing like it")
    assert browser.texts("#columns .empty") == ["No such column."]


@needs_browser
def test_matrix_says_what_is_undefined_and_how_it_is_ordered(
    browser: Browser, tmp_path: Path
) -> None:
    labels = (
        "const plot = Bokeh.documents.flatMap((d) => d.roots()).find((r) => r.name === 'matrix');"
        "return [...plot.references()].filter((m) => (m.name || '').startsWith('matrix-')"
        " && m.axis_label).map((m) => m.axis_label)"
    )
    shown = "return !document.getElementById('undefined').hidden"
    ready = "return document.querySelector('.segmented [aria-pressed=true]') !== null"
    browser.open(write_report(EDGES["all undefined"](tmp_path / "undefined")))
    browser.wait(ready)
    assert browser.run(shown)
    assert browser.run(labels) == ["columns, in the order of the input"] * 2
    browser.open(write_report(EDGES["all dropped but one"](tmp_path / "one")))
    browser.wait(ready)
    assert not browser.run(shown)
    assert browser.run(labels) == ["columns, by community"] * 2
    assert browser.texts("#matrix-note")[0].startswith("31 columns: one community. ")


@needs_browser
def test_matrix_is_read_zoomed_and_clicked(browser: Browser, tmp_path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    names = [f"c{i}" for i in range(40)]
    values = correlations(40)
    rows = [decision(n) for n in names]
    browser.open(
        write_report(
            write_run(tmp_path, rows, record([(2, 40, 40)]), {"spearman": (names, values)})
        )
    )
    browser.wait("return document.querySelector('.segmented [aria-pressed=true]') !== null")
    browser.run("document.getElementById('similarity').scrollIntoView({behavior: 'instant'})")
    stage = browser.one("#figure-matrix")
    ranges = (
        "const plot = Bokeh.documents.flatMap((d) => d.roots()).find((r) => r.name === 'matrix');"
        "return [plot.x_range.start, plot.x_range.end, plot.y_range.end, plot.y_range.start]"
    )
    assert browser.run(ranges) == [0, 40, 0, 40]

    ActionChains(browser.driver).move_to_element_with_offset(stage, 100, -60).perform()
    browser.wait("return document.querySelectorAll('#readout dd').length === 2")
    row, column = (int(text[1:]) for text in browser.texts("#readout dd"))
    assert row < column  # above the diagonal, as row 0 is on top
    told = browser.texts("#readout b")[0].replace("\N{MINUS SIGN}", "-")
    assert float(told.split()[-1]) == pytest.approx(values[row, column], abs=0.00501)

    browser.run("arguments[0].focus()", stage)
    browser.keys("+")
    assert browser.run(ranges) == [10, 30, 10, 30]
    browser.keys("\ue012")  # to the left
    assert browser.run(ranges) == [6, 26, 10, 30]
    assert browser.texts("#readout dd") == ["c20", "c16"]  # under the cross, in the middle
    browser.keys("\ue007")  # Enter
    assert browser.texts("#column h3") == ["c20"]
    browser.run("arguments[0].focus()", stage)
    browser.keys("-", "-")
    assert browser.run(ranges) == [0, 40, 0, 40]
    browser.one("[data-zoom=in]").click()
    browser.one("[data-zoom=all]").click()
    assert browser.run(ranges) == [0, 40, 0, 40]

    drag = ActionChains(browser.driver).move_to_element_with_offset(stage, -100, -100)
    drag.click_and_hold().move_by_offset(130, 130).release().perform()
    browser.wait(f"const at = (() => {{ {ranges} }})(); return Math.abs(at[1] - at[0] - 10) < 0.1")
    browser.one("[data-zoom=all]").click()

    ActionChains(browser.driver).move_to_element_with_offset(stage, 100, -60).click().perform()
    browser.wait(
        "return document.querySelector('#column h3').textContent === arguments[0]", f"c{row}"
    )
    assert browser.complaints() == []


@needs_browser
def test_slider_shows_what_would_go_and_what_would_come_back(
    browser: Browser, tmp_path: Path
) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser.open(write_report(run_with_pairs(tmp_path, ["!", *NASTY[:4]])))
    browser.wait("return document.getElementById('verdict').textContent !== ''")
    verdict = "#verdict"
    assert browser.texts(verdict)[0].startswith(
        f"This run: at |Spearman {RHO}| ≥ 0.95 pass 2 kept 4 of 5 columns."
    )
    assert browser.texts("#asked-threshold") == ["0.95"]
    assert not browser.one("[data-table=changes]").is_displayed()
    assert not browser.one("#as-run").is_enabled()

    browser.run("document.getElementById('threshold').focus()")
    browser.keys(*([Keys.ARROW_LEFT] * 20))
    assert browser.texts("#asked-threshold") == ["0.75"]
    assert browser.texts(verdict)[0].endswith(
        "pass 2 would keep 3 of 5 columns: of those it kept in this run 2 would go, and 1 would "
        "come back."
    )
    names = browser.texts("[data-table=changes] button.open")
    changes = browser.texts("[data-table=changes] td:nth-child(2)")
    assert list(zip(names, changes, strict=True)) == [
        ("!", "go"), (NASTY[1], "go"), (NASTY[0], "come back"),
    ]  # fmt: skip
    assert browser.texts("[data-table=changes] td:nth-child(3)")[2] == f"redundant, {RHO} 0.9700"
    assert browser.one("#threshold").get_attribute("aria-valuetext") == "0.75"
    browser.one("[data-table=changes] input").send_keys("script")
    assert browser.texts("[data-table=changes] button.open") == [NASTY[1]]
    browser.run("document.getElementById('as-run').click()")
    assert browser.texts("#asked-threshold") == ["0.95"]
    browser.run("document.getElementById('thresholds').scrollIntoView({behavior: 'instant'})")
    middle = ActionChains(browser.driver).move_to_element(browser.one("#figure-curve"))
    middle.click().perform()
    browser.wait("return document.getElementById('asked-threshold').textContent !== '0.95'")
    assert 0.8 < float(browser.texts("#asked-threshold")[0]) < 0.9
    assert browser.complaints() == []


@needs_browser
def test_figures_follow_the_colour_scheme(browser: Browser, tmp_path: Path) -> None:
    palette = (
        "const plot = Bokeh.documents.flatMap((d) => d.roots()).find((r) => r.name === 'matrix');"
        "return [...plot.references()].find((m) => m.name === 'matrix-colours').palette.join()"
    )
    browser.scheme("light")
    browser.open(write_report(full_run(tmp_path)))
    browser.wait("return document.querySelector('.segmented [aria-pressed=true]') !== null")
    light = browser.run(palette)
    assert light.count("#") == 201
    browser.scheme("dark")
    browser.wait(f"return (() => {{ {palette} }})() !== arguments[0]", light)
    assert browser.complaints() == []


@needs_browser
def test_nasty_names_are_text_everywhere(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_report(full_run(tmp_path, NASTY)))
    for i in range(len(NASTY) - 2):
        browser.run(
            "document.querySelectorAll('[data-table=decisions] tr.row')[arguments[0]].click()",
            i,
        )
    assert NASTY[0] in browser.texts("[data-table=decisions] button.open")
    assert "two\\nlines\\tand a tab" in browser.texts("[data-table=decisions] button.open")
    assert "(no name)" in browser.texts("[data-table=decisions] button.open")
    assert "\\u202eright to left" in browser.texts("[data-table=decisions] button.open")
    assert browser.run("return document.querySelectorAll('main img, main script').length") == 0
    assert browser.complaints() == []  # neither script nor request was even refused


@needs_browser
def test_a_bar_and_its_row_in_the_table_have_one_name(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_report(targeted_run(tmp_path, ("", "two\nlines", "c\x7f", "d\ufeff"))))
    bars = browser.texts("#target .bins > .name")
    assert bars == ["(no name)", "c\\u007f", "two\\nlines", "d\\ufeff"]
    assert browser.texts("[data-table=relevance] td:first-child button.open") == bars


@needs_browser
def test_large_page_opens(browser: Browser, tmp_path: Path) -> None:
    folder = large_run(tmp_path, 20000, lambda i: f"descriptor_{i:05d}_of_family")
    browser.open(write_report(folder))
    browser.wait("return document.querySelector('.segmented [aria-pressed=true]') !== null")
    assert browser.run("return document.querySelectorAll('*').length") < 3000
    assert browser.texts("[data-table=decisions] .count") == ["20,000 columns"]
    browser.one("details:has([data-table=ledger]) summary").click()
    browser.wait("return document.querySelector('[data-table=ledger] tr[data-row]') !== null")
    assert browser.texts("[data-table=ledger] .count") == ["448 readings"]
    assert browser.complaints() == []
