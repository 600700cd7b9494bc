"""The console in a real Chromium: ./dev test-console. PODWAY_SCREENSHOTS=DIRECTORY keeps what it looked like."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from podway.api.kinds.namespace import Namespace
from podway.api.kinds.pod import Pod, PodSpec, PodStatus
from podway.api.meta import Metadata
from podway.console.sources import Question
from podway.errors import InvalidInput, PodwayError
from podway.flows.query import Row
from tests.console.browser import PROGRAM, Page, browser
from tests.console.console_process import ConsoleProcess, console
from tests.console.synthetic import NOW, Synthetic, served
from tests.system.policy_lab import PolicyLab, policy_lab
from tests.system.test_system_flows import PORT, connect

VIEWS = ("", "traffic", "flows", "flows?show=sums", "policies", "services", "doctor", "health")

HOSTILE = "<img src=x onerror=\"document.title='owned'\">&amp;<script>document.title='owned'</script>"
"""What no pod can be called in Kubernetes, but a label's or a message's text may hold."""


def browsed(check: Callable[[Page], Awaitable[None]]) -> None:
    assert PROGRAM, "there is no chromium: ./dev test-console installs it"

    async def run() -> None:
        async with browser() as page:
            await check(page)
            assert page.errors == []

    asyncio.run(run())


async def keep(page: Page, name: str) -> None:
    if folder := os.environ.get("PODWAY_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        await page.picture(Path(folder, f"{name}.png"))


@pytest.fixture(scope="module")
def lab() -> Iterator[PolicyLab]:
    """Two nodes with a pod each, web on the first and client on the second, and web closed to all."""
    with policy_lab() as made:
        made.run("web", "node1", PORT, labels={"app": "web"})
        made.run("client", "node2", labels={"app": "client"})
        connect(made)
        made.policy("closed", podSelector={"matchLabels": {"app": "web"}})
        yield made


@pytest.fixture(scope="module")
def shown(lab: PolicyLab) -> Iterator[ConsoleProcess]:
    with console("--lab", lab.lab.name) as process:
        yield process


@pytest.mark.kernel
@pytest.mark.timeout(400)
def test_every_view_in_light_and_dark_and_on_a_telephone(lab: PolicyLab, shown: ConsoleProcess) -> None:
    async def check(page: Page) -> None:
        for dark in (False, True):
            for width, height in ((1280, 800), (390, 844)):
                await page.look(width, height, dark=dark, mobile=width < 500)
                for view in VIEWS:
                    await page.open(shown.url + view)
                    await page.until(
                        "!document.querySelector('main > [role=status].empty') && !!document.querySelector('h1')"
                    )
                    broad = await page.run("document.documentElement.scrollWidth - innerWidth")
                    assert broad <= 0, f"{view} at {width} is broader than the window by {broad}"
                    await keep(
                        page, f"{view.replace('?', '-') or 'network'}-{width}-{'dark' if dark else 'light'}"
                    )
        assert {url for url in page.asked if not url.startswith(shown.url)} == set(), "something else was asked"

    browsed(check)


@pytest.mark.kernel
def test_flows_come_live_and_their_filters_are_in_the_address(lab: PolicyLab, shown: ConsoleProcess) -> None:
    async def check(page: Page) -> None:
        await page.look(1280, 800)
        await page.open(f"{shown.url}flows")
        await page.until("document.querySelector('.pulse.open')")
        await asyncio.to_thread(connect, lab)
        await page.until("document.querySelector('tr.flow.denied')")
        await page.run(
            "(() => { const s = document.querySelector('select[name=verdict]'); s.value = 'denied';"
            " s.dispatchEvent(new Event('change', {bubbles: true})) })()"
        )
        assert await page.run("location.search") == "?verdict=denied"
        await page.until("document.querySelector('tr.flow.denied') && !document.querySelector('tr.flow.allowed')")
        assert "isolated by NetworkPolicy/default/closed" in await page.run(
            "document.querySelector('.what').innerText"
        )
        await page.run("document.querySelector('tr.flow button').click()")
        assert "default/web" in await page.until("document.querySelector('.more-of')?.innerText")
        await page.open(f"{shown.url}flows?verdict=denied&show=past&since=1h")
        await page.until("document.querySelector('tr.flow.denied')")
        assert await page.run("document.querySelector('select[name=verdict]').value") == "denied"

    browsed(check)


@pytest.mark.kernel
@pytest.mark.parametrize("calm", [False, True])
def test_a_trace_goes_step_by_step_and_stands_still_for_who_wants_that(
    lab: PolicyLab, shown: ConsoleProcess, calm: bool
) -> None:
    async def check(page: Page) -> None:
        await page.look(1280, 1000, calm=calm)
        await page.open(f"{shown.url}trace?from=client&to=node1")
        await page.until("document.querySelectorAll('.hop').length === 3")
        at = "document.querySelector('.player .muted').innerText"
        if calm:
            assert (await page.run(at)).startswith("hop 3 of 3")
        else:
            assert (await page.run(at)).startswith("hop 1 of 3")
            await page.until(f"{at}.startsWith('hop 3 of 3')")
        lanes = await page.run("[...document.querySelectorAll('.hop:first-child h4')].map(h => h.innerText)")
        assert lanes == ["Plan", "Kernel", "Probe"]
        assert await page.run("document.querySelector('.verdict strong').innerText") == "delivered"
        await page.run("document.querySelector('.player button').click()")
        assert (await page.run(at)).startswith("hop 2 of 3")
        await keep(page, f"trace-{'calm' if calm else 'moved'}")
        await page.open(f"{shown.url}trace?from=client&to=web&port={PORT}")
        await page.until("document.querySelector('.verdict.bad')")
        assert "default/closed" in await page.run("document.querySelector('.verdict').innerText")
        await keep(page, f"trace-denied-{'calm' if calm else 'moved'}")

    browsed(check)


@pytest.mark.kernel
def test_the_map_is_used_without_a_mouse_and_told_to_a_screen_reader(
    lab: PolicyLab, shown: ConsoleProcess
) -> None:
    async def check(page: Page) -> None:
        await page.look(1280, 800)
        await page.open(shown.url)
        await page.until("document.querySelectorAll('.pick li').length === 2")
        await page.run("document.querySelector('canvas').focus()")
        await page.key("ArrowRight")
        await page.until("location.search === '?node=node1' && document.querySelector('.details h2')")
        assert "node1" in await page.run("document.querySelector('[aria-live=polite]').innerText")
        await page.key("Escape")
        await page.until("location.search === ''")
        tree = await page.tree()
        roles = {node["role"] for node in tree}
        assert {"main", "navigation", "complementary", "heading", "searchbox"} <= roles
        unnamed = [
            node
            for node in tree
            if node["role"] in ("button", "link", "searchbox", "combobox") and not node["name"]
        ]
        assert unnamed == []
        await page.key("d", modifiers=1)
        await page.until("location.pathname === '/doctor' && document.activeElement.tagName === 'MAIN'")
        await page.key("Tab")
        assert await page.run("document.activeElement !== document.body")

    browsed(check)


def test_who_may_not_follow_is_told_why_and_asks_again_only_what_may_be_answered_then() -> None:
    class Refusing(Synthetic):
        why: PodwayError | None = InvalidInput("port: 'x' is no number", hint="write one")

        def question(self, filters: Mapping[str, Sequence[str]], now: float) -> Question:
            if self.why:
                raise self.why
            return super().question(filters, now)

    sources = Refusing(3, 0, 0)

    async def check(page: Page) -> None:
        def asked() -> int:
            return sum("/flows/live" in url for url in page.asked)

        async with served(sources) as url:
            await page.open(f"{url}flows")
            await page.until("document.querySelector('.pulse.refused')")
            assert "port: 'x' is no number" in await page.run("document.querySelector('main').innerText")
            before = asked()
            await asyncio.sleep(6)  # as long as who is busy is left alone
            assert asked() == before
            sources.why = PodwayError("the store is away")
            await page.open(f"{url}flows")
            await page.until("document.querySelector('main').innerText.includes('the store is away')")
            sources.why = None
            await page.until("document.querySelector('.pulse.open')")
            assert "the store is away" not in await page.run("document.querySelector('main').innerText")
        page.errors.clear()  # the browser told of each refusal

    browsed(check)


def test_a_hostile_name_is_text_and_never_markup() -> None:
    sources = Synthetic(3, 0, 0)
    hostile = Pod(
        metadata=Metadata(name=HOSTILE, namespace=HOSTILE, labels={"app": HOSTILE}),
        spec=PodSpec(node_name="node-0000"),
        status=PodStatus(phase="Running"),
    )
    sources.found = (*sources.found, Namespace(metadata=Metadata(name=HOSTILE)), hostile)
    sources.rows = (Row(f"{HOSTILE}/{HOSTILE} -> outside", flows=1, denied=1, last=NOW),)
    sources.cluster = HOSTILE

    async def check(page: Page) -> None:
        await page.look(1280, 800)
        async with served(sources) as url:
            await page.open(f"{url}traffic")
            await page.until("document.querySelectorAll('.pick li').length >= 2")
            await page.run("document.querySelector('.pick button').click()")
            await page.until("document.querySelector('.details h2')")
            await page.open(f"{url}flows?show=sums")
            await page.until("document.querySelector('table.sums tbody tr')")
            assert HOSTILE in await page.run("document.querySelector('table.sums tbody').innerText")
            await asyncio.sleep(0.2)
            assert await page.run("document.querySelectorAll('img, #app script').length") == 0
            assert await page.run("document.title") != "owned"
            refused = await page.run(
                "(() => { try { document.body.innerHTML = '<b>x</b>'; return '' } catch (e) { return e.name } })()"
            )
            assert refused == "TypeError", "the policy lets no script make markup of text"
        page.errors.clear()  # the browser told of what it refused just now

    browsed(check)


@pytest.mark.timeout(400)
def test_five_thousand_nodes_and_ten_thousand_pairs_can_be_moved_about() -> None:
    async def check(page: Page) -> None:
        await page.look(1280, 800)
        async with served(Synthetic(5000, 1000, 10_000)) as url:
            for view in ("", "traffic"):
                await page.open(url + view)
                await page.until("!!window.podwayBoard && document.querySelectorAll('.pick li').length > 10")
                await asyncio.sleep(0.5)
                moved = await page.pan()
                assert moved < 16, f"{view}: half of the pictures took {moved} ms or longer"
                await page.run("document.querySelector('.pick button').click()")
                await page.until("document.querySelector('.details h2')")
                await keep(page, f"large-{view or 'network'}")
            memory = await page.run("performance.memory.usedJSHeapSize")
            assert memory < 200 << 20

    browsed(check)
