"""The report: what it says, that it is one safe file, and that Chromium shows, filters and plays it."""

import io
import json
import re
import shutil
from base64 import b64decode
from html.parser import HTMLParser

import av
import numpy as np
import pytest
from PIL import Image
from thin import patch_networks, thin_networks  # noqa: F401
from train_fixtures import SMALL, avpipe, imagenet_weights, linked

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.paths import Root
from avpipe.train.data.open import open_shards
from avpipe.train.evaluation.evaluate import Score
from avpipe.train.evaluation.run import Request, run_eval
from avpipe.train.models.recipes import get_recipe
from avpipe.train.reports.html import report
from avpipe.train.reports.html.gallery import Shown, choose_clips
from avpipe.train.reports.html.report import write_report
from avpipe.train.reports.stored import read_scores
from avpipe.train.run.fit import fit
from avpipe.train.run.logs import VALIDATION

pytest_plugins = ["train_fixtures"]
pytestmark = pytest.mark.heavy
HOSTILE = "</script><img src=x onerror=alert(1)>'\"&amp;$title"


@pytest.fixture(scope="session")
def two_runs(once, done_root):
    """A root with the runs `first` and `second`, and the baseline `centre`, scored on synth_test. Do not change it."""

    def make(folder):
        root = linked(folder, done_root)
        with pytest.MonkeyPatch.context() as patch:
            patch_networks(patch)
            for seed, name in enumerate(("first", "second")):
                recipe = get_recipe("lvs-small", [*SMALL, "epochs=2", f"seed={seed}"])
                fit(recipe, open_shards(root.shards / "synth_train"), root.runs / name, workers=0)
                run_eval(root, Request(split="synth_test", checkpoint=name, protocol="avpipe,lvs", workers=0))
        run_eval(root, Request(split="synth_test", baseline="centre"))

    return Root(once("two_runs", make))


@pytest.fixture(scope="session")
def page_of_two(once, two_runs):
    """The report of both runs."""

    def make(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch_networks(patch)
            write_report(two_runs, ["first", "second"], folder / "report.html")

    return once("page_of_two", make) / "report.html"


@pytest.fixture
def own_root(two_runs, tmp_path):
    """A copy of the runs that a test may change."""
    shutil.copytree(two_runs.runs, tmp_path / "runs", ignore=shutil.ignore_patterns("tensorboard"))
    return linked(tmp_path, two_runs)


def embedded(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL).group(1))


class Elements(HTMLParser):
    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def elements_of(text):
    parser = Elements()
    parser.found = []
    parser.feed(text)
    return parser.found


def test_the_page_holds_all_it_needs(page_of_two):
    text = page_of_two.read_text()
    elements = elements_of(text)
    for tag, attributes in elements:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    assert "default-src 'none'" in text and "@import" not in text and "url(http" not in text
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    drawings = [attributes for tag, attributes in elements if tag == "svg"]
    assert len(drawings) == 4 and all(some["role"] == "img" and some["aria-label"] for some in drawings)
    assert "$" not in re.sub(r"<script.*", "", text, flags=re.DOTALL)


def test_the_tables_say_what_the_evaluation_says(two_runs, page_of_two):
    text = page_of_two.read_text()
    for name in ("first", "second"):
        result = json.loads((two_runs.runs / name / "eval/synth_test/metrics.json").read_text())
        for score in (result["floor"], result, result["ceiling"]):
            assert f"{score['ciou']:.3f}" in text and f"{score['auc']:.3f}" in text
        assert f"{result['protocols']['lvs']['ciou']:.3f}" in text
        assert f"drop {result['wrong_audio']['drop']:.3f}".replace("-", "−") in text
        assert f"{name}: trained on synth_train (16 clips), step 8" in text
        assert all(label in text for label in result["by_class"])
    assert "4 of 4 listed clips scored" in text
    assert all(
        words in text for words in ("Training loss, from", "Fraction of clips that reach a threshold", "By class")
    )


