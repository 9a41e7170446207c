"""The report's page in a browser, as a reader sees, sorts and probes it."""

import json
import pathlib
import shutil

import pytest
from test_inspect import scored
from test_report import write_run

from vitkd_jax import report
from vitkd_jax.data import datasets
from vitkd_jax.diagnostics import running
from vitkd_jax.reporting import beside

playwright = pytest.importorskip(
  "playwright.sync_api", reason="needs tests/browser/requirements.txt"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(not CHROMIUM, reason="needs Debian's chromium"),
]
PHONE, DESKTOP = (390, 844), (1440, 900)
# A class's accuracy in the runs "a" and "b".
CLASSES = {"Shirt": (0.25, 0.5), "Bag": (1.0, 0.985), "Boot": (0.9, 0.62)}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
  """Of a report with every kind of table and picture."""
  runs = tmp_path_factory.mktemp("runs")
  long = runs / ("a_name_without_any_space_" * 4)
  for folder, method, top1 in (
    (runs / "a", "baseline", 0.7),
    (runs / "b", "both", 0.8),
    (long, "both", 0.75),
  ):
    seed = 1 if folder == long else 0
    write_run(folder, method, seed, top1)
  with open(runs / "b" / "metrics.jsonl", "a") as file:
    for step in (20, 100):
      looks = {"grad_cosine/mimic": step / 1000, "rank/block_0": 7.5}
      file.write(json.dumps({"step": step, **looks}) + "\n")
  for index, name in enumerate("ab"):
    scores = runs / name / "scores"
    scores.mkdir()
    classes = [
      {"name": n, "count": 1200, "accuracy": x[index]}
      for n, x in CLASSES.items()
    ]
    found = {"data": "mini", "split": "test", "classes": classes}
    (scores / "evaluation.json").write_text(json.dumps(found))
  data = datasets.load("fashion_mini", "test"), datasets.info("fashion_mini")
  teacher = scored(3, width=24, num_heads=3, depth=3)
  found = running.inspect(
    scored(0), *data, teacher=teacher, images=32, batch_size=16
  )
  maps = runs / "b" / "maps"
  maps.mkdir()
  for name, text in beside.written(found).items():
    content = text.encode() if isinstance(text, str) else text
    (maps / name).write_bytes(content)
  out, _ = report.report([str(runs)])
  return (pathlib.Path(out) / "index.html").as_uri()


@pytest.fixture(scope="module")
def many(tmp_path_factory):
  """Of so many methods that each one's losses are a tile."""
  runs = tmp_path_factory.mktemp("many")
  for i in range(8):
    write_run(runs / f"r{i}", changes={"epochs": float(i)})
  metrics = runs / "r0" / "metrics.jsonl"
  # Labels of ticks are as wide as their numbers.
  metrics.write_text(
    metrics.read_text().replace('raw_nkd": ', 'raw_nkd": 1000')
  )
  for path in runs.glob("*/config.json"):
    text = path.read_text()
    path.write_text(text.replace('"kl": 0.0', '"kl": 0.5, "hard": 0.5'))
  out, _ = report.report([str(runs)])
  return (pathlib.Path(out) / "index.html").as_uri()


@pytest.fixture(scope="module")
def browser():
  arguments = [
    "--disable-quic",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
  ]
  with (
    playwright.sync_playwright() as driver,
    driver.chromium.launch(executable_path=CHROMIUM, args=arguments) as found,
  ):
    yield found


@pytest.fixture(params=["light", "dark"])
def theme(request):
  return request.param


@pytest.fixture
def opened(browser, url):
  """Opens the page at a size; what went wrong is told at the end."""
  wrong, requests, pages, served = [], [], [], set()

  def at(size, theme="light", url=url):
    width, height = size
    page = browser.new_page(
      viewport={"width": width, "height": height}, color_scheme=theme
    )
    pages.append(page)
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: requests.append(asked.url))
    page.goto(url)
    served.add(url)
    return page

  yield at
  for page in pages:
    page.close()
  assert not wrong
  outside = [x for x in requests if not x.startswith(("data:", "about:"))]
  assert set(outside) == served


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_nothing_is_wider_than_the_page(opened, size, theme, url, many):
  for each in (url, many):
    check_widths(opened(size, theme, each), size)


