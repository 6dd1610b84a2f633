"""The command line of a benchmark that is made in pieces: each is on disk before the next one begins, the table from
the file alone.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from harness.machine import others
from harness.store import DATA, ROOT, begun, save
from shallower import UserError
from shallower.runtime.progress import shown
from shallower.storage.files import write_atomic

Jobs = dict[str, Callable[[], dict]]


def run(
    doc: str,
    name: str,
    *,
    beside: str,
    settings: tuple[dict, dict],
    about: Callable[[dict], dict],
    jobs: Callable[[Path, dict], Jobs],
    table: Callable[[dict], str],
) -> None:
    """Read the arguments, make what is missing, and end the process with a line where that cannot be.

    Args:
        name: of the file of results.
        beside: a file beside the folder of the texts without which nothing can be made.
        settings: in full, and of a quick trial.
        about: settings -> all that decides the results.
        jobs: folder of the texts, settings -> the pieces.
        table: the content of the file in Markdown.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        _run(_arguments(doc, name), beside, settings, about, jobs, table)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


def _arguments(doc: str, name: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=DATA, help="folder of the texts, the other data beside it (%(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, help=f"the results; the table goes beside it (benchmarks/results/{name}.json)"
    )
    parser.add_argument("--quick", action="store_true", help="a trial with little of everything; needs --out")
    parser.add_argument("--again", metavar="NAME", help="measure the pieces anew whose name begins so")
    parser.add_argument("--only", metavar="NAME", default="", help="only pieces whose name begins so")
    parser.add_argument("--restart", action="store_true", help="begin anew")
    parser.add_argument("--table", action="store_true", help="only remake the table from the results")
    given = parser.parse_args()
    if given.quick and not given.out:
        parser.error("--quick needs --out FILE, so that the real results stay as they are")
    given.out = given.out or ROOT / f"benchmarks/results/{name}.json"
    return given


def _run(given: argparse.Namespace, beside: str, settings: tuple[dict, dict], about, jobs, table) -> None:
    chosen = settings[given.quick]
    if given.table:
        print(write_atomic(given.out.with_suffix(".md"), table(json.loads(given.out.read_text()))))
        return
    if not (given.data.parent / beside).is_file():
        raise UserError(f"no {beside} beside {given.data}: say with --data or $SHALLOWER_DATA where the texts are")
    content = begun(given.out, about(chosen), restart=given.restart)
    with shown():
        for name, make in jobs(given.data, chosen).items():
            wanted = name not in content["pieces"] or (given.again and name.startswith(given.again))
            if wanted and name.startswith(given.only):
                print(name, file=sys.stderr)
                with others() as shared:
                    made = make()
                content["pieces"][name] = made | shared
                save(given.out, content)
                print(write_atomic(given.out.with_suffix(".md"), table(content)))
