"""What an update of the panel costs the browser while a training of 20,000 steps is watched.

    python benchmarks/panel.py [--points 20000] [--updates 30] [--chromium /usr/bin/chromium]

A home folder gets a running job whose event log holds the points; the real server answers, and real Chromium shows the
job's page. "page" follows the page as it is: seconds from opening until the chart shows the last point, then lines of
ten steps are appended to the log, one lot at a time, and the main thread's processor time per update is read from
Chromium's own counters (all of it: JSON, curves, drawing, layout; the answer's waiting time is none of it), with the
longest single task. "parts" times the same modules alone, the median of many: parsing and drawing all points, parsing
ten more and drawing, and a redraw at another zoom. "heap" is what stays after garbage collection, before and after.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from playwright.sync_api import CDPSession, Page, sync_playwright

from spectral_adapters.trainer.http.app import application
from spectral_adapters.trainer.jobs.host import CPU, Standalone
from spectral_adapters.trainer.places import standalone
from spectral_adapters.trainer.studio import Studio

RESULT = Path(__file__).parent / "results" / "panel.json"
TOKEN = "benchmark"
LOT = 10  # steps of an update

# A chart in the panel's own styles, fed by hand.
PARTS = """async ([all, ten, turns]) => {
  const { Chart } = await import("/panel/chart.js");
  const { Curve } = await import("/panel/curve.js");
  const t = Object.assign((key) => key, { lang: "en", or: (key, text) => text });
  const home = document.querySelector("spectral-panel").shadowRoot.querySelector("main");
  const chart = new Chart({ t });
  home.append(chart.root);
  const median = (list) => list.sort((a, b) => a - b)[list.length >> 1];
  const time = (work) => { const begun = performance.now(); work(); return performance.now() - begun; };
  const first = [], more = [], zoom = [];
  let curve;
  for (let i = 0; i < turns; i += 1) {
    curve = new Curve();
    chart.show([{ curve, name: "" }]);
    first.push(time(() => { curve.apply(JSON.parse(all)); chart.paint(); }));
    more.push(time(() => { curve.apply(JSON.parse(ten)); chart.paint(); }));
    chart.window.zoom(1 + i / 4, curve.last / 3);
    zoom.push(time(() => chart.paint()));
    chart.window.reset();
  }
  chart.destroy();
  chart.root.remove();
  return { first_ms: median(first), ten_more_ms: median(more), zoom_ms: median(zoom) };
}"""


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=20_000)
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        studio = Studio(standalone(Path(folder), {}, ()), Standalone(), (CPU,))
        log = _job(studio, args.points)
        with _served(studio) as address, _page(args.chromium) as (page, counters, version):
            found = {
                "points": args.points,
                "page": _watch(page, counters, address, log, args),
                "parts": _parts(page, studio, log.parent.parent.name, args.points),
                "chromium": version,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, no graphics card",
            }
    print(json.dumps(found, indent=1))
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


def _job(studio: Studio, points: int) -> Path:
    """A training that runs, as far as the files say; its event log."""
    spec = {"base": "tiny", "method": "svdiff", "steps": 2 * points, "sample_prompts": ["a fish"], "out": "fish"}
    entry = studio.store.add("train", "fish", spec)
    studio.store.begin(entry.id, "cpu")
    entry.run.mkdir()
    log = entry.run / "events.jsonl"
    marks = [
        {"event": "Validated", "step": step, "loss": 0.1 + 0.2 * math.exp(-step / points), "best": True}
        for step in range(points // 20, points + 1, points // 20)
    ]
    _append(log, [{"event": "Phase", "name": "training"}, *_steps(1, points, 2 * points), *marks])
    return log


def _steps(first: int, last: int, steps: int) -> list[dict[str, Any]]:
    draw = random.Random(first)
    return [
        {
            "event": "Step",
            "step": step,
            "steps": steps,
            "loss": (0.08 + 0.2 * math.exp(-6 * step / steps)) * math.exp(draw.gauss(0, 0.4)),
            "lr": 1e-4 * (1 + math.cos(math.pi * step / steps)),
            "rate": 9.5,
            "memory": 3_400_000_000,
            "norm": 0.1,
        }
        for step in range(first, last + 1)
    ]


def _append(log: Path, events: list[dict[str, Any]]) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({**event, "time": time.time()}) + "\n" for event in events)
    (log.parent.parent / "heartbeat").touch()


@contextmanager
def _served(studio: Studio) -> Iterator[str]:
    """The server in a thread; its supervisor is never started, so nothing ends the job."""
    import asyncio

    loop = asyncio.new_event_loop()
    runner = web.AppRunner(application(studio, TOKEN), access_log=None)
    loop.run_until_complete(runner.setup())
    loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/?token={TOKEN}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(runner.cleanup())
        loop.close()


@contextmanager
def _page(chromium: str) -> Iterator[tuple[Page, CDPSession, str]]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        counters = page.context.new_cdp_session(page)
        counters.send("Performance.enable")
        yield page, counters, browser.version
        browser.close()


def _watch(page: Page, counters: CDPSession, address: str, log: Path, args: argparse.Namespace) -> dict[str, float]:
    """Open the job's page, then feed it."""
    page.goto(address)
    page.locator("[data-test=main]").wait_for()
    begun = time.perf_counter()
    busy = _count(counters, "ThreadTime")
    page.evaluate("id => document.querySelector('spectral-panel').go('job', { id })", log.parent.parent.name)
    _shows(page, args.points)
    opened, opening = time.perf_counter() - begun, _count(counters, "ThreadTime") - busy
    page.evaluate("""() => {
      window.longest = 0;
      const seen = (list) => list.getEntries().forEach((entry) => (longest = Math.max(longest, entry.duration)));
      new PerformanceObserver(seen).observe({ type: "longtask" });
    }""")
    heap = _heap(counters)
    spent = []
    for update in range(args.updates):
        busy = _count(counters, "ThreadTime")
        last = args.points + (update + 1) * LOT
        _append(log, _steps(last - LOT + 1, last, 2 * args.points))
        _shows(page, last)
        spent.append(1000 * (_count(counters, "ThreadTime") - busy))
    longest = page.evaluate("longest")
    return {
        "open_seconds": round(opened, 2),
        "open_busy_ms": round(1000 * opening),
        "update_busy_ms_median": round(statistics.median(spent), 1),
        "update_busy_ms_worst": round(max(spent), 1),
        "longest_task_ms": round(longest) if longest else "below 50",
        "heap_mb_before": round(heap, 1),
        "heap_mb_after": round(_heap(counters), 1),
    }


def _shows(page: Page, step: int) -> None:
    page.locator("[data-test=chart-readout]", has_text=f"{step:,}").wait_for(timeout=30_000)


def _count(counters: CDPSession, name: str) -> float:
    found = counters.send("Performance.getMetrics")["metrics"]
    return next(metric["value"] for metric in found if metric["name"] == name)


def _heap(counters: CDPSession) -> float:
    counters.send("HeapProfiler.collectGarbage")
    return _count(counters, "JSHeapUsedSize") / 1e6


def _parts(page: Page, studio: Studio, id: str, points: int) -> dict[str, float]:
    """The modules alone."""
    everything = studio.curve(id)
    ten = studio.curve(id, everything["next"] - LOT, everything["generation"])
    cut = {name: everything[name][:points] for name in ("steps", "loss", "lr", "memory", "rate")}
    first = json.dumps({**everything, **cut, "next": points, "reset": True})
    found = page.evaluate(PARTS, [first, json.dumps({**ten, "reset": False}), 15])
    return {name: round(value, 1) for name, value in found.items()}


if __name__ == "__main__":
    main()
