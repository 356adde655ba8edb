"""The same against a server on this host (vLLM, SGLang, llama.cpp, natprec serve): its steady state.

As many requests as the batch says are always under way: each sender begins its next one when the last is done. Windows
begin when every sender has had a first token and end before any has stopped (as ML.ENERGY's benchmark cuts them). A
streamed chunk counts as its request's tokens over its chunks, by the counts that the server gives at the end.
"""

from __future__ import annotations

import bisect
import functools
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from natprec.energy.counters import Found
from natprec.energy.opening import stored_footprint
from natprec.energy.protocol import Settings, describe, filled, machine_of, pace_of, recording
from natprec.energy.recorder import Clock, Recorder
from natprec.energy.run import Part, Run
from natprec.energy.series import LEAST_STEPS
from natprec.energy.server import SECONDS, Answer, Server, ServerFault, made_up_prompt
from natprec.energy.window import Mark, Pace, Window, idle_window
from natprec.errors import InputError
from natprec.utils.progress import Stages


def measure_server(url: str, name: str | None, settings: Settings, found: Found, stages: Stages) -> Run:
    """A server's steady state at each batch.

    Args:
        name: the folder of the model that it serves, for floors; None: there are none.
    Raises:
        InputError: it cannot be reached, fails, or gives no usage counts; or a log does not cover a window.
    """
    clock = Clock()
    server = Server(url, clock).open()
    own = None if name is None else stored_footprint(name)
    parts, idle = [], {}
    pace, new = pace_of(settings, found, clock), settings.new_tokens or 128
    words = server.words_for(settings.prompt_tokens or 512)
    with recording(found.live, clock) as recorder:
        if settings.idle == "measured":
            with stages.stage("idle, the model in the server's memory"):
                idle["server"] = idle_window(clock, recorder, pace)
        for batch in settings.batches:
            with stages.stage(f"steady state, batch {batch}", settings.repeat) as advance:
                senders = Senders(server, batch, words, new)
                windows, prompt = steady_windows(senders, clock, recorder, pace, functools.partial(advance, ""))
            parts.append(Part("server", "steady", batch, prompt, new, tuple(windows), "", own))
    run = describe(name or server.model, settings, parts, idle, machine_of(settings.device), found)
    return filled(run, found, recorder)


class Senders:
    """So many requests under way at all times; the first ones differ in length, so that later ones begin apart."""

    def __init__(self, server: Server, batch: int, words: int, new: int) -> None:
        self.answers: list[Answer] = []
        self.fault: ServerFault | None = None
        self._server, self._words, self._new = server, words, new
        self._first = [threading.Event() for _ in range(batch)]
        self._open: list[list[float]] = [[] for _ in range(batch)]
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(at,), daemon=True) for at in range(batch)]

    def start(self) -> None:
        """Begin, and wait until each has had a first token."""
        for thread in self._threads:
            thread.start()
        for first in self._first:
            while not first.wait(0.05):
                self.raise_fault()

    def stop(self) -> None:
        """End all; requests under way are broken off."""
        self._ended.set()
        for thread in self._threads:
            thread.join(SECONDS)

    def raise_fault(self) -> None:
        """Raises InputError where a request has failed."""
        if self.fault is not None:
            raise InputError(f"endpoint {self._server.url!r}: {self.fault}")

    def moments(self) -> list[tuple[float, float]]:
        """(when, tokens) of every chunk, in order; of requests that never finished each chunk is as long as others'."""
        done = [(moment, answer.tokens / len(answer.moments)) for answer in self.answers for moment in answer.moments]
        usual = sum(tokens for _, tokens in done) / len(done) if done else 1.0
        return sorted(done + [(moment, usual) for several in self._open for moment in several])

    def _send(self, at: int) -> None:
        def chunk(moment: float) -> None:
            self._open[at].append(moment)
            self._first[at].set()

        tokens = max(2, self._new * (at + 1) // len(self._threads))
        while not self._ended.is_set() and self.fault is None:
            self._open[at] = []
            prompt = made_up_prompt(next(self._server.numbers), self._words)
            try:
                answer = self._server.ask(prompt, tokens, self._ended.is_set, chunk)
            except ServerFault as error:
                self.fault = self.fault or error
                return
            tokens = self._new
            if answer is not None:
                self._open[at] = []
                self.answers.append(answer)


def steady_windows(
    senders: Senders, clock: Clock, recorder: Recorder | None, pace: Pace, advance: Callable[[], None]
) -> tuple[list[Window], int]:
    """Windows of a server's steady state, and the tokens of a prompt as it counts them.

    Raises:
        InputError: a request failed, none was finished, or a window has no tokens.
    """
    cuts: list[Window] = []
    try:
        senders.start()
        _wait(senders, clock, recorder, pace.lead, 1)
        mark = Mark.now(clock, recorder)
        while len(cuts) < pace.count:
            _wait(senders, clock, recorder, pace.seconds, LEAST_STEPS, mark)
            window, mark = mark.cut(clock, recorder, 0)
            cuts.append(window)
            advance()
        _wait(senders, clock, recorder, pace.lead, 1)
        limit = clock.now() + SECONDS
        while not senders.answers and clock.now() < limit:
            _wait(senders, clock, None, 0.05, 0)
    finally:
        senders.stop()
    senders.raise_fault()
    if not senders.answers:
        raise InputError(f"the server finished no request in {SECONDS:.0f} s; lower --new-tokens")
    moments = senders.moments()
    times = [moment for moment, _ in moments]
    windows = []
    for cut in cuts:
        inside = moments[bisect.bisect_right(times, cut.start) : bisect.bisect_right(times, cut.stop)]
        tokens = round(sum(tokens for _, tokens in inside))
        if not tokens:
            raise InputError(f"the server wrote nothing in {cut.seconds:.1f} s; raise --min-seconds")
        windows.append(replace(cut, tokens=tokens))
    read = [answer.prompt_tokens for answer in senders.answers]
    return windows, round(sum(read) / len(read))


def _wait(
    senders: Senders, clock: Clock, recorder: Recorder | None, seconds: float, steps: int, mark: Mark | None = None
) -> None:
    """Until a stretch of time is over, and the counter has moved so often; raises what goes wrong meanwhile."""
    mark = mark or Mark.now(clock, recorder)
    while not mark.ended(clock, recorder, seconds, steps):
        time.sleep(0.005)
        senders.raise_fault()
