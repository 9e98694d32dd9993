"""Questions for the estimator that pages ask while someone turns the knobs: the newest ones count."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, TimeoutError
from threading import Lock
from typing import Any

WAIT = 8.0  # seconds after which a page is told to ask again

Question = Callable[[], dict[str, Any]]


class Estimates:
    """Asks one question at a time; those that still wait when another comes are dropped, their askers come again."""

    def __init__(self, wait: float = WAIT) -> None:
        self._wait = wait
        self._asked: dict[str, Future[dict[str, Any]]] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="spectral-estimate")
        self._lock = Lock()

    def ask(self, key: str, question: Question) -> dict[str, Any]:
        """The answer, or {"pending": True} where it takes longer; asked again with the same key, it is the same one.

        Raises what the question raises.
        """
        future = self._future(key, question)
        try:
            answer = future.result(self._wait)
        except (TimeoutError, CancelledError):
            return {"pending": True}
        finally:
            self._forget(key, future)
        return answer

    def close(self) -> None:
        """Drop what waits. The question that is being answered is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _future(self, key: str, question: Question) -> Future[dict[str, Any]]:
        with self._lock:
            found = self._asked.get(key)
            if found is not None:
                return found
            for waiting in self._asked.values():
                waiting.cancel()
            made = self._asked[key] = self._pool.submit(question)
            return made

    def _forget(self, key: str, future: Future[dict[str, Any]]) -> None:
        """An answer is given once: free memory and folders change."""
        with self._lock:
            if future.done() and self._asked.get(key) is future:
                del self._asked[key]