def test_the_gallery_holds_picture_map_boxes_and_sound(two_runs, page_of_two):
    data = embedded(page_of_two)
    assert data["runs"] == ["first", "second"] and data["groups"][-1] == "Random" and len(data["clips"]) == 4
    assert "Most improved: second against first" in data["groups"]
    shards = open_shards(two_runs.shards / "synth_test")
    for clip in data["clips"]:
        number = shards.clip_ids.index(clip["id"])
        assert clip["label"] == shards.labels[number] and len(clip["boxes"]) == len(shards.boxes[number])
        frame = Image.open(io.BytesIO(b64decode(clip["frame"].split(",")[1])))
        assert list(frame.size) == clip["size"] and max(frame.size) == 320
        for place, name in enumerate(data["runs"]):
            score = next(iter(read_scores(two_runs.runs / name / "eval/synth_test/per_clip.parquet").values()))
            row = next(row for row in score.rows if row["clip_id"] == clip["id"])
            assert clip["runs"][place]["ciou"] == pytest.approx(row["ciou"], abs=1e-4)
            heat = np.asarray(Image.open(io.BytesIO(b64decode(clip["runs"][place]["map"].split(",")[1]))))
            assert heat.shape == (112, 112, 4) and heat[..., 3].min() < 10 and heat[..., 3].max() > 220
            y, x = np.unravel_index(heat[..., 3].argmax(), (112, 112))
            assert clip["runs"][place]["peak"] == pytest.approx([x / 112, y / 112], abs=0.05)
        with av.open(io.BytesIO(b64decode(clip["sound"].split(",")[1]))) as container:
            samples = sum(frame.samples for frame in container.decode(audio=0))
        assert samples / 16_000 == pytest.approx(3, abs=0.15)


def test_one_run_no_clip_and_a_baseline(two_runs, tmp_path):
    out = tmp_path / "report.html"
    done = write_report(two_runs, ["first"], out, clips=2)
    assert embedded(out)["groups"] == ["Best of first", "Worst of first", "Random"] and done["notes"] == []
    assert done["bytes"] == out.stat().st_size and '<p><span class="run-1' not in out.read_text()
    write_report(two_runs, ["baseline-centre", "first"], out, clips=1)
    assert all(clip["runs"][0]["map"] for clip in embedded(out)["clips"])
    assert "baseline-centre</span>: no training log" in out.read_text()
    write_report(two_runs, ["first"], out, clips=0)
    assert embedded(out)["clips"] == []


def test_object_guided_maps_are_those_that_were_scored(own_root, tmp_path):
    weights = imagenet_weights(tmp_path)
    run_eval(own_root, Request(split="synth_test", checkpoint="first", object_guided=True, weights=weights, workers=0))
    runs = [str(own_root.runs / "first/eval" / name) for name in ("synth_test", "synth_test-object-guided")]
    done = write_report(own_root, runs, tmp_path / "report.html", weights=weights)
    assert (done["runs"], done["notes"]) == (["first", "first + object-guided"], [])
    assert all(clip["runs"][0]["map"] != clip["runs"][1]["map"] for clip in embedded(tmp_path / "report.html")["clips"])


def score_of(values):
    rows = [
        {"clip_id": f"{n}", "ciou": value, "box_area": 0.0 if value is None else 0.5, "negative": False}
        for n, value in enumerate(values)
    ]
    return Score(protocol="avpipe", rows=rows)


def test_groups_of_clips():
    shown = [
        Shown(name=name, path=None, score=score_of(values))
        for name, values in (("a", [0.1, 0.9, 0.5, None, 0.4, 0.2]), ("b", [0.3, 0.2, 0.5, 0.9, float("nan"), 0.1]))
    ]
    groups = choose_clips(shown, {"0", "1", "2", "3", "4"}, 2)
    assert groups["Best of a"] == ["1", "2"] and groups["Worst of a"] == ["0", "4"]
    assert groups["Best of b"] == ["2", "0"] and groups["Worst of b"] == ["4", "1"]
    assert groups["Most improved: b against a"] == ["0"]
    assert groups["Most worsened: b against a"] == ["1", "4"]
    assert len(groups["Random"]) == 2 and set(groups["Random"]) <= {"0", "1", "2", "4"}


