"""CPU seconds that an idle supervisor costs its host, with 200 finished jobs in the folder.

    python benchmarks/idle.py [--jobs 200] [--seconds 60]

Measured in a process of its own that does nothing else: the process's CPU time over the seconds, with the supervisor,
and without it (a sleeping process). Also what a page costs that asks once a second whether anything has changed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
MEASURE = """
import sys, time
from pathlib import Path
what, home, seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
from spectral_adapters.trainer.jobs.host import CPU, Standalone
from spectral_adapters.trainer.jobs.store import JobStore
from spectral_adapters.trainer.jobs.supervisor import Supervisor
store = JobStore(home)
store.entries()
supervisor = Supervisor(store, Standalone(), [CPU])
if what == "supervisor":
    supervisor.start()
    while not supervisor.leads:
        time.sleep(0.1)
    time.sleep(1)
started, deadline = time.process_time(), time.monotonic() + seconds
while time.monotonic() < deadline:
    time.sleep(1 if what == "page" else seconds)
    if what == "page":
        store.version()
print(time.process_time() - started)
"""


def fill(home: Path, count: int) -> None:
    """Finished trainings of 1000 steps."""
    from spectral_adapters.trainer.jobs.job import write_state
    from spectral_adapters.trainer.jobs.store import JobStore

    store = JobStore(home)
    step = {"event": "Step", "time": 1e9, "steps": 1000, "loss": 0.1, "lr": 1e-3, "rate": 2.0, "memory": 7, "norm": 1.0}
    events = "".join(json.dumps({**step, "step": i}) + "\n" for i in range(1, 1001))
    for i in range(count):
        entry = store.begin(store.add("train", f"job {i}", {"base": "tiny", "steps": 1000}).id, "cpu")
        entry.run.mkdir()
        (entry.run / "events.jsonl").write_text(events)
        write_state(entry.folder, entry.state.becomes("finished", text="Finished 1000 steps in 9 s."))


def measure(what: str, home: Path, seconds: float) -> float:
    """CPU seconds per minute."""
    command = [sys.executable, "-c", MEASURE, what, str(home), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return round(float(done.stdout) * 60 / seconds, 4)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--jobs", type=int, default=200)
    options.add_argument("--seconds", type=float, default=60)
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        fill(home, args.jobs)
        found = {what: measure(what, home, args.seconds) for what in ("nothing", "supervisor", "page")}
    result = {
        "jobs": args.jobs,
        "seconds": args.seconds,
        "cpu_seconds_per_minute": found,
        "share_of_one_core_percent": {what: round(value / 60 * 100, 3) for what, value in found.items()},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "idle.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