def check_widths(page, size):
  assert page.evaluate("document.documentElement.scrollWidth") == size[0]
  # Labels reach beyond a picture that is too narrow for them, and are cut off.
  cut = page.evaluate("""() => [...document.querySelectorAll("svg text")]
    .filter((text) => text.getBoundingClientRect().width)
    .filter((text) => {
      const [own, all] = [text, text.closest("svg")].map((x) =>
        x.getBoundingClientRect());
      return own.left < all.left - 1 || own.right > all.right + 1;
    }).map((text) => text.textContent)""")
  assert cut == []


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_every_picture_has_a_text_and_every_part_a_link(opened, size):
  page = opened(size)
  pictures = page.locator("svg:visible")
  assert pictures.count() >= 12
  for picture in pictures.all():
    assert picture.get_attribute("role") == "img"
    assert len(picture.get_attribute("aria-label")) > 10
  text = page.locator("svg:visible").first.get_attribute("aria-label")
  assert "baseline 70" in text
  for link in page.locator("nav a").all():
    assert page.locator(link.get_attribute("href")).is_visible()


def column(page, number):
  table = page.get_by_role("region", name="Accuracy by class on mini, test")
  return table.locator(f"tbody tr > :nth-child({number})").all_inner_texts()


def head(page, name):
  table = page.get_by_role("region", name="Accuracy by class on mini, test")
  return table.get_by_role("columnheader", name=name, exact=True)


def test_tables_sort_by_click_and_by_keyboard(opened):
  page = opened(DESKTOP)
  assert column(page, 1) == ["Shirt", "Bag", "Boot"]
  head(page, "a").get_by_role("button").click()
  # As numbers: as texts, 90.0% is above 100.0%.
  assert column(page, 3) == ["100.0%", "90.0%", "25.0%"]
  assert head(page, "a").get_attribute("aria-sort") == "descending"
  head(page, "a").get_by_role("button").click()
  assert column(page, 1) == ["Shirt", "Boot", "Bag"]
  assert head(page, "a").get_attribute("aria-sort") == "ascending"
  page.keyboard.press("Tab")
  page.keyboard.press("Enter")
  assert head(page, "a").get_attribute("aria-sort") is None
  assert head(page, "b").get_attribute("aria-sort") == "descending"
  assert column(page, 4) == ["98.5%", "62.0%", "50.0%"]
  head(page, "class").get_by_role("button").focus()
  page.keyboard.press("Space")
  assert column(page, 1) == ["Bag", "Boot", "Shirt"]


def test_numbers_of_any_kind_sort(opened):
  page = opened(DESKTOP)
  texts = ["-", "1:02:03", "0:35", "1,250", "+6.00 (2.77)", "40 of 100",
           "2.5e-05", "-1.5%", "0.1 → 0.05", "nan"]  # fmt: skip
  found = page.evaluate("texts => texts.map(number)", texts)
  wanted = [None, 3723, 35, 1250, 6, 40, 2.5e-5, -1.5, 0.1, None]
  assert [None if x != x else x for x in found] == wanted


def test_the_pointer_and_the_arrow_keys_show_values(opened):
  for size in (DESKTOP, PHONE):
    page = opened(size)
    picture = page.locator("figure svg:visible").first
    picture.scroll_into_view_if_needed()
    tip = page.locator("#tip")
    assert not tip.is_visible()
    picture.focus()
    page.keyboard.press("ArrowLeft")
    assert tip.inner_text().splitlines() == ["baseline: 68", "step 80"]
    page.keyboard.press("ArrowDown")
    assert tip.inner_text().startswith("nkd + vitkd: 75.5")
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    # The dot lies on the curve, of which each is a path in its order.
    page.keyboard.press("ArrowRight")
    dot = page.locator("circle.dot").bounding_box()
    page.keyboard.press("Escape")
    page.mouse.move(dot["x"] + 5, dot["y"] + 2)
    assert tip.inner_text().startswith("nkd + vitkd: 77.5")


def test_a_matrix_tells_its_values(opened):
  page = opened(DESKTOP)
  figure = page.locator("figure", has_text="Which blocks are alike")
  picture = figure.locator("svg:visible")
  picture.scroll_into_view_if_needed()
  cell = picture.locator("text", has_text="0.").first
  cell.hover()
  first, second = page.locator("#tip").inner_text().splitlines()
  assert first.startswith("student's block 0: 0.")
  assert second == "block of the teacher 0"
  assert first.split(": ")[1][:3] == cell.text_content()[:3]
