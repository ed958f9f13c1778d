"""Parts of a stage made ahead, many at a time, by the workers of a Ray cluster.

A stage measures one part after the other and keeps each (`parts.py`). Before it does, it says which parts will be
wanted; without a cluster nothing comes of that, with one the workers make those that are missing, and the stage then
finds them all. So the results are the same to the bit, and a killed study or worker costs the parts under way.

A task is a plain function at module level of (model, what all tasks share, one item) to a part. It leaves the model as
it was, and draws nothing but from seeds in its item: who runs it, in which order and how often changes nothing. The
cluster's machines must see the model and the run folder under the same path (a shared disk). Bits are the same on
machines with the same processor type and the same packages.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ssah_lens.errors import BadInput, Fault
from ssah_lens.progress import progress, quiet
from ssah_lens.study.parts import Parts

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from ssah_lens.chat.model import ChatModel

ENGINES = ("local", "ray")
RETRIES = 2
"""A worker that is lost (killed, out of memory, machine gone) costs its task; the task is run again this often."""
S = TypeVar("S")
I = TypeVar("I")  # noqa: E741
R = TypeVar("R")
Task = Callable[["ChatModel", S, I], R]


Ahead = Callable[[Task, Any, Mapping[str, Any], Any], None]
"""(task, shared, name of the part -> item, type of the part): these will be wanted."""


def nothing_ahead(task: Task, shared: Any, items: Mapping[str, Any], kind: Any) -> None:
    """Each part is made when it is wanted, in this process."""


@dataclass(frozen=True)
class Home:
    """How a worker comes by the model.

    Attributes:
        name: built-in name, folder or hub id.
        shown: the model's name in results.
        device, dtype: as for `ChatModel.load`.
        threads: as many as in the process that began the run; rounding may depend on them.
        system: system prompt of all prompts that bring none of their own.
    """

    name: str
    shown: str
    device: str
    dtype: str
    threads: int
    system: str | None = None

    def load(self) -> ChatModel:
        """The model, and this process set up like the one that began the run."""
        import torch

        from ssah_lens.chat.model import ChatModel

        torch.set_num_threads(self.threads)
        model = ChatModel.load(self.name, self.device, self.dtype, system=self.system)
        model.name = self.shown
        return model


class Worker:
    """A process of the cluster; it holds one model."""

    def __init__(self) -> None:
        self.held: tuple[Home, ChatModel] | None = None

    def do(self, home: Home, task: Task, shared: Any, item: Any) -> Any:
        if self.held is None or self.held[0] != home:
            self.held = home, home.load()
        with quiet():
            return task(self.held[1], shared, item)


class Cluster:
    """A connection to Ray and the workers that were started there."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray
        self.workers: list[Any] = []

    def hire(self, n: int, home: Home) -> list[Any]:
        """Up to n workers: as many as are free on the cluster, which others may use too, and at least one.

        Raises:
            BadInput: no machine of the cluster has the processors or the device that the run needs.
        """
        on_gpu = home.device.startswith("cuda")
        name, need = ("GPU", 1) if on_gpu else ("CPU", home.threads)
        if not any(node["Alive"] and node["Resources"].get(name, 0) >= need for node in self.ray.nodes()):
            raise BadInput(
                f"no machine of the Ray cluster has {need} {name}, which a worker of this run takes; "
                "set OMP_NUM_THREADS to fewer for a new run, or start the cluster with more"
            )
        remote = self.ray.remote(Worker).options(
            num_cpus=0 if on_gpu else home.threads, num_gpus=int(on_gpu), max_restarts=-1, max_task_retries=RETRIES
        )
        free = int(self.ray.available_resources().get(name, 0) // need)
        while len(self.workers) < min(n, max(1, len(self.workers) + free)):
            self.workers.append(remote.remote())
            free -= 1
        return self.workers[:n]

    def dismiss(self) -> None:
        """Ends the workers."""
        while self.workers:
            self.ray.kill(self.workers.pop())


@dataclass(frozen=True)
class OnRay:
    """Makes parts ahead: one task per worker at a time, whichever comes first is kept first.

    Attributes:
        cluster: where.
        home: the model.
        kept: where parts are kept; those that are there are not made again.
    """

    cluster: Cluster
    home: Home
    kept: Parts

    def __call__(self, task: Task, shared: Any, items: Mapping[str, Any], kind: Any) -> None:
        ray = self.cluster.ray
        todo = [name for name in items if self.kept.load(name, kind) is None]
        if not todo:
            return
        idle, given = list(self.cluster.hire(len(todo), self.home)), ray.put(shared)
        running: dict[Any, tuple[str, Any]] = {}
        bar = progress(None, "on the cluster", total=len(todo))
        while todo or running:
            while todo and idle:
                worker, name = idle.pop(), todo.pop(0)
                running[worker.do.remote(self.home, task, given, items[name])] = name, worker
            (ready, *_), _ = ray.wait(list(running))
            name, worker = running.pop(ready)
            self.kept.save(name, _result(ray, ready, name))
            idle.append(worker)
            bar.update()
        bar.close()


def _result(ray: Any, ready: Any, name: str) -> Any:
    try:
        return ray.get(ready)
    except ray.exceptions.RayTaskError as e:
        raise (e.cause if isinstance(e.cause, (BadInput, Fault)) else e) from None
    except ray.exceptions.RayActorError as e:
        raise Fault(
            f"part '{name}' lost its worker {RETRIES + 1} times (out of memory?); finished parts are kept"
        ) from e


def check_engine(name: str, address: str | None) -> None:
    """Before any work.

    Raises:
        BadInput: no such engine, one that is not installed, an address for an engine that has none.
    """
    if name not in ENGINES:
        raise BadInput(f"no engine '{name}': allowed are {', '.join(ENGINES)}")
    if name == "local" and address is not None:
        raise BadInput(f"--address '{address}' is for --engine ray; the local engine has none")
    if name == "ray" and importlib.util.find_spec("ray") is None:
        raise BadInput("the engine 'ray' is not installed; run: pip install 'ssah-lens[ray]'")


def cluster(name: str, address: str | None = None) -> AbstractContextManager[Cluster | None]:
    """The connection that an engine needs; None for the local one."""
    return nullcontext() if name == "local" else _connected(address)


@contextmanager
def _connected(address: str | None) -> Iterator[Cluster]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    quietly = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": None if address else False}
    try:
        host, _, port = (address or "").rpartition(":")
        if port.isdigit() and "/" not in host:  # Ray itself waits long for an answer
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address=address or "local", **quietly)
    except Exception as e:  # Ray says by many kinds of it that nothing answers, or that its processes do not come up
        where = f"no Ray cluster at '{address}'" if address else "Ray cannot start here"
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise BadInput(f"{where}: {reason}; start one with 'ray start --head', or use --engine local") from e
    connected = Cluster(ray)
    try:
        yield connected
    finally:
        connected.dismiss()
        ray.shutdown()
