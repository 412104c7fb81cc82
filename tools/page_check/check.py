#!/usr/bin/env python3
"""The chat page in headless Chromium, on a server of the embedded model.

    check.py DSV3 [--chromium PATH] [--screenshots DIR]

DSV3 is the binary. Needs playwright from PyPI, which drives the system's Chromium; run.sh sees to both.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

QUESTION = "What is 27 + 58?"


@contextmanager
def server(binary, *options):
    """A running `dsv3 serve`; gives its address."""
    with tempfile.TemporaryDirectory() as cache:
        command = [binary, "serve", "--port", "0", "--cache", cache, *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if found := re.search(r"^serving .* at (http://127\.0\.0\.1:\d+)", line):
                    break
            else:
                sys.exit("page_check: the server ended:\n" + "".join(lines))
            yield found[1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.stdout.read()
            assert process.wait(timeout=30) == 0, "the server did not end well"


class Page:
    """A page and all that must not happen on it."""

    def __init__(self, browser, address, **options):
        self.address = address
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.wrong = []
        self.page.on("console", lambda message: message.type == "error" and self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", self.see)
        self.page.goto(address)

    def see(self, request):
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.wrong.append(f"a request to {request.url}")

    def ask(self, text):
        self.page.locator("#input").fill(text)
        self.page.keyboard.press("Enter")

    def answered(self, count=1):
        answers = self.page.locator(".message.assistant")
        expect(answers).to_have_count(count, timeout=30_000)
        expect(self.page.locator("#send")).to_be_visible(timeout=60_000)
        return answers.last

    def end(self):
        assert not self.wrong, self.wrong
        self.context.close()


def wait_until_ready(page):
    expect(page.page.locator("#model")).to_have_text("dsv3-tiny", timeout=30_000)
    # What Chromium says of a status of 503, while the model is loaded, is what is wanted here.
    page.wrong = [line for line in page.wrong if "503" not in line]


def asks_and_answers(page):
    page.ask(QUESTION)
    answer = page.answered()
    expect(answer.locator("> .body")).to_contain_text("85")
    thought = answer.locator(".thought")
    expect(thought).to_be_visible()
    assert thought.get_attribute("open") is None, "a thought is folded"
    thought.locator("summary").click()
    expect(thought.locator(".body")).to_be_visible()
    expect(answer.locator(".figures")).to_contain_text(re.compile(r"\d+ tokens/s"))
    expect(answer.locator(".figures")).to_contain_text("from the cache")


def regenerates_and_edits(page):
    page.page.locator(".message.assistant .regenerate").last.click()
    expect(page.answered().locator("> .body")).to_contain_text("85")
    page.page.locator(".message.user .edit").last.click()
    expect(page.page.locator("#input")).to_have_value(QUESTION)
    expect(page.page.locator(".message")).to_have_count(0)
    page.ask("What is 40 - 12?")
    expect(page.answered().locator("> .body")).to_contain_text("28")


# The embedded model answers faster than anybody can stop it: the page gets its answer in pieces, slowly.
SLOW = """() => {
    const real = window.fetch;
    window.fetch = async (url, options) => {
        const response = await real(url, options);
        if (!String(url).includes("completions")) return response;
        let rest = "";
        const slow = new TransformStream({
            async transform(bytes, controller) {
                const events = (rest + new TextDecoder().decode(bytes, { stream: true })).split("\\n\\n");
                rest = events.pop();
                for (const event of events) {
                    await new Promise((resolve) => setTimeout(resolve, 50));
                    if (options.signal.aborted) throw options.signal.reason;
                    controller.enqueue(new TextEncoder().encode(`${event}\\n\\n`));
                }
            },
        });
        return new Response(response.body.pipeThrough(slow), response);
    };
    window.restoreFetch = () => { window.fetch = real; };
}"""


def stops_in_the_middle(page):
    page.page.keyboard.press("Control+Shift+O")
    expect(page.page.locator(".message")).to_have_count(0)
    page.page.evaluate(SLOW)
    page.ask("What is 27 + 58?")
    thought = page.page.locator(".message.assistant .thought .body")
    expect(thought).to_contain_text("7", timeout=10_000)
    page.page.locator("#stop").click()
    answer = page.answered()
    expect(answer.locator(".figures")).to_have_text("stopped")
    text = thought.text_content()
    page.page.wait_for_timeout(300)
    assert thought.text_content() == text and "85" not in answer.locator("> .body").text_content()
    page.page.evaluate("window.restoreFetch()")
    # It goes on from here as ever.
    page.page.locator(".message.assistant .regenerate").last.click()
    expect(page.answered().locator("> .body")).to_contain_text("85")
    page.page.locator("#conversations .delete").first.click()


def stops_before_the_first_token(page):
    page.page.keyboard.press("Control+Shift+O")
    expect(page.page.locator(".message")).to_have_count(0)
    page.page.route("**/v1/chat/completions", lambda route: None)
    page.ask("Tell me a story about a bear and a cake.")
    expect(page.page.locator("#stop")).to_be_visible()
    page.page.keyboard.press("Escape")
    expect(page.answered().locator(".figures")).to_have_text("stopped")
    page.page.unroute("**/v1/chat/completions")


def keeps_conversations(page):
    titles = page.page.locator("#conversations .open")
    expect(titles).to_have_count(2)
    page.page.reload()
    wait_until_ready(page)
    expect(titles).to_have_count(2)
    titles.last.click()
    expect(page.page.locator(".message.user")).to_contain_text("40 - 12")
    page.page.locator("#conversations .delete").first.click()
    expect(titles).to_have_count(1)


def shows_markup_as_text(page):
    page.page.keyboard.press("Control+Shift+O")
    page.ask("<img src=x onerror=document.title='broken'> **bold**")
    page.answered()
    expect(page.page.locator(".message.user > .body")).to_contain_text("<img src=x")
    assert page.page.locator("#messages img").count() == 0
    assert page.page.title() == "dsv3"


def renders_what_grows_as_the_whole(page):
    """Any text, as it comes, must be shown as markdown shows all of it; and what has been shown stays the same element."""
    wrong = page.page.evaluate(
        """async () => {
            const { GrowingMarkdown, markdown } = await import("/markdown.js");
            const pieces = ["a", " ", "\\n", "\\n\\n", "- ", "1", ". ", "1. b\\n", "```", "```\\n", "# ", ">", "> c\\n", "**d**", "  e",
                "~~~\\n", "`f`", "\\n  ", "\\t"];
            let seed = 1;
            const random = (count) => (seed = (seed * 48271) % 2147483647) % count;
            for (let text = 0; text < 3000; text += 1) {
                const [grown, whole] = [document.createElement("div"), document.createElement("div")];
                const growing = new GrowingMarkdown(grown);
                for (let length = 0, all = ""; length < 30; length += 1) {
                    all += pieces[random(pieces.length)];
                    if (random(3)) continue;
                    growing.update(all);
                    whole.replaceChildren(...markdown(all));
                    if (grown.innerHTML !== whole.innerHTML) return { all, grown: grown.innerHTML, whole: whole.innerHTML };
                }
            }
            const element = document.createElement("div");
            const growing = new GrowingMarkdown(element);
            growing.update("one\\n\\ntwo\\n\\nth");
            const [first] = element.children;
            growing.update("one\\n\\ntwo\\n\\nthree\\n\\nfour");
            return element.children[0] === first ? null : "a finished block is made anew";
        }"""
    )
    assert wrong is None, wrong


def stays_fast_in_a_long_answer(page):
    """The time of a frame at the end of an answer of 20,000 tokens, against making all of it anew."""
    grown, whole = page.page.evaluate(
        """async () => {
            const { GrowingMarkdown, markdown } = await import("/markdown.js");
            const part = "A line with `code` and **strength** that goes on for a while.\\n\\n- one\\n- two\\n\\n```\\nlet x = 1;\\n```\\n\\n";
            const text = part.repeat(Math.ceil(80_000 / part.length));
            const box = document.getElementById("messages");
            const element = document.createElement("div");
            box.append(element);
            const time = (update) => {
                const start = performance.now();
                for (let frame = 0; frame < 20; frame += 1) {
                    update(text.slice(0, text.length - 80 + 4 * frame));
                    box.scrollTop = box.scrollHeight; // and so the layout
                }
                return (performance.now() - start) / 20;
            };
            const growing = new GrowingMarkdown(element);
            growing.update(text.slice(0, -80));
            const grown = time((text) => growing.update(text));
            const whole = time((text) => element.replaceChildren(...markdown(text)));
            element.remove();
            return [grown, whole];
        }"""
    )
    print(f"a frame at 20,000 tokens: {grown:.1f} ms; all anew: {whole:.1f} ms", flush=True)
    assert grown < whole / 3, "the whole answer is made anew"


def keeps_settings(page):
    page.page.keyboard.press("Control+,")
    settings = page.page.locator("#settings")
    expect(settings).to_be_visible()
    settings.locator("[name=max_tokens]").fill("3")
    settings.locator("[name=temperature]").fill("0")
    settings.get_by_role("button", name="Close").click()
    page.page.reload()
    wait_until_ready(page)
    page.page.keyboard.press("Control+Shift+O")
    page.ask(QUESTION)
    expect(page.answered().locator(".figures")).to_contain_text("3 tokens")
    expect(page.page.locator(".message.assistant .figures")).to_contain_text("ended at the limit")


def shows_refusals(page):
    page.page.evaluate("localStorage.setItem('dsv3.settings', JSON.stringify({ top_p: 2 }))")
    page.page.keyboard.press("Control+Shift+O")
    page.ask(QUESTION)
    expect(page.answered().locator(".error")).to_contain_text("top_p")
    # What Chromium says of a status of 400 is what is wanted here.
    page.wrong = [line for line in page.wrong if "400" not in line]
    page.page.evaluate("localStorage.removeItem('dsv3.settings')")


def shows_experts(page):
    page.page.locator("#experts-open").click()
    page.ask(QUESTION)
    page.answered(2)
    expect(page.page.locator("#experts-caption")).to_contain_text("experts from left")
    drawn = page.page.evaluate(
        """() => {
            const canvas = document.querySelector("#experts-canvas");
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return data.some((value) => value > 0);
        }"""
    )
    assert drawn, "the picture of experts is empty"
    page.page.locator("#experts-open").click()
    expect(page.page.locator("#experts")).to_be_hidden()


def is_readable_in_both_themes(page):
    light = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    for _ in range(2):
        page.page.locator("#theme").click()
    expect(page.page.locator("#theme")).to_have_text("Theme: dark")
    dark = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert light != dark, (light, dark)


# Whoever has given the key asks before the page knows the model: it gets no answer about that until `answerModels`.
LATE = """() => {
    const real = window.fetch;
    const held = new Promise((resolve) => { window.answerModels = resolve; });
    window.fetch = async (url, options) => {
        const stopped = new Promise((resolve) => options.signal?.addEventListener("abort", resolve));
        if (String(url).endsWith("/models")) await Promise.race([held, stopped]);
        return real(url, options);
    };
}"""


def wants_a_key(browser, binary):
    with server(binary, "--api-key", "secret") as address:
        page = Page(browser, address)
        expect(page.page.locator("#model")).to_contain_text("key", timeout=30_000)
        page.page.evaluate(LATE)
        page.page.keyboard.press("Control+,")
        page.page.locator("#settings [name=api_key]").fill("secret")
        page.page.locator("#settings").get_by_role("button", name="Close").click()
        page.ask(QUESTION)
        page.page.locator("#stop").click()
        expect(page.answered().locator(".figures")).to_have_text("stopped")
        page.ask(QUESTION)
        expect(page.page.locator("#stop")).to_be_visible()
        page.page.evaluate("answerModels()")
        expect(page.answered(2).locator("> .body")).to_contain_text("85")
        page.wrong = [line for line in page.wrong if "401" not in line]
        page.end()


def take_screenshots(browser, address, directory):
    directory.mkdir(parents=True, exist_ok=True)
    for name in ["light", "dark"]:
        page = Page(browser, address, color_scheme=name, viewport={"width": 1100, "height": 760})
        wait_until_ready(page)
        page.page.locator("#experts-open").click()
        page.ask(QUESTION)
        answer = page.answered()
        answer.locator(".thought summary").click()
        page.page.screenshot(path=directory / f"chat-{name}.png")
        page.end()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dsv3")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--screenshots", type=Path)
    args = parser.parse_args()
    with sync_playwright() as playwright:
        # Root, as in a container, has no sandbox.
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=args.chromium, args=sandbox)
        with server(args.dsv3) as address:
            page = Page(browser, address)
            wait_until_ready(page)
            tests = [asks_and_answers, regenerates_and_edits, stops_in_the_middle, stops_before_the_first_token,
                     keeps_conversations, shows_markup_as_text,
                     renders_what_grows_as_the_whole, stays_fast_in_a_long_answer, keeps_settings, shows_refusals, is_readable_in_both_themes]
            for test in tests:
                start = time.monotonic()
                test(page)
                print(f"{test.__name__}: ok, {time.monotonic() - start:.1f} s", flush=True)
            page.end()
            page = Page(browser, address)
            wait_until_ready(page)
            asks_and_answers(page)
            shows_experts(page)
            print("shows_experts: ok", flush=True)
            page.end()
            if args.screenshots:
                take_screenshots(browser, address, args.screenshots)
        wants_a_key(browser, args.dsv3)
        print("wants_a_key: ok", flush=True)
        browser.close()


if __name__ == "__main__":
    main()
