"""Kills a study with SIGKILL at random moments, resumes it, and compares what comes out with an unbroken run's bits.

    python tests/kill_trials.py --trials 40 --seed 0

Each trial draws from (seed, trial) how often and when it is killed: at a random time, or just before or after one of
the moments at which a file or folder gets its final name. One process imports the libraries, each run is a fork of it.
With --config the study is the user's own, its runs are processes of their own, and each trial is killed in every stage.
Prints one JSON object; the exit status is 1 when anything was lost or altered.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

RENAMES = ("replace", "rename")
OUTPUT = ("log.jsonl", "record.json", ".lock", "report.html")
"""Files that hold times, or are shared: they differ from run to run."""


@dataclass
class Trial:
    """What was done to one run folder, and what came of it."""

    number: int
    kills: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def contents(folder: Path) -> dict[str, str]:
    """What a finished run folder holds: file -> digest, times aside."""
    out = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = file.relative_to(folder).as_posix()
        if name in OUTPUT:
            out[name] = "present"
        elif file.suffix == ".json" and (name == "results.json" or name.startswith("stages/")):
            held = json.loads(file.read_text(), object_hook=timeless)
            out[name] = hashlib.sha256(json.dumps(held).encode()).hexdigest()
        else:
            out[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return out


def timeless(values: dict) -> dict:
    """JSON without the times in it."""
    return {k: v for k, v in values.items() if not k.endswith("seconds")}


def differences(got: dict[str, str], expected: dict[str, str]) -> list[str]:
    """File by file."""
    return [
        f"{name}: {'missing' if name not in got else 'extra' if name not in expected else 'differs'}"
        for name in sorted(got.keys() | expected.keys())
        if got.get(name) != expected.get(name)
    ]


def stages_are_whole(folder: Path) -> list[str]:
    """Whatever carries a result's name must be one, at any moment."""
    bad = []
    for file in [*folder.glob("stages/*.json"), *folder.glob("stages/*/*.json"), *folder.glob("re*.json")]:
        try:
            json.loads(file.read_text())
        except ValueError:
            bad.append(f"{file.relative_to(folder)} is not whole")
    return bad


# ---- running