def make_hostile(root, monkeypatch):
    """Labels and names that try to be HTML, wherever strangers could put them."""
    folder = root.runs / "first/eval/synth_test"
    result = json.loads((folder / "metrics.json").read_text())
    result["model"] = HOSTILE
    for some in (result, *result["protocols"].values()):
        some["by_class"] = {HOSTILE: next(iter(some["by_class"].values()))}
    (folder / "metrics.json").write_text(json.dumps(result))
    real = report.open_split

    def opened(*split):
        shards = real(*split)
        shards.labels = [HOSTILE, *[None] * (len(shards) - 1)]
        return shards

    monkeypatch.setattr(report, "open_split", opened)


def test_what_strangers_wrote_stays_text(own_root, monkeypatch, tmp_path):
    make_hostile(own_root, monkeypatch)
    write_report(own_root, ["first"], tmp_path / "hostile.html")
    text = (tmp_path / "hostile.html").read_text()
    elements = elements_of(text)
    assert not [tag for tag, attributes in elements if tag == "img" or "onerror" in attributes]
    assert [tag for tag, _ in elements].count("script") == text.count("</script>") == 2
    assert {clip["label"] for clip in embedded(tmp_path / "hostile.html")["clips"]} == {HOSTILE, None}


def test_what_is_missing_or_newer_is_told_and_the_rest_is_there(own_root, tmp_path, caplog):
    out = tmp_path / "report.html"
    shutil.copy(own_root.runs / "second/last.pt", own_root.runs / "first/last.pt")
    done = write_report(own_root, ["first"], out)
    assert "maps of first do not give the stored cIoU" in done["notes"][0]
    assert "do not give the stored cIoU" in out.read_text() and "run `avpipe eval` again" in caplog.text
    (own_root.runs / "first/last.pt").write_bytes(b"no checkpoint")
    (own_root.runs / "first/log.csv").write_text("step,epoch,loss,clips_per_s,data_wait\n1,1,0.5\n2,1")
    done = write_report(own_root, ["first"], out)
    assert "No maps of first" in done["notes"][0] and "no training log" in out.read_text()
    clip = embedded(out)["clips"][0]
    assert clip["frame"] and clip["sound"] and clip["runs"][0]["map"] is None
    rows = "step,epoch,measure,value\n4,1,validation_loss,2.5\n8,2,validation_loss,1.5\n8,2,valid"
    (own_root.runs / "second" / VALIDATION).write_text(rows)
    (own_root.path / "shards").unlink()
    done = write_report(own_root, ["second"], out)
    assert "No pictures" in done["notes"][0] and done["clips"] == 0
    assert out.read_text().count("validation (dotted)") == 1


def change(**values):
    def apply(folder):
        path = folder / "metrics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return apply


@pytest.mark.parametrize(
    ("spoil", "runs", "split", "sentence"),
    [
        (shutil.rmtree, ["first"], None, r"first has no evaluation; run: avpipe eval --split SPLIT --checkpoint "),
        (None, ["first"], "vggss", r"no evaluation on vggss; run: avpipe eval --split vggss --checkpoint .*first"),
        (None, ["baseline-centre"], "vggss", r"run: avpipe eval --split vggss --baseline centre"),
        (None, ["nobody"], None, "there is no run 'nobody'"),
        (None, ["first", "first"], None, "first is given twice"),
        (None, ["first"], "../x", "not the name of a split"),
        (
            lambda eval: shutil.copytree(eval, eval.with_name("other")),
            ["first"],
            None,
            r"evaluations on other, synth_test; choose one with --split",
        ),
        (change(split="other"), ["second", "first"], None, "on different splits"),
        (change(listed_sha256="00" * 32), ["second", "first"], None, "on different lists"),
        (change(protocols={}), ["second", "first"], None, "different protocols; run `avpipe eval --protocol all`"),
        (change(protocols={"x": {}}), ["first"], None, "not a complete evaluation"),
        (
            lambda eval: (eval / "metrics.json").write_text('{"split": '),
            ["first"],
            None,
            "not a complete evaluation .* again",
        ),
        (lambda eval: (eval / "per_clip.parquet").unlink(), ["first"], None, "not a complete evaluation"),
        (None, [], None, "about 1 to 6 runs, not 0"),
    ],
)
def test_what_cannot_be_reported_is_a_sentence(own_root, tmp_path, spoil, runs, split, sentence):
    if spoil:
        spoil(own_root.runs / "first/eval/synth_test")
    with pytest.raises(AvpipeError, match=sentence):
        write_report(own_root, runs, tmp_path / "report.html", split)
    assert not (tmp_path / "report.html").exists()


