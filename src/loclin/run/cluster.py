"""Workers as Ray actors. The job travels to each of them once, then only items and results do."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from loclin.errors import LoclinError
from loclin.run.workers import Job, Note, RemoteWorker, Reply, cores

ANSWER_WITHIN = 60.0  # seconds for a cluster to let a driver in; Ray itself tries for minutes
PATIENCE = 30.0  # seconds after which a wait for room is said
PLACED_WITHIN = 600.0  # seconds for room for a first worker, which a cluster may have to grow for
STORE = 100_000_000  # bytes of Ray's object store: nothing large ever travels
_PROBE = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, configure_logging=False)"


class RayPool:
    """Ray actors (`workers.WorkerPool`); inside `connected`.

    Args:
        job: what each of them builds.
        note: called once where no worker has been placed for `PATIENCE` seconds.

    Attributes:
        why: what was heard of the last worker that died.
    """

    def __init__(self, job: Job, *, note: Note) -> None:
        import ray

        self.why = ""
        self._ray, self._note, self._noted = ray, note, False
        self._needs = "CPU" if job.device == "cpu" else "GPU"
        wanted: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0 if self._needs == "CPU" else 1}
        self._kind = ray.remote(max_restarts=0, max_task_retries=0, **wanted)(RemoteWorker)
        self._job = ray.put(job)
        self._numbers = itertools.count(1)
        self._actors: dict[int, Any] = {}
        self._awaited: dict[Any, int] = {}  # which worker a result is expected from
        self._arriving: list[Any] = []  # answers of actors as soon as they are somewhere
        self._began, self._placed = time.monotonic(), False

    def room(self) -> int:
        """How many workers the cluster has room for now; at least one, since clusters grow."""
        return max(1, int(self._ray.cluster_resources().get(self._needs, 0)))

    def start(self) -> int:
        """One more actor."""
        worker = next(self._numbers)
        self._actors[worker] = self._kind.remote(self._job)
        self._arriving.append(self._actors[worker].here.remote())
        self._awaited[self._actors[worker].build.remote()] = worker
        return worker

    def send(self, worker: int, item: Any) -> None:
        """Have an actor do an item."""
        self._awaited[self._actors[worker].do.remote(item)] = worker

    def wait(self, seconds: float) -> list[tuple[int, Reply | None]]:
        """Replies that have come, None from an actor that died, was killed for memory, or whose
        node is gone.

        Raises:
            LoclinError: there is no room for a single worker.
        """
        if not self._placed:
            self._look_for_room()
        ready, _ = self._ray.wait(list(self._awaited), num_returns=1, timeout=seconds)
        replies = [(self._awaited.pop(result), self._received(result)) for result in ready]
        for worker, reply in replies:
            if reply is None:  # it may be out of reach rather than dead: it must not go on
                self._ray.kill(self._actors.pop(worker), no_restart=True)
        return replies

    def close(self) -> None:
        """End all actors."""
        for actor in self._actors.values():
            self._ray.kill(actor, no_restart=True)
        self._actors, self._awaited = {}, {}

    def _received(self, result: Any) -> Reply | None:
        failures = self._ray.exceptions
        try:
            return self._ray.get(result)  # type: ignore[no-any-return]
        except failures.RayTaskError:  # an error of this program, not of a machine
            raise
        except failures.RayError as error:
            self.why = _short(str(error))
            return None

    def _look_for_room(self) -> None:
        """Whether some actor has been placed; where none has for long, say so, then give up."""
        arrived, _ = self._ray.wait(self._arriving, timeout=0)
        self._placed = bool(arrived)
        waited = time.monotonic() - self._began
        if self._placed or waited < PATIENCE:
            return
        there = self._ray.cluster_resources()
        held = (
            f"{there.get('CPU', 0):g} CPU and {there.get('GPU', 0):g} GPU in the cluster, or "
            "others hold them"
        )
        if waited > PLACED_WITHIN:
            raise LoclinError(
                f"expected Ray to place a worker on 1 {self._needs} within {PLACED_WITHIN:.0f} "
                f"seconds, found no room ({held}): start nodes that have it, or change --device"
            )
        if not self._noted:
            self._noted = True
            self._note(f"waiting for Ray to place a worker on 1 {self._needs}: {held}")


def _short(text: str) -> str:
    """First and last line of what Ray says, without its colours: what happened, and the exception
    behind it.
    """
    plain = re.sub(r"\x1b\[\d+m", "", text)
    lines = [" ".join(line.split()) for line in plain.splitlines() if line.strip()]
    return " ... ".join(dict.fromkeys(line[:160] for line in (lines[:1] + lines[-1:])))


@contextmanager
def connected(address: str, workers: int) -> Iterator[None]:
    """A connection to Ray: the program's own where it has one, which is then left as it is, or a
    new one that ends here.

    Args:
        address: "local" for a Ray of its own; "auto" for the one that runs here, or that
            $RAY_ADDRESS names; HOST:PORT for a cluster that this machine is a node of.
        workers: CPUs of a local Ray; 0 takes every core.

    Raises:
        LoclinError: Ray is not installed, or there is none at the address that lets us in within
            `ANSWER_WITHIN` seconds.
    """
    if importlib.util.find_spec("ray") is None:
        raise LoclinError(
            "expected Ray for --ray, found that it is not installed: run pip install 'loclin[ray]'"
        )
    import ray

    if ray.is_initialized():
        yield
        return
    if address != "local":
        _check_reachable(address)
    own = {"include_dashboard": False, "object_store_memory": STORE, "num_cpus": workers or cores()}
    quiet = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}
    try:
        with _quiet():
            ray.init(address=address, **quiet, **(own if address == "local" else {}))
    except Exception as error:
        raise _no_ray(address, str(error)) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Whether Ray lets a driver in, tried in a process that can be given up: `ray.init` itself
    cannot.
    """
    if address != "auto" and not re.fullmatch(r"[^/\s]+:\d+", address):
        raise LoclinError(
            f"expected local, auto or HOST:PORT, found --ray {address}: on a machine of the "
            "cluster give auto; from elsewhere run the command there, by `ray job submit`"
        )
    if address != "auto":
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise _no_ray(address, str(error)) from error
    probe = [sys.executable, "-W", "ignore", "-c", _PROBE, address]
    try:
        subprocess.run(probe, capture_output=True, text=True, timeout=ANSWER_WITHIN, check=True)
    except subprocess.TimeoutExpired as error:
        raise _no_ray(address, f"no answer within {ANSWER_WITHIN:.0f} seconds") from error
    except subprocess.CalledProcessError as error:
        last = [f"exit code {error.returncode}", *filter(str.strip, error.stderr.splitlines())][-1]
        raise _no_ray(address, last) from error


def _no_ray(address: str, why: str) -> LoclinError:
    return LoclinError(
        f"expected a Ray cluster for --ray {address}, found none ({' '.join(why.split())[:200]}): "
        "start one with `ray start --head`, check the address, or give --ray local"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray without its usage reports, and with its errors alone."""
    logger, name = logging.getLogger("ray"), "RAY_USAGE_STATS_ENABLED"
    level, before = logger.level, os.environ.get(name)
    logger.setLevel(logging.ERROR)
    os.environ[name] = "0"
    try:
        yield
    finally:
        logger.setLevel(level)
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
