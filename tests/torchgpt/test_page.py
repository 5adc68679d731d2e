"""The chat page in a real browser, without a screen."""

import shutil

import pytest
from chat_models import ANSWERS
from server_thread import DEADLINE, running

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
OPTIONS = [
    "--headless",
    "--no-sandbox",  # which does not work for root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,800",
]
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Chromium and its chromedriver are not installed")


class Page:
    """The page of a server in a browser."""

    def __init__(self, driver, server):
        self.driver = driver
        driver.get(server.url)
        self.wait(lambda: self.all("body[data-ready]"))

    def wait(self, condition):
        """Until ``condition()`` holds; returns it."""
        return WebDriverWait(self.driver, DEADLINE, poll_frequency=0.05).until(lambda _: condition())

    def all(self, selector):
        """Elements by CSS selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        """The one element."""
        [found] = self.all(selector)
        return found

    def say(self, text):
        """Type a message and send it."""
        self.one("#message").send_keys(text, Keys.ENTER)

    def answers(self, count):
        """Texts of the answers, once there are ``count`` of them and the last is finished."""
        self.wait(lambda: len(self.all(".answer .meta")) == count and not self.all(".busy"))
        return [answer.get_property("textContent") for answer in self.all(".answer .text")]

    def set(self, name, value):
        """Give a setting a value."""
        self.driver.execute_script(
            "const e = document.getElementById('settings').elements[arguments[0]]; e.value = arguments[1];"
            "e.dispatchEvent(new Event('input', {bubbles: true}))",
            name, value,
        )  # fmt: skip

    def look_like(self, scheme, width, height=800):
        """Prefer a colour scheme and have a window of this size."""
        command = self.driver.execute_cdp_cmd
        command("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        command("Emulation.setDeviceMetricsOverride", size)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for option in [*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"]:
        options.add_argument(option)
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


def brightness(page, selector):
    """Of an element's background, 0 to 255."""
    color = page.one(selector).value_of_css_property("background-color")
    return sum(map(float, color[color.index("(") + 1 : -1].split(",")[:3])) / 3


def test_a_chat_from_message_to_look_inside(driver, trained):
    with running(trained) as server:
        page = Page(driver, server)
        page.set("temperature", "0")
        page.say("hello")
        assert page.answers(1) == [ANSWERS["hello"]]
        page.say("tag")  # an answer of HTML is text
        assert page.answers(2) == [ANSWERS["hello"], ANSWERS["tag"]]
        assert driver.title == "ScratchGPT"
        assert not page.all(".answer b, .answer script")
        page.all(".answer .last")[-1].click()  # Regenerate
        assert page.answers(2) == [ANSWERS["hello"], ANSWERS["tag"]]
        assert f"{len(ANSWERS['tag'])} tokens · ended by itself" in page.all(".meta")[-1].text

        page.all(".token")[1].click()
        assert page.one("#context").text == "Hi"
        rows = [row.text.split() for row in page.all("#alternatives li")]
        assert rows[0][0] == "i"
        assert page.one("#alternatives .taken code").text == "i"
        chances = [float(row[-2]) for row in rows if "<" not in row and row[0] != "all"]
        assert chances == sorted(chances, reverse=True)
        page.all(".answer > .text")[0].send_keys(Keys.ARROW_RIGHT)
        assert page.one("#context mark").text == "␣"

        for scheme, low, high in (("light", 200, 256), ("dark", 0, 60)):
            for width in (1200, 360):
                page.look_like(scheme, width)
                assert low <= brightness(page, "body") < high
                assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
                for element in (page.one("#send"), page.one("#alternatives"), page.one("#settings-button")):
                    box = element.rect
                    assert box["x"] >= 0
                    assert box["x"] + box["width"] <= width
        page.one("#close").click()
        assert not page.one("#inside").is_displayed()
        page.look_like("light", 1200)

        page.say("ж")  # the model does not know it: the message comes back
        page.wait(lambda: page.one("#error").is_displayed())
        assert "'ж'" in page.one("#error").text
        assert page.one("#message").get_property("value") == "ж"
        page.one("#new").click()
        assert not page.all(".answer")
        unexpected = [entry for entry in driver.get_log("browser") if "400" not in entry["message"]]
        assert unexpected == []


def test_stop_keeps_what_was_written(driver, endless):
    with running(endless, max_new_tokens=15_000) as server:
        page = Page(driver, server)
        page.set("temperature", "0")
        page.set("max_tokens", "15000")
        page.say("hello")
        page.wait(lambda: len(page.all(".token")) > 5)  # it streams
        page.one("#stop").click()
        [text] = page.answers(1)
        assert "stopped by you" in page.one(".meta").text
        assert 5 < len(text) < 15_000
        page.set("max_tokens", "40")
        page.one(".answer .last").click()
        [again] = page.answers(1)
        assert "40 tokens · cut at the limit" in page.one(".meta").text
        assert again != text


def test_a_model_that_cannot_chat_continues(driver, directories):
    with running(directories["llama"]) as server:
        page = Page(driver, server)
        assert "continues what you write" in page.one(".hello").text
        page.set("temperature", "0")
        page.set("max_tokens", "9")
        page.one("#message").send_keys("abc")
        page.one("#send").click()
        [text] = page.answers(1)
        assert text.startswith("abc")
        assert len(text) == 12
        [_, more] = page.all(".answer .last")
        more.click()
        assert page.answers(2)[1].startswith(text)
