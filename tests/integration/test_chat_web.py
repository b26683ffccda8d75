"""The chat's page in a real headless browser."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the extra web is not installed")
pytest.importorskip("selenium", reason="selenium (extra browser) is not installed")
if not shutil.which("chromedriver"):
    pytest.skip("no chromedriver here (Debian: chromium-driver)", allow_module_level=True)

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from dct_tokenizer import build_tokenizer
from dct_tokenizer.show import look

QUESTIONS = ("What color is the shape?", "Where is it?")


@pytest.fixture(scope="module")
def runs(tiny_model, tmp_path_factory) -> list[Path]:
    from dct_vl.export.import_hf import import_folder

    folder = tmp_path_factory.mktemp("runs")
    found = [folder / name for name in ("dct28_420", "pixel")]
    for run in found:
        import_folder(tiny_model, run, tokenizer=run.name)
    return found


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    # noise that only the lossless wire shows unchanged
    pixels = np.random.default_rng(3).integers(0, 256, (94, 131, 3), np.uint8)
    path = tmp_path_factory.mktemp("picture") / "noise.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def address(runs, tmp_path_factory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "dct_vl", "chat", *map(str, runs), "--web"]
    log = tmp_path_factory.mktemp("log") / "web.log"
    with open(log, "wb") as output:
        server = subprocess.Popen(
            [*command, f"--port={port}", "--max-new-tokens=6", "--max-pixels=12544"],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "http_proxy": "http://127.0.0.1:9"},
        )
    try:
        for _ in range(600):
            assert server.poll() is None, log.read_text()
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1280,1150"):
        options.add_argument(f"--{argument}")
    options.add_argument("--disable-dev-shm-usage")
    options.add_argument("--no-proxy-server")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def wait(browser: Any, condition: Any) -> Any:
    return WebDriverWait(browser, 60, ignored_exceptions=(Exception,)).until(condition)


def numbers(browser: Any) -> str:
    return browser.find_element(By.CSS_SELECTOR, "#numbers textarea").get_property("value")


def bubbles(browser: Any) -> list[str]:
    found = browser.find_elements(By.CSS_SELECTOR, "#messages .message-content")
    return [one.text.strip() for one in found]


def ask(browser: Any, question: str, number: int) -> str:
    """Ask and return the answer, once it has stopped growing."""
    box = browser.find_element(By.CSS_SELECTOR, "#question textarea")
    box.send_keys(question)
    browser.find_element(By.ID, "ask").click()
    wait(browser, lambda _: len(bubbles(browser)) == 2 * number and bubbles(browser)[-1])
    wait(browser, lambda _: box.get_property("value") == "")
    before = ""
    while before != (before := bubbles(browser)[-1]):
        time.sleep(1)
    return before


def choose(browser: Any, name: str) -> None:
    box = browser.find_element(By.CSS_SELECTOR, "#tokenizer input")
    box.click()
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(name, Keys.ENTER)


def spoken(runs: list[Path], tokenizer: str, picture: Path) -> list[str]:
    """The same conversation, asked of the engine."""
    from dct_vl.inference.chat.conversation import Conversation, read_medium
    from dct_vl.inference.generate.engine import Reply, open_engine
    from dct_vl.inference.generate.replicas import ParallelSizes
    from dct_vl.inference.sampling import AnswerSettings

    run = next(run for run in runs if run.name == tokenizer)
    engine = open_engine(run, AnswerSettings(max_pixels=12544), ParallelSizes())
    conversation = Conversation(pending=[read_medium("image", picture)])
    answers = []
    for question in QUESTIONS:
        *_, reply = conversation.ask(engine, question, 6)
        assert isinstance(reply, Reply)
        answers.append(reply.text if reply.is_finished else f"{reply.text} […]")
    return answers


def test_a_picture_is_seen_and_asked_about(address, browser, runs, picture):
    browser.get(address)
    upload = wait(
        browser, lambda _: browser.find_element(By.CSS_SELECTOR, "#picture input[type=file]")
    )
    upload.send_keys(str(picture))
    pixels = np.asarray(Image.open(picture))
    for tokenizer in ("dct28_420", "pixel", "dct28_lp"):
        if tokenizer != "dct28_420":
            choose(browser, tokenizer)
        view = look(build_tokenizer(tokenizer, max_pixels=12544), pixels)
        wait(browser, lambda _, name=tokenizer: f"{name}:" in numbers(browser))
        assert "original 131 x 94" in numbers(browser)
        assert f"{view.plan.num_llm_tokens} visual tokens" in numbers(browser)
        psnr = "no loss" if np.isinf(view.psnr) else f"PSNR {view.psnr:.1f} dB"
        assert psnr in numbers(browser)
        assert not bubbles(browser), "another tokenizer begins another conversation"
        shown = wait(browser, lambda _: browser.find_element(By.CSS_SELECTOR, "#seen img"))
        wait(browser, lambda _, shown=shown, v=view: same(shown.get_property("src"), v.seen))
        if tokenizer == "dct28_lp":
            continue
        expected = spoken(runs, tokenizer, picture)
        answers = [ask(browser, text, number) for number, text in enumerate(QUESTIONS, start=1)]
        assert [" ".join(x.split()) for x in answers] == [" ".join(x.split()) for x in expected]
        if folder := os.environ.get("DCT_VL_SCREENSHOTS"):
            browser.save_screenshot(f"{folder}/chat_{tokenizer}.png")
    box = browser.find_element(By.CSS_SELECTOR, "#question textarea")
    box.send_keys("Seen by none", Keys.ENTER)
    toast = wait(browser, lambda _: browser.find_element(By.CSS_SELECTOR, ".toast-body"))
    assert "dct28_lp can be looked through only" in toast.text


def same(url: str, expected: np.ndarray) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        return np.array_equal(np.asarray(Image.open(answer).convert("RGB")), expected)


def test_the_page_asks_nobody_else_and_logs_no_errors(address, browser):
    """Reads what the browser did in the test before."""
    asked = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.append(message["params"]["request"]["url"])
    assert any("upload" in url for url in asked)
    own = (address, "data:", "blob:", "chrome")
    assert not [url for url in asked if not url.startswith(own)]
    severe = [
        entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"
    ]
    assert not severe


def test_the_port_is_of_this_machine_alone_and_may_be_taken(address, runs):
    port = int(address.rpartition(":")[2])
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.2", port)) != 0, "bound to more than 127.0.0.1"
    command = [sys.executable, "-m", "dct_vl", "chat", str(runs[1]), "--web", f"--port={port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert f"nothing can listen at 127.0.0.1:{port}" in " ".join(done.stderr.split())
