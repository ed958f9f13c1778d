"""Commands in processes of their own, without three seconds of imports for each.

`command("models", "--json")` is `python -m ssah_lens models --json`, and `python("-c", code)` is `python -c code`, but
for one thing: the process is not a new interpreter. It is forked from a server that has imported the libraries below,
and nothing else. Why that proves as much:

- What is tested is not shared. The server never imports ssah_lens: each process imports it anew, from the top.
- It is a process, not a call: file descriptors, working folder, environment and limits are its own, and are gone with
  it. The exit status is the system's, and a killed process shows its signal. Standard output and standard error are
  read whole, whoever wrote to them.
- The libraries are as an import leaves them: no work was done, no thread is there (the server refuses to fork then).

What it cannot show is a start, and the very end: which libraries a command imports, what they print then, which
variables of the environment they read then (`READ_AT_IMPORT` is refused), and how the interpreter takes its modules
down, half a second each time. `run_anew`, `tests/test_startup.py` and `tests/test_full_disk.py` are for these.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import resource
import runpy
import select
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
LIBRARIES = (
    "torch", "transformers", "transformers.generation", "transformers.models.llama.modeling_llama", "safetensors.torch",
    "transformer_lens", "transformer_lens.model_bridge", "datasets", "peft", "pandas", "pyarrow.parquet", "scipy.stats",
    "matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "plotly.graph_objects",
    "pydantic", "typer", "rich.table", "jinja2",
)  # fmt: skip
ONE_THREAD = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
AS_THE_COMMAND_SETS_THEM = {
    "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip
"""Before it imports transformers, which reads them then."""
READ_AT_IMPORT = ("HF_", "TRANSFORMERS_", "OMP_", "MKL_", "TORCH_", "MPL", "PYTHON")


Done = subprocess.CompletedProcess[str]


def command(*words: str, cwd: Path = ROOT, file_size: int | None = None, **env: str) -> Done:
    """`python -m ssah_lens`, forked."""
    return python("-m", "ssah_lens", *words, cwd=cwd, file_size=file_size, **env)


def run_anew(*words: str, cwd: Path = ROOT) -> Done:
    """The same as a new interpreter: for what the start of a command does."""
    line = [sys.executable, "-m", "ssah_lens", *words]
    return subprocess.run(line, cwd=cwd, env=os.environ | ONE_THREAD, capture_output=True, text=True, timeout=300)


def python(*words: str, cwd: Path = ROOT, file_size: int | None = None, timeout: float = 300, **env: str) -> Done:
    """`python` with these words, forked: `-m` and a module, `-c` and code, or a file, then its arguments.

    Args:
        words: the command line after `python`.
        cwd: working folder.
        file_size: no file may grow beyond so many bytes, as on a full disk.
        timeout: seconds after which it is killed.
        env: set beside what this process has.
    """
    fixed = [name for name in env if name.startswith(READ_AT_IMPORT)]
    if fixed:
        raise ValueError(f"{fixed} would be read when libraries are imported, which was before: use a new interpreter")
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        request = {"words": words, "cwd": str(cwd), "out": str(out), "err": str(err), "file_size": file_size}
        code = _server().fork(request | {"env": {**os.environ, **env}}, timeout)
        said = (out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8"))
    if code is None:
        raise subprocess.TimeoutExpired(words, timeout, *said)
    return Done(words, code, *said)


class _Server:
    """The process that imports and forks; one for all commands of this process, ended with it."""

    def __init__(self) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (as long as the server)
        self.process = subprocess.Popen(
            [sys.executable, __file__], cwd=ROOT, env=os.environ | ONE_THREAD | AS_THE_COMMAND_SETS_THEM, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
        )  # fmt: skip
        atexit.register(self.process.communicate)

    def fork(self, request: dict, timeout: float) -> int | None:
        """The exit status of one process, as `subprocess` has it; None when it took too long and was killed."""
        print(json.dumps(request), file=self.process.stdin, flush=True)
        pid = self._answer()
        late = not select.select([self.process.stdout], [], [], timeout)[0]
        if late:
            os.kill(pid, 9)
        code = self._answer()
        return None if late else code

    def _answer(self) -> int:
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise RuntimeError(f"the server of commands has ended: {self.errors.read()[-3000:]}")
        return int(line)


_server = cache(_Server)


# ---- in the server


def serve() -> None:
    """A process for each line on standard input: its id is answered at once, its exit status when it has ended."""
    for name in LIBRARIES:
        importlib.import_module(name)
    if threading.active_count() > 1 or any(name.partition(".")[0] == "ssah_lens" for name in sys.modules):
        raise SystemExit("there are threads, which a fork would lose, or ssah_lens, which is to be imported anew")
    gc.collect()
    gc.freeze()
    for line in iter(sys.stdin.readline, ""):
        pid = os.fork()
        if pid == 0:
            os._exit(status_of(lambda request=line: become(**json.loads(request))))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def status_of(run: Callable[[], None]) -> int:
    """The exit status that the interpreter would end with, all that it has to do at its end done."""
    try:
        run()
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 120
    return code


def become(words: list[str], cwd: str, env: dict[str, str], out: str, err: str, file_size: int | None) -> None:
    """This process is the one that was asked for; what it raises ends it, as anywhere."""
    for number, file, how in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
        opened = os.open(file, how | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    first, *rest = words
    if first == "-m":
        sys.argv, sys.path[0] = rest, cwd
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], cwd
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    else:
        sys.argv, sys.path[0] = words, str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    serve()
