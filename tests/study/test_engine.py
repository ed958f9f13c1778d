"""Where tasks run changes nothing: in this process, or on a real local Ray cluster whose worker is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import micro_study
import pytest
from commands import command
from kill_trials import contents, differences

from ssah_lens.chat.model import ChatModel
from ssah_lens.config import study_config
from ssah_lens.errors import BadInput, Fault
from ssah_lens.results import SizeChoice
from ssah_lens.study import engine
from ssah_lens.study.engine import Cluster, Home, OnRay, check_engine
from ssah_lens.study.parts import Parts
from ssah_lens.study.plan import ON_ENGINE
from ssah_lens.study.record import RunFolder
from ssah_lens.study.runner import Study, run_study


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


def test_a_wrong_engine_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(BadInput, match="no engine 'spark': allowed are local, ray"):
        run_study(study_config(), tmp_path / "run", engine="spark")
    with pytest.raises(BadInput, match="the local engine has none"):
        check_engine("local", "10.0.0.1:6379")
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"not installed; run: pip install 'ssah-lens\[ray\]'"):
        run_study(study_config(), tmp_path / "run", engine="ray")
    assert not (tmp_path / "run").exists()


def test_a_worker_asks_under_the_system_prompt_of_the_run(micro_base: Path, tmp_path: Path):
    """Else its prompts are other ones than those of the process that began the run."""
    config = study_config(model=str(micro_base), system="Be brief.")
    study = Study(config, RunFolder.open(tmp_path / "run", config), lambda _: None)
    study.cluster = Cluster(None)
    home = study.ahead("ablate").home
    assert home.load().rows(["Hi"])[0].ids == study.aligned.rows(["Hi"])[0].ids
    assert "Be brief." in home.load().render("Hi")
    assert "Be brief." not in replace(home, system=None).load().render("Hi")


def test_a_worker_has_the_model_that_the_stage_is_about(micro_base: Path, tmp_path: Path):
    """The budget is spent on the unaligned model, everything else on the aligned one."""
    other = tmp_path / "other"
    shutil.copytree(micro_base, other)
    config = study_config(model=str(micro_base), unaligned=str(other))
    study = Study(config, RunFolder.open(tmp_path / "run", config), lambda _: None)
    study.cluster = Cluster(None)
    assert study.ahead("tuning").home.name == str(micro_base)
    assert study.ahead("budget", unaligned=True).home.name == str(other)
    assert {"tuning", "budget"} <= ON_ENGINE


# ---- parts that others made


@dataclass(frozen=True)
class Done:
    """A study of which the first stages are done, and the same with all of them, made here."""

    config: Path
    start: Path
    whole: Path

    def differs(self, folder: Path) -> list[str]:
        return differences(contents(folder), contents(self.whole))


MADE_AHEAD = ["units", "ablate", "freeze", "tuning", "budget"]


@pytest.fixture(scope="module")
def done(micro_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    root = tmp_path_factory.mktemp("engine")
    config = micro_study.write_config(root / "study.toml", micro_base, score="exact")
    run_study(study_config(config), root / "start", ["align", "refusal"])
    shutil.copytree(root / "start", root / "whole")
    run_study(study_config(config), root / "whole", MADE_AHEAD)
    return Done(config, root / "start", root / "whole")


def test_tasks_depend_on_nothing_but_what_they_are_given(
    done: Done, micro_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Pickled as for another machine, run last first on a model read anew: the same study to the bit."""
    cloudpickle = pytest.importorskip("cloudpickle")
    folder, made = Path(shutil.copytree(done.start, tmp_path / "run")), []

    def ahead(self: Study, stage: str, unaligned: bool = False):
        keep = self.folder.parts(stage)
        where, shown = (micro_base, self.unaligned) if unaligned else (folder / "aligned", self.aligned)
        model = Home(str(where), shown.name, "cpu", "float32", 1).load()

        def make(task, shared, items, kind) -> None:
            for name, item in reversed(items.items()):
                task_, shared_, item_ = cloudpickle.loads(cloudpickle.dumps((task, shared, item)))
                keep.save(name, task_(model, shared_, item_))
                made.append(name)

        return make

    monkeypatch.setattr(Study, "ahead", ahead)
    run_study(study_config(done.config), folder, MADE_AHEAD)
    assert done.differs(folder) == []
    wanted = {"SCU-mean", "SCU-zero", "SCU-score-1", "full-0", "freeze-random-0", "refusals-neuron-1"}
    assert wanted | {"ordinary-0-full", "ordinary-0-lora", "RU-only-0"} <= set(made)


