"""The page in a real browser, from disk and offline: Debian's Chromium, driven by playwright (the extra `browser`)."""

import shutil

import pytest

from tests.reporting.test_page import enrich, rendered
from tests.reporting.test_report import HOSTILE, TABLE, write_results

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[browser]'")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
QUIET += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
FAMILIES = {name: family for name, (_, family, *_) in TABLE.items()}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    root = tmp_path_factory.mktemp("browser")
    write_results(root)
    enrich(root)
    file = root / "index.html"
    file.write_text(rendered(root), encoding="utf-8")
    return file.as_uri()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, address):
    """Opens the page; afterwards it must have asked for nothing but itself and complained of nothing."""
    contexts, asked, complaints = [], [], []

    def open_page(screen=DESKTOP, anchor="", **options):
        context = chromium.new_context(viewport=screen, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto(address + anchor)
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert {url.split("#")[0] for url in asked if not url.startswith("data:")} <= {address}
    assert complaints == []


def names(tab):
    """The entries of the first part of the table that are to be seen, from the top."""
    rows = tab.locator(".board tbody").first.locator("tr.entry:visible .name")
    return rows.all_inner_texts()


def values(tab, label):
    cells = tab.locator(".board tbody").first.locator(f"td[data-label='{label}']").all()
    return [float(value) for cell in cells if (value := cell.get_attribute("data-value"))]


def ground(tab):
    """The page's background, of 0 (black) to 255."""
    colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    return int(colour.removeprefix("rgb(").split(",")[0])


def test_a_heading_sorts_and_sorts_back(visit):
    tab = visit()
    assert values(tab, "linear probe") == sorted(values(tab, "linear probe"), reverse=True)
    heading = tab.locator(".board thead th", has_text="k-NN")
    heading.locator("button").click()
    assert values(tab, "k-NN") == sorted(values(tab, "k-NN"), reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"
    heading.locator("button").press("Enter")  # by keyboard
    assert values(tab, "k-NN") == sorted(values(tab, "k-NN"))
    assert heading.get_attribute("aria-sort") == "ascending"
    tab.get_by_role("button", name="method", exact=True).click()
    shown = names(tab)
    assert shown == sorted(shown, key=str.casefold)


def test_families_are_filtered(visit):
    tab = visit()
    everything = names(tab)
    contrastive = tab.locator("[data-filter=contrastive]")
    contrastive.press("Space")
    assert names(tab) == [name for name in everything if FAMILIES[name] == "contrastive"]
    assert tab.locator("details.method:visible").count() == 2
    assert tab.locator(".shown").inner_text() == f"2 of {len(TABLE)} shown"
    tab.locator("[data-filter=masked]").click()
    assert names(tab) == [name for name in everything if FAMILIES[name] in ("contrastive", "masked")]
    assert tab.locator(".board tbody:visible").count() == 1  # no control is left
    contrastive.click()
    tab.locator("[data-filter=masked]").click()
    assert names(tab) == everything


def test_columns_come_in_groups(visit):
    tab = visit()
    shown = tab.locator(".board thead th:visible")
    assert "gain" in shown.all_inner_texts()
    assert "CPU-seconds" not in shown.all_inner_texts()
    tab.locator("[data-columns=cost]").click()
    assert "gain" not in shown.all_inner_texts()
    assert {"method", "CPU-seconds", "status"} <= set(shown.all_inner_texts())


@pytest.mark.parametrize("name", ["moco", HOSTILE])
def test_a_name_leads_to_its_section(name, visit):
    tab = visit()
    section = tab.locator("details.method", has=tab.get_by_role("heading", name=name, exact=True))
    assert section.get_attribute("open") is None
    tab.locator(".board .name", has_text=name).click()
    tab.wait_for_function("scrollY > 500")
    assert section.get_attribute("open") is not None
    assert section.locator(".equations, p").first.is_visible()
    assert 0 <= section.bounding_box()["y"] < DESKTOP["height"]


def test_an_address_with_an_anchor_opens_it(visit):
    tab = visit(anchor="#image-byol")
    assert tab.locator("#image-byol").get_attribute("open") is not None
    assert 0 <= tab.locator("#image-byol").bounding_box()["y"] < DESKTOP["height"]


def test_all_methods_open_at_once(visit):
    tab = visit()
    tab.locator(".unfold").click()
    assert tab.locator("details.method[open]").count() == len(TABLE)
    tab.locator(".unfold").click()
    assert tab.locator("details.method[open]").count() == 0


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_the_theme_is_the_systems_until_it_is_chosen(scheme, dark, visit):
    tab = visit(color_scheme=scheme)
    assert (ground(tab) < 60) == dark
    tab.locator(".theme").click()
    assert (ground(tab) < 60) != dark
    tab.reload()
    assert (ground(tab) < 60) != dark  # for this visit


@pytest.mark.parametrize("columns", ["accuracy", "health", "cost"])
def test_a_phone_scrolls_in_one_direction_only(columns, visit):
    tab = visit(PHONE, is_mobile=True, has_touch=True)
    tab.locator(f"[data-columns={columns}]").click()
    tab.locator(".unfold").click()
    tab.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert tab.locator(".narrow").is_visible()
    assert not tab.locator(".wide").is_visible()


def test_every_control_is_reached_by_keyboard(visit):
    tab = visit()
    reached = set()
    for _ in range(40):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.className || document.activeElement.dataset.filter || ''"))
        outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"
    assert "theme scripted" in reached
    assert set(FAMILIES.values()) <= reached


def test_what_is_printed_is_black_on_white_and_has_no_buttons(visit):
    tab = visit(color_scheme="dark")
    tab.emulate_media(media="print")
    assert ground(tab) == 255
    assert tab.locator("button.theme, [data-filter], .unfold").locator("visible=true").count() == 0
    assert tab.locator("details.method:visible").count() == 1  # the leader's, which is open


def test_without_scripts_everything_is_there(visit):
    tab = visit(java_script_enabled=False)
    assert {"gain", "CPU-seconds", "effective rank"} <= set(tab.locator(".board thead th:visible").all_inner_texts())
    assert tab.locator(".scripted:visible").count() == 0
