"""The page in a real browser: a person types a text and reads the answer."""

import asyncio

import browser
import pytest
from served import make, while_served

SHOWN = "[...document.querySelectorAll('#answers li')].map(item => item.firstChild.textContent)"
CHOOSE = """(() => {{ const field = document.getElementById({field!r}); field.value = {value!r};
    field.dispatchEvent(new Event("change", {{bubbles: true}})); }})()"""


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
def test_typed_asked_and_answered(small, tmp_path):
    async def visit(port):
        async with browser.opened(f"http://127.0.0.1:{port}/", tmp_path / "browser") as page:
            assert await page.value("document.getElementById('model').textContent") == "<a model>"
            # 1. Greedily, after a prefix. The cursor is in the text from the start.
            await page.value(CHOOSE.format(field="prefix", value="the "))
            await page.write("quick fox")
            await page.click("#ask")
            await page.until("document.querySelectorAll('#answers li').length === 1")
            greedy = await page.value(SHOWN)
            hidden = await page.value("document.getElementById('temperature').closest('div').hidden")
            await page.picture(tmp_path / "greedy.png")
            # 2. Beams.
            await page.value(CHOOSE.format(field="method", value="beam"))
            await page.value(CHOOSE.format(field="num_beams", value="3"))
            await page.value(CHOOSE.format(field="num_return_sequences", value="2"))
            await page.click("#ask")
            await page.until("document.querySelectorAll('#answers li').length === 2")
            beams = await page.value(SHOWN)
            await page.picture(tmp_path / "beams.png")
            # 3. Something that is refused.
            await page.value(CHOOSE.format(field="text", value="fox " * 100))
            await page.click("#ask")
            await page.until("!document.getElementById('error').hidden")
            error = await page.value("document.getElementById('error').textContent")
            shown = await page.value(SHOWN)
            await page.picture(tmp_path / "error.png")
            return greedy, hidden, beams, error, shown, page.requests, page.complaints

    def client(port):
        return port, asyncio.run(visit(port))

    port, (greedy, hidden, beams, error, shown, requests, complaints) = while_served(make(small), client)
    assert greedy == small.generate(["the quick fox"], max_length=6) and hidden
    (expected,) = small.generate(["the quick fox"], max_length=6, method="beam", num_beams=3, num_return_sequences=2)
    assert beams == expected
    assert error == "the text has more than 64 tokens, EOS included: shorten it" and shown == []
    assert {address for address in requests if not address.startswith(f"http://127.0.0.1:{port}/")} <= {"data:,"}
    # Of a refusal the console tells the status by itself.
    assert [said for said in complaints if "status of 413" not in said] == []
