"""Where tasks run changes nothing: in this process, or on a real local Ray cluster whose worker is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import micro_study
import pytest
from kill_trials import contents, differences

from ssah_lens.chat.model import ChatModel
from ssah_lens.config import study_config
from ssah_lens.errors import BadInput, Fault
from ssah_lens.results import SizeChoice
from ssah_lens.study import engine
from ssah_lens.study.engine import Here, Home, OnRay, check_engine
from ssah_lens.study.parts import Parts
from ssah_lens.study.runner import run_study


@dataclass(frozen=True)
class Item:
    """What a task of these tests is told to do."""

    value: float
    log: Path
    dies: int = 0
    wrong: str = ""


def noted(model: ChatModel, shared: float, item: Item) -> SizeChoice:
    """Writes down that it ran; dies the first `dies` times."""
    runs = len(list(item.log.glob(f"{item.value}-*")))
    (item.log / f"{item.value}-{runs}").write_text(str(os.getpid()))
    if item.wrong:
        raise BadInput(item.wrong)
    if runs < item.dies:
        os.kill(os.getpid(), signal.SIGKILL)
    return SizeChoice(item.value, shared, float(model.plain.get_input_embeddings().weight.double().sum()))


def runs(log: Path) -> dict[str, int]:
    names = [p.name.split("-")[0] for p in log.iterdir()]
    return {n: names.count(n) for n in sorted(set(names))}


def test_finished_tasks_are_not_run_again(micro: ChatModel, tmp_path: Path):
    log, keep = tmp_path / "log", Parts(tmp_path / "parts")
    log.mkdir()
    items = {f"n{i}": Item(float(i), log) for i in range(3)}
    keep.save("n1", noted(micro, 2.0, items["n1"]))
    found = Here(micro).map(noted, 2.0, items, SizeChoice, keep)
    assert [c.share for c in found] == [0, 1, 2] and runs(log) == {"0.0": 1, "1.0": 1, "2.0": 1}
    assert Here(micro).map(noted, 2.0, items, SizeChoice, keep) == found and len(list(log.iterdir())) == 3


def test_a_wrong_engine_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(BadInput, match="no engine 'spark': allowed are local, ray"):
        run_study(study_config(), tmp_path / "run", engine="spark")
    with pytest.raises(BadInput, match="the local engine has none"):
        check_engine("local", "10.0.0.1:6379")
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"not installed; run: pip install 'ssah-lens\[ray\]'"):
        run_study(study_config(), tmp_path / "run", engine="ray")
    assert not (tmp_path / "run").exists()


# ---- on Ray


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield engine.Cluster(ray)
    ray.shutdown()


def test_a_killed_worker_costs_its_own_task_only(cluster, micro_base: Path, tmp_path: Path):
    log, keep = tmp_path / "log", Parts(tmp_path / "parts")
    log.mkdir()
    home = Home(str(micro_base), "shown", "cpu", "float32", 1)
    items = {f"n{i}": Item(float(i), log, dies=i == 2) for i in range(5)}
    found = OnRay(cluster, home).map(noted, 2.0, items, SizeChoice, keep)
    assert runs(log) == {"0.0": 1, "1.0": 1, "2.0": 2, "3.0": 1, "4.0": 1}
    assert found == Here(home.load()).map(noted, 2.0, {n: Item(i.value, log) for n, i in items.items()}, SizeChoice,
                                          Parts(None))  # fmt: skip
    assert len({p.read_text() for p in log.iterdir()}) >= 3  # two workers and the one that took a dead one's place


def test_what_a_task_says_is_wrong_reaches_the_user(cluster, micro_base: Path, tmp_path: Path):
    keep = Parts(tmp_path / "parts")
    engine_ = OnRay(cluster, Home(str(micro_base), "shown", "cpu", "float32", 1))
    with pytest.raises(BadInput, match="^one line$"):
        engine_.map(noted, 2.0, {"a": Item(0.0, tmp_path, wrong="one line")}, SizeChoice, keep)
    with pytest.raises(Fault, match="part 'b' lost its worker 3 times"):
        engine_.map(noted, 2.0, {"b": Item(1.0, tmp_path, dies=99)}, SizeChoice, keep)
    elsewhere = OnRay(cluster, Home(str(micro_base / "nowhere"), "shown", "cpu", "float32", 1))
    with pytest.raises(BadInput, match="no model"):
        elsewhere.map(noted, 2.0, {"c": Item(2.0, tmp_path)}, SizeChoice, keep)


def test_a_cluster_without_room_is_refused(cluster, micro_base: Path):
    with pytest.raises(BadInput, match="no machine of the Ray cluster has 64 CPU"):
        engine.Cluster(cluster.ray).hire(1, Home(str(micro_base), "shown", "cpu", "float32", 64))


def test_no_cluster_at_the_address():
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    # port 9 is the discard service: nothing answers there
    with pytest.raises(BadInput, match="no Ray cluster at '127.0.0.1:9'"), engine.cluster("ray", "127.0.0.1:9"):
        pass


def test_a_study_on_ray_is_the_same_to_the_bit(cluster, micro_base: Path, tmp_path: Path):
    """The command itself; both runs go on from the same aligned model."""
    file = micro_study.write_config(tmp_path / "study.toml", micro_base)
    run_study(study_config(file), tmp_path / "here", ["align", "refusal"])
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    run_study(study_config(file), tmp_path / "here")
    address = cluster.ray.get_runtime_context().gcs_address
    words = ["study", "--config", str(file), "--out", str(tmp_path / "there"), "--engine", "ray", "--address", address]
    done = subprocess.run([sys.executable, "-m", "ssah_lens", *words, "--json"], capture_output=True, text=True,
                          timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["scorecard"]
    assert differences(contents(tmp_path / "there"), contents(tmp_path / "here")) == []