# ---- on Ray


@pytest.fixture(scope="module")
def ray():
    found = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    found.init(address="local", num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False,
               log_to_driver=False, logging_level="ERROR")  # fmt: skip
    this = sys.modules[__name__]  # which workers cannot import: the tasks below go to them by value
    found.cloudpickle.register_pickle_by_value(this)
    yield found
    found.cloudpickle.unregister_pickle_by_value(this)
    found.shutdown()


@pytest.fixture
def cluster(ray):
    found = Cluster(ray)
    yield found
    found.dismiss()


def test_a_killed_worker_costs_its_own_task_only(cluster: Cluster, micro_base: Path, tmp_path: Path):
    """Kept parts are not made again; of the others each is made once, but for the one whose worker was killed."""
    log, keep = tmp_path / "log", Parts(tmp_path / "parts")
    log.mkdir()
    home = Home(str(micro_base), "shown", "cpu", "float32", 1)
    items = {f"n{i}": Item(float(i), log, dies=i == 2) for i in range(6)}
    keep.save("n5", SizeChoice(5.0, 0.0, 0.0))
    OnRay(cluster, home, keep)(noted, 2.0, items, SizeChoice)
    assert runs(log) == {"0.0": 1, "1.0": 1, "2.0": 2, "3.0": 1, "4.0": 1}
    assert len({p.read_text() for p in log.iterdir()}) >= 2
    model = home.load()
    for name in list(items)[:5]:
        assert keep.load(name, SizeChoice) == noted(model, 2.0, Item(items[name].value, log)), name
    assert keep.load("n5", SizeChoice).refused == 0


def test_what_a_task_says_is_wrong_reaches_the_user(
    cluster: Cluster, micro_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engine, "RETRIES", 0)
    keep, home = Parts(tmp_path / "parts"), Home(str(micro_base), "shown", "cpu", "float32", 1)
    with pytest.raises(BadInput, match="^one line$"):
        OnRay(cluster, home, keep)(noted, 2.0, {"a": Item(0.0, tmp_path, wrong="one line")}, SizeChoice)
    gone = replace(home, name=str(micro_base / "nowhere"))
    with pytest.raises(BadInput, match="^no model"):
        OnRay(cluster, gone, keep)(noted, 2.0, {"c": Item(2.0, tmp_path)}, SizeChoice)
    with pytest.raises(Fault, match="part 'b' lost its worker 1 times"):
        OnRay(cluster, home, keep)(noted, 2.0, {"b": Item(1.0, tmp_path, dies=99)}, SizeChoice)
    assert not list(tmp_path.glob("parts/*"))


def test_a_cluster_without_room_is_refused(cluster: Cluster, micro_base: Path):
    with pytest.raises(BadInput, match="no machine of the Ray cluster has 64 CPU"):
        cluster.hire(1, Home(str(micro_base), "shown", "cpu", "float32", 64))


def test_a_cluster_that_is_not_there_is_said_in_one_line(tmp_path: Path):
    """In a process of its own: this one is connected already."""
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    words = ["study", "--out", str(tmp_path / "run"), "--engine", "ray", "--address", "127.0.0.1:9"]  # discard service
    done = command(*words)
    assert done.returncode == 2 and "no Ray cluster at '127.0.0.1:9'" in done.stderr.splitlines()[-1], done.stderr


def test_a_study_on_ray_is_the_same_to_the_bit(ray, done: Done, tmp_path: Path):
    """The command itself."""
    folder = Path(shutil.copytree(done.start, tmp_path / "run"))
    address = ray.get_runtime_context().gcs_address
    words = ["--config", str(done.config), "--out", str(folder), "--engine", "ray", "--address", address]
    ran = command("study", *words, "--stages", ",".join(MADE_AHEAD), "--json")
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert json.loads(ran.stdout)["scorecard"] and done.differs(folder) == []
