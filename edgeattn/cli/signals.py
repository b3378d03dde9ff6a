"""What signals ask of a run: Ctrl-C and SIGTERM end it as if it were done, SIGHUP renews it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator


class Hangup:
    """SIGHUP: with the terminal gone, the end; else what `answer` says, as a service manager means it."""

    def __init__(self) -> None:
        self._terminals = [fd for fd in (0, 1, 2) if _is_terminal(fd)]
        self._do: Callable[[], object] | None = None
        self._early = False

    def answer(self, do: Callable[[], object]) -> None:
        """From now on do this, at once if the signal came already."""
        self._do = do
        if self._early:
            do()

    def came(self) -> None:
        """In the signal's handler.

        Raises:
            KeyboardInterrupt: the terminal that the run was started from is gone.
        """
        if gone := [fd for fd in self._terminals if not _is_terminal(fd)]:
            nowhere = os.open(os.devnull, os.O_RDWR)
            for fd in gone:  # what is still said does not fail
                os.dup2(nowhere, fd)
            raise KeyboardInterrupt
        if self._do is None:
            self._early = True
        else:
            self._do()


@contextlib.contextmanager
def interruptible(hangup: Hangup) -> Iterator[None]:
    """Ctrl-C or SIGTERM ends the block as if it were done; a second one does not disturb the ending."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ending = (signal.SIGINT, signal.SIGTERM)
    handled = [*ending, signal.SIGHUP] if hasattr(signal, "SIGHUP") else list(ending)

    def stop(number: int, frame: object) -> None:
        for each in handled:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    def hang_up(number: int, frame: object) -> None:
        try:
            hangup.came()
        except KeyboardInterrupt:
            stop(number, frame)

    before = {each: signal.signal(each, stop if each in ending else hang_up) for each in handled}
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False
