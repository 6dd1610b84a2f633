"""llm-compressor in an environment of its own: found, asked for its versions, and given jobs in a process of its own.

It asks for an older transformers than this package, so it seldom stands in the same environment. A job is a JSON file;
``quantise_worker.py`` does it and writes another one. The process ends with this one.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import Any

from ..errors import UserError, argument
from ..runtime.progress import LOG_SECONDS, say
from ..storage.paths import parse_json

PACKAGE = "llmcompressor"
VARIABLE = "SHALLOWER_QUANTIZE_PYTHON"
WORKER = Path(__file__).with_name("quantise_worker.py")
MARK = "shallower: "  # in front of the lines that the worker itself prints
LAST = "error: "  # in front of the line in which it says why it ends
BAR = "%|"  # in lines of libraries that say how far they are
PACKAGES = (PACKAGE, "compressed-tensors", "transformers", "torch", "datasets", "numpy")
PROBE = f"""
import importlib.metadata, json, platform
found = {{"python": platform.python_version()}}
for name in {PACKAGES}:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""
PROBE_SECONDS = 60.0
ENDING_SECONDS = 10.0  # between asking a process to end and ending it
LONGEST_LINE = 200


@dataclass(frozen=True)
class Environment:
    """An interpreter, as an absolute path, and the versions of what quantises there."""

    python: str
    versions: dict[str, str]

    @property
    def label(self) -> str:
        """The versions that matter, for people."""
        names = (PACKAGE, "compressed-tensors", "transformers", "torch")
        return ", ".join(f"{name} {self.versions[name]}" for name in names if name in self.versions)


def how_to_make() -> str:
    """The commands that make the environment."""
    folder = "quantize-env"
    return (
        f"python -m venv {folder} && {folder}/bin/pip install {PACKAGE}, then "
        f"{argument('python', f'{folder}/bin/python')} or ${VARIABLE}"
    )


def environment(python: str | Path | None) -> Environment:
    """The environment that quantises.

    Args:
        python: its interpreter; None: as the environment variable says, else the one that runs now.
    Raises:
        UserError: there is no such interpreter, or llm-compressor is not installed there.
    """
    named = str(python or os.environ.get(VARIABLE) or sys.executable)
    found = shutil.which(os.path.expanduser(named))
    if found is None:
        raise UserError(
            f"there is no interpreter {named} that can be run: give that of an environment with llm-compressor, made "
            f"by {how_to_make()}"
        )
    found = os.path.abspath(found)  # links stay: a virtual environment is known by them
    versions = _versions(found)
    if PACKAGE not in versions:
        where = f"{named} has none" if python or os.environ.get(VARIABLE) else "it is not installed beside shallower"
        raise UserError(
            f"llm-compressor quantises, and {where}; it asks for an older transformers, so give it an environment of "
            f"its own: {how_to_make()}"
        )
    return Environment(found, versions)


def _versions(python: str) -> dict[str, str]:
    """Versions that an interpreter has, found without importing anything large."""
    try:
        command = [python, "-I", "-c", PROBE]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, stdin=subprocess.DEVNULL)
        found = json.loads(done.stdout)
        return {str(name): str(version) for name, version in found.items()}
    except (OSError, ValueError, AttributeError, subprocess.TimeoutExpired) as error:
        raise UserError(
            f"{python} does not answer as a Python interpreter ({' '.join(str(error).split())[:120]}): give one of an "
            f"environment with llm-compressor, made by {how_to_make()}"
        ) from error


def run_job(environment: Environment, job: dict[str, Any], folder: Path, what: str) -> dict[str, Any]:
    """Run a job in the environment; its lines are passed on now and then.

    Args:
        job: what ``quantise_worker`` does.
        folder: for the job's own files.
        what: is done to which model, for messages.
    Returns:
        What the worker has written of it.
    Raises:
        UserError: it fails; says its last line.
    """
    asked, answer = folder / "job.json", folder / "answer.json"
    asked.write_text(json.dumps(job | {"answer": str(answer)}), encoding="utf-8")
    answer.unlink(missing_ok=True)
    lines: deque[str] = deque(maxlen=20)
    with _process([environment.python, "-I", "-u", str(WORKER), str(asked)], folder) as process:
        for line in _passed_on(process.stdout):
            lines.append(line)
        status = process.wait()
    if status or not answer.is_file():
        raise UserError(f"{what} failed in the environment of {environment.python} ({_reason(status, lines)})")
    found = parse_json(answer.read_bytes(), "the answer of the quantising process")
    if not isinstance(found, dict):
        raise UserError(f"{what} failed: the process of {environment.python} has written no answer that can be read")
    return found


@contextmanager
def _process(command: list[str], folder: Path) -> Iterator[subprocess.Popen]:
    """A process that ends when the block does; while its input is open it knows that we are there."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    text = {"text": True, "encoding": "utf-8", "errors": "replace"}
    with subprocess.Popen(command, cwd=folder, env=environment, **pipes, **text) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(ENDING_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()


def _passed_on(stream: Any) -> Iterator[str]:
    """Lines of a process, shown: its own marked ones all, of the bars of libraries one now and then."""
    shown = 0.0
    for raw in stream:  # a bar's returns are line ends here
        line = " ".join(raw.split())[:LONGEST_LINE]
        if not line:
            continue
        if line.startswith(MARK):
            say(line.removeprefix(MARK))
        elif BAR in line and time.monotonic() - shown >= LOG_SECONDS:
            say(f"  {line}")
            shown = time.monotonic()
        yield line


def _reason(status: int, lines: deque[str]) -> str:
    """Why a process has ended, from its last lines."""
    if status < 0:
        return f"ended by signal {-status}" + (": is there memory enough?" if -status == SIGKILL else "")
    said = [line.removeprefix(LAST) for line in lines if line.startswith(LAST)]
    return (said or [*lines] or [f"status {status}"])[-1]