def test_the_command_gives_the_same_file_and_runs_of_one_name_are_told_apart(own_root, two_runs, page_of_two, tmp_path):
    out = tmp_path / "report.html"
    asked = ["report", two_runs.runs / "first", "second", "--split", "synth_test", "-o", out]
    assert "first and second on synth_test" in avpipe(two_runs, *asked)
    assert out.read_bytes() == page_of_two.read_bytes()
    done = write_report(own_root, ["first", str(two_runs.runs / "first")], out, clips=1)
    assert len(set(done["runs"])) == 2 and all(name.endswith("first") for name in done["runs"])


# --- in Chromium ------------------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MANY = 30


@pytest.fixture(scope="module")
def browser():
    """Chromium of this system; without it the test is skipped, and says so."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'avpipe[dev]'")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield running
        running.close()


@pytest.fixture
def open_page(browser):
    """`open_page(path, width)`: the page in a new tab; whatever it complains of or asks for fails the test."""
    pages, faults = [], []

    def open_it(path, width=1280, **options):
        page = browser.new_page(viewport={"width": width, "height": 800}, **options)
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: faults.append(request.url) if request.url.startswith("http") else None)
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield open_it
    for page in pages:
        page.close()
    assert faults == []


@pytest.fixture
def page_of_many(page_of_two, tmp_path):
    """The same report with 30 clips made of its four, each with cIoU of its own."""
    data = embedded(page_of_two)
    four, data["clips"] = data["clips"], []
    for n in range(MANY):
        runs = [one | {"ciou": (n * 7 + 11 * k) % 30 / 30} for k, one in enumerate(four[n % 4]["runs"])]
        own = {"id": f"{n:020}", "label": f"class {n % 4}" if n else None, "groups": [n % 3], "runs": runs}
        data["clips"].append(four[n % 4] | own)
    old = re.search(r'id="data">(.*?)</script>', page_of_two.read_text()).group(1)
    (tmp_path / "many.html").write_text(page_of_two.read_text().replace(old, report._embedded(data)))
    return tmp_path / "many.html"


def cards(page):
    return page.eval_on_selector_all(".card", "cards => cards.map((card) => card.dataset.clip)")


def wait(page, condition):
    """Until a condition holds; Playwright's own way needs `eval`, which the page forbids."""
    for _ in range(100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    pytest.fail(f"never came true: {condition}")


def overlap(a, b):
    across = min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"])
    down = min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"])
    return across > 0.5 and down > 0.5


@pytest.mark.parametrize("width", [390, 1280])
def test_everything_is_shown_and_nothing_is_cut(open_page, page_of_two, width):
    page = open_page(page_of_two, width)
    wait(page, "[...document.querySelectorAll('audio')].every((player) => player.readyState >= 2)")
    assert len(cards(page)) == 4
    pictures = page.eval_on_selector_all("img", "all => all.map((one) => [one.naturalWidth, one.alt])")
    assert len(pictures) == 16 and all(wide > 0 for wide, _ in pictures)
    assert re.fullmatch(r"frame of \S+, .+, cIoU \d\.\d\d by first", pictures[0][1])
    lengths = page.eval_on_selector_all("audio", "all => all.map((one) => one.duration)")
    assert len(lengths) == 4 and all(length == pytest.approx(3, abs=0.15) for length in lengths)
    wide = page.evaluate(
        """() => [...document.querySelectorAll("body *:not(.skip)")].filter((one) => {
             const box = one.getBoundingClientRect();
             return !one.closest(".scroll table, svg") && box.width && (box.right > innerWidth + 1 || box.left < -1);
           }).map((one) => one.outerHTML.slice(0, 100))"""
    )
    assert wide == [] and page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("figure > svg").count() == 4
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    over = page.eval_on_selector_all(".scroll", "all => all.map((one) => one.scrollWidth - one.clientWidth)")
    assert len(over) == 5 and max(over) <= 0
    for kind in ("section", ".card", ".card:first-child > *", "#controls label"):
        boxes = [box for one in page.locator(kind).all() if (box := one.bounding_box())]
        assert len(boxes) > 2
        assert not [(a, b) for n, a in enumerate(boxes) for b in boxes[:n] if overlap(a, b)]


def test_a_sound_plays_and_another_one_stops_it(open_page, page_of_two):
    page = open_page(page_of_two)
    play = "(number) => document.querySelectorAll('audio')[number].play()"
    page.evaluate(play, 0)
    wait(page, "document.querySelectorAll('audio')[0].currentTime > 0.2")
    page.evaluate(play, 1)
    wait(page, "[...document.querySelectorAll('audio')].map((one) => one.paused).join() === 'true,false,true,true'")


def test_filters_order_and_more(open_page, page_of_many):
    page = open_page(page_of_many)
    runs = {clip["id"]: [one["ciou"] for one in clip["runs"]] for clip in embedded(page_of_many)["clips"]}
    status = page.locator("#count")
    assert len(cards(page)) == 24 and status.inner_text() == "24 of 30 clips shown"
    page.click("#more")
    assert len(cards(page)) == MANY and page.locator("#more").is_hidden()
    assert page.evaluate("document.activeElement.dataset.clip") == cards(page)[24]
    for order, key in (
        ("best-1", lambda name: -runs[name][1]),
        ("worst-0", lambda name: runs[name][0]),
        ("gain-1", lambda name: runs[name][0] - runs[name][1]),
        ("clip", lambda name: name),
    ):
        page.select_option("#sort", order)
        found = [key(name) for name in cards(page)]
        assert found == sorted(found)
    page.select_option("#class", label="class 1")
    assert len(cards(page)) == 8 and status.inner_text() == "8 of 8 clips shown; 30 without filters"
    page.select_option("#group", label="Worst of first")
    assert all(int(name) % 12 == 1 for name in cards(page)) and len(cards(page)) == 3
    page.fill("#search", "nothing like it")
    assert cards(page) == [] and page.locator("#empty").is_visible()
    page.click("#clear")
    assert len(cards(page)) == 24 and page.locator("#empty").is_hidden()
    page.fill("#search", "CLASS 2")
    assert all(int(name) % 4 == 2 for name in cards(page)) and len(cards(page)) == 7


def test_the_keyboard_reaches_every_control_maps_can_be_hidden_and_tables_sorted(open_page, page_of_two):
    page = open_page(page_of_two)
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"group", "class", "search", "sort", "maps", "boxes", "grey", "opacity", "undo", "AUDIO"} <= reached
    for control, part in (("#maps", ".map"), ("#boxes", ".view rect")):
        assert page.locator(part).first.is_visible()
        page.uncheck(control)
        assert page.locator(part).first.is_hidden()
        page.check(control)
    page.fill("#opacity", "20")
    assert page.eval_on_selector(".map", "map => getComputedStyle(map).opacity") == "0.2"
    heads = page.locator(".sortable thead button")
    for place, reverse in ((2, True), (2, False), (4, True)):
        heads.nth(place).click()
        column = f".sortable tbody tr > :nth-child({place + 1})"
        values = page.eval_on_selector_all(column, "all => all.map((cell) => Number(cell.dataset.value))")
        assert values == sorted(values, reverse=reverse) and len(values) == 4


def test_the_dark_is_dark(open_page, page_of_two):
    for scheme in ("light", "dark"):
        page = open_page(page_of_two, color_scheme=scheme)
        paper, ink = page.evaluate(
            """() => ["backgroundColor", "color"].map((name) => getComputedStyle(document.body)[name].match(/\\d+/g))"""
        )
        assert (int(paper[0]) > 200 > 60 > int(ink[0])) == (scheme == "light")
        text = page.eval_on_selector("figure > svg text", "text => getComputedStyle(text).fill")
        assert text == f"rgb({', '.join(ink)})"


def test_hostile_names_run_nothing(open_page, own_root, monkeypatch, tmp_path):
    make_hostile(own_root, monkeypatch)
    write_report(own_root, ["first"], tmp_path / "hostile.html")
    page = open_page(tmp_path / "hostile.html", 390)
    assert page.locator("img[src=x]").count() == 0
    assert HOSTILE in page.locator("#cards").inner_text() and HOSTILE in page.locator("h1").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