def forked(run: Callable[[], None], note: Path) -> int:
    """A child that runs and ends with status 0; its output goes to a file."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        out = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        run()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def study(config: Path, folder: Path) -> Callable[[], None]:
    def run() -> None:
        from ssah_lens.config import study_config
        from ssah_lens.study.runner import run_study

        run_study(study_config(config), folder)

    return run


def await_time(pid: int, seconds: float) -> None:
    """Returns when the child has had this much processor time, or has ended; elapsed time would measure other load."""
    tick = os.sysconf("SC_CLK_TCK")
    while True:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if state == "Z" or (int(rest[10]) + int(rest[11])) / tick >= seconds:
            return
        time.sleep(0.005)


def counting(run: Callable[[], None], counter: Path) -> Callable[[], None]:
    """Runs, and writes down how many renames there were."""

    def whole() -> None:
        seen = [0]
        watch_renames(lambda: seen.__setitem__(0, seen[0] + 1), lambda: None)
        run()
        counter.write_text(str(seen[0]))

    return whole


def killed_at_rename(run: Callable[[], None], nth: int, after: bool) -> Callable[[], None]:
    """Runs, and kills itself just before or after the nth rename."""

    def part() -> None:
        seen = [0]

        def before() -> None:
            seen[0] += 1
            if seen[0] == nth and not after:
                os.kill(os.getpid(), signal.SIGKILL)

        def done() -> None:
            if seen[0] == nth and after:
                os.kill(os.getpid(), signal.SIGKILL)

        watch_renames(before, done)
        run()

    return part


def watch_renames(before: Callable[[], None], after: Callable[[], None]) -> None:
    for name in RENAMES:
        real = getattr(os, name)

        def watched(*args, real=real, **kwargs):
            before()
            out = real(*args, **kwargs)
            after()
            return out

        setattr(os, name, watched)


def micro_trials(config: Path, work: Path, n: int, kills: int, seed: int) -> tuple[list[Trial], float, int]:
    """All trials of the micro study, each killed once to `kills` times."""
    unbroken, log = work / "unbroken", work / "log.txt"
    _, status, used = os.wait4(forked(counting(study(config, unbroken), work / "renames"), log), 0)
    if status:
        raise SystemExit(f"the unbroken run failed:\n{log.read_text()[-3000:]}")
    whole = used.ru_utime + used.ru_stime
    renames, expected = int((work / "renames").read_text()), contents(unbroken)
    trials = []
    for number in range(n):
        rng, trial, folder = np.random.default_rng([seed, number]), Trial(number), work / f"trial{number}"
        for _ in range(int(rng.integers(1, kills + 1))):
            nth, after, share = int(rng.integers(1, renames + 1)), bool(rng.integers(2)), float(rng.random())
            if number % 2:
                trial.kills.append(f"{'after' if after else 'before'} rename {nth} of {renames}")
                pid = forked(killed_at_rename(study(config, folder), nth, after), log)
            else:
                trial.kills.append(f"at {share:.2f} of the time")
                pid = forked(study(config, folder), log)
                await_time(pid, share * whole)
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            if folder.exists():
                trial.problems += stages_are_whole(folder)
        if os.waitpid(forked(study(config, folder), log), 0)[1] != 0:
            trial.problems.append(f"the last run failed: {log.read_text()[-600:]}")
        else:
            trial.problems += differences(contents(folder), expected)
        trials.append(trial)
        shutil.rmtree(folder, ignore_errors=True)
        print(f"trial {number}: {trial.kills} {trial.problems or 'same'}", file=sys.stderr, flush=True)
    return trials, whole, renames


def own_trials(config: Path, stages: str | None, work: Path, n: int, seed: int) -> tuple[list[Trial], float]:
    """Trials of the user's own study, in processes of its command: killed once in every stage, then let finish."""
    words = [sys.executable, "-m", "ssah_lens", "study", "--config", str(config), "--quiet", "--json"]
    words += [*(["--stages", stages] if stages else []), "--out"]
    start = lambda folder: subprocess.Popen([*words, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    started = time.monotonic()
    first = start(work / "unbroken")
    _, errors = first.communicate()
    if first.returncode:
        raise SystemExit(f"the unbroken run failed:\n{errors.decode()[-3000:]}")
    whole, expected = time.monotonic() - started, contents(work / "unbroken")
    took = {e["stage"]: e["seconds"] for e in events(work / "unbroken") if e["event"] == "done"}
    trials = []
    for number in range(n):
        trial, folder, rng = Trial(number), work / f"trial{number}", np.random.default_rng([seed, number])
        for stage, seconds in took.items():
            before, wait = len(events(folder)), seconds * rng.random()
            run = start(folder)
            begun = {"event": "start", "stage": stage}
            while run.poll() is None and not any(begun.items() <= e.items() for e in events(folder)[before:]):
                time.sleep(0.02)
            time.sleep(wait)
            run.kill()
            run.communicate()
            trial.kills.append(f"in {stage} after {wait:.1f} of {seconds:.1f} s, status {run.returncode}")
            trial.problems += stages_are_whole(folder)
            print(trial.kills[-1], trial.problems, file=sys.stderr, flush=True)
        last = start(folder)
        _, errors = last.communicate()
        trial.problems += [errors.decode()[-600:]] if last.returncode else differences(contents(folder), expected)
        trials.append(trial)
    return trials, whole


def events(folder: Path) -> list[dict]:
    """What the run folder's log says so far; [] before there is one."""
    log = folder / "log.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--trials", type=int, help="run folders that are maltreated: 40; with --config 1, killed in every stage"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", type=Path, help="a study of your own instead of the micro study")
    parser.add_argument("--stages", help="with --config: these stages of it, separated by commas")
    parser.add_argument("--kills", type=int, default=2, help="most kills of one trial")
    parser.add_argument("--base", type=Path, help="a micro model that was built before; built when it is not there")
    parser.add_argument("--work", type=Path, help="folder that the unbroken run is left in")
    given = parser.parse_args()
    os.environ |= {"TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    with tempfile.TemporaryDirectory() as scratch:
        work, renames = given.work or Path(scratch), None
        if given.config:
            trials, whole = own_trials(given.config, given.stages, work, given.trials or 1, given.seed)
        else:
            import_all()
            import micro_study

            base = given.base or work / "base"
            if not base.is_dir():
                micro_study.build(base)
            config = micro_study.write_config(work / "study.toml", base)
            trials, whole, renames = micro_trials(config, work, given.trials or 40, given.kills, given.seed)
    bad = [t for t in trials if t.problems]
    answer = {
        "seed": given.seed,
        "trials": len(trials),
        "kills": sum(len(t.kills) for t in trials),
        "altered": len(bad),
    }
    answer |= {"whole_seconds": round(whole, 1), "renames": renames, "runs": [vars(t) for t in trials]}
    print(json.dumps(answer))
    return int(bool(bad))


def import_all() -> None:
    """What a study needs, once, before the forks, and no garbage for them; one thread, which is what may be forked."""
    import torch
    import transformer_lens.model_bridge  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import ssah_lens.score.mask
    import ssah_lens.show.run_folder
    import ssah_lens.study.freeze
    import ssah_lens.study.runner
    import ssah_lens.study.scorecard
    import ssah_lens.study.stages
    import ssah_lens.study.tuning_stages
    import ssah_lens.train.checkpoint

    torch.set_num_threads(1)
    # What a long training keeps every minute or two, these short ones keep at every step.
    ssah_lens.train.checkpoint.PAUSE = ssah_lens.score.mask.KEPT_EVERY = 0.0
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())
