"""Another model in place of the one that runs, without an end of the run: a new bundle, or float where int8 drifts.

It is opened, checked on its golden pictures and warmed beside the one that runs, in a thread of its own (of normal priority,
which an engine's threads inherit), and takes over between two frames. Where anything is wrong with it, the one that runs
runs on, and the reason is said.
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from edgeattn.bundle import Bundle, check_unchanged, load
from edgeattn.camera.model import Model, blank_input, described, open_model
from edgeattn.camera.notify import Notifier
from edgeattn.camera.pipeline import Pipeline
from edgeattn.engines import held
from edgeattn.engines.choose import AGREEMENT, golden_agreement, makers_agreement
from edgeattn.errors import BundleError, GateError
from edgeattn.tasks import decode

KEPT = 20
"""Latest changes that are reported."""
_CLOSE_S = 2.0


class Exchange:
    """Changes the model of an open pipeline, from entering to leaving; one change at a time."""

    def __init__(
        self,
        pipeline: Pipeline,
        name: Callable[[], str],
        *,
        notifier: Notifier | None = None,
        say: Callable[[str], object] = print,
    ) -> None:
        """Be ready to change.

        Args:
            pipeline: whose model is changed.
            name: gives the bundle that is to run, by its folder or its name in the zoo, each time that it is asked for.
            notifier: tells the service manager of a reload.
            say: is told what came of it.
        """
        self.changes: list[dict[str, Any]] = []
        """What was changed, or refused, the latest last; as plain JSON values."""
        self.counts: Counter[str] = Counter()
        """How often each came, as in `reload taken`."""
        self.fallback: str | None = None
        """Why float has taken over; None: it has not."""
        self._pipeline, self._name, self._say = pipeline, name, say
        self._notifier = notifier or Notifier({})
        self._orders: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._taken = (pipeline.engine.name, pipeline.engine.precision)
        self._thread = threading.Thread(target=self._run, name="exchange", daemon=True)

    def __enter__(self) -> Exchange:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._orders.put(None)
        self._thread.join(_CLOSE_S)

    def reload(self) -> None:
        """Open the bundle anew and let it take over; returns at once, and may be called in a signal's handler."""
        self._orders.put(self._reload)

    def fall_back(self, model: Model, reason: str) -> None:
        """Let the float file of a model's bundle take over, if that model still runs; returns at once."""
        self._orders.put(
            functools.partial(self._attempt, "fall back", functools.partial(self._fall_back, model, reason))
        )

    # The exchange's thread.

    def _run(self) -> None:
        _ = self._pipeline.engine.executed_precision  # while the file on the disk is still the one that runs
        while (order := self._orders.get()) is not None:
            order()

    def _reload(self) -> None:
        self._notifier.reloading()
        self._attempt("reload", self._take_anew)
        self._notifier.send(READY=1)

    def _attempt(self, what: str, change: Callable[[], str]) -> None:
        began = time.monotonic()
        try:
            outcome, reason = change(), ""
        except Exception as error:  # whatever it is, the model that runs is a good one
            outcome, reason = "refused", str(error) or type(error).__name__
            self._say(f"{what} refused, {self._pipeline.bundle.name} runs on as it was: {reason}")
        took_ms = round(1000 * (time.monotonic() - began), 1)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        entry = {"what": what, "outcome": outcome, "reason": reason, "at": now, "took_ms": took_ms}
        self.changes = [*self.changes, entry][-KEPT:]
        self.counts = self.counts + Counter([f"{what} {outcome}"])

    def _take_anew(self) -> str:
        bundle = load(self._name())
        if bundle.is_same(self._pipeline.bundle) and self.fallback is None:
            self._say(f"reload: {bundle.name} is what runs already")
            return "unchanged"
        model = self._open(bundle)
        before = self._pipeline.swap(model)
        before.engine.close()
        self._taken, self.fallback = (model.engine.name, model.engine.precision), None
        self._say(f"reload: {bundle.name} ({bundle.digest()}) has taken over: {model.line}")
        return "taken"

    def _fall_back(self, drifting: Model, reason: str) -> str:
        if self._pipeline.model is not drifting:
            return "too late"
        bundle = drifting.bundle
        floats = sorted(held(bundle, precisions=["float"]), key=lambda each: each.engine != drifting.engine.name)
        if not floats:
            raise BundleError(f"{bundle.path} holds no float model that could take over; make it with: edgeattn export")
        check_unchanged(bundle, floats[0])
        chosen = {"engine": floats[0].engine, "precision": "float", "device": "CPU"}
        model = self._checked(bundle, self._pipeline.options | chosen)
        self._pipeline.swap(model).engine.close()
        self.fallback = reason
        self._say(f"float has taken over: {described(model.engine, 'as --fallback asks')}; SIGHUP goes back")
        return "taken"

    def _open(self, bundle: Bundle) -> Model:
        """Open a bundle as this run was told to; what it left open is as it was, since a live run disturbs any timing."""
        options = dict(self._pipeline.options)
        engine, precision = self._taken
        passed = [(each.engine, each.precision) for each in held(bundle) if each.verdict == "passed"]
        fits = options["engine"] in (None, engine) and options["precision"] in (None, precision)
        if options["device"] == "CPU" and fits and (engine, precision) in passed:
            options |= {"engine": engine, "precision": precision}
        return self._checked(bundle, options)

    def _checked(self, bundle: Bundle, options: dict[str, Any]) -> Model:
        """Open, check on the golden pictures, and warm.

        Raises:
            EdgeAttnError: it does not open, or does not answer as its maker's.
        """
        model = open_model(bundle, **options)
        try:
            check(model)
        except BaseException:
            model.engine.close()
            raise
        return model


def check(model: Model) -> None:
    """Check that an open model answers its golden pictures as it did where it was made, and that its answers can be read.

    Raises:
        GateError: it does not.
        EdgeAttnError: it fails to run.
    """
    engine, bundle = model.engine, model.bundle
    agreement = golden_agreement(engine, bundle.golden(), bundle.spec)
    artefact = bundle.artefact(engine.name, engine.precision)
    least = AGREEMENT * makers_agreement(artefact)
    if agreement < least:
        raise GateError(
            f"{bundle.path}: {engine.name} {engine.precision} gives the maker's answer on {100 * agreement:.0f} % of the "
            f"golden inputs here, {100 * least:.0f} % are wanted; see: edgeattn verify {bundle.path}"
        )
    decode(engine.infer(blank_input(bundle.spec)), bundle.spec)
