"""The command line of a benchmark that is made in pieces: each is on disk before the next one begins, the table from
the file alone.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from harness.machine import machine, others
from harness.store import DATA, ROOT, begun, gathered, place, save
from shallower.errors import UserError, arguments_as_options
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
    jobs: Callable[[Path, dict, dict], Jobs],
    table: Callable[[dict], str],
    picture: Callable[[dict], bytes] | None = None,
) -> None:
    """Read the arguments, make what is missing, and end the process with a line where that cannot be.

    Args:
        name: of the file of results.
        beside: a file beside the folder of the texts without which nothing can be made.
        settings: in full, and of a quick trial.
        about: settings -> all that decides the results.
        jobs: folder of the texts, settings, the results of pieces so far -> the pieces.
        table: the content of the file in Markdown.
        picture: the same as PNG.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    parser = parser_of(doc, name)
    parser.add_argument("--gather", type=Path, metavar="FILE", help="only take over the pieces of another such result")
    ended(lambda: _run(parsed(parser, name), beside, settings, about, jobs, partial(_show, table, picture)))


def _show(table: Callable[[dict], str], picture: Callable[[dict], bytes] | None, content: dict, out: Path) -> None:
    """Write the table, and the picture where there is one, beside the results."""
    if picture is not None:
        write_atomic(out.with_suffix(".png"), picture(content))
    print(write_atomic(out.with_suffix(".md"), table(content)))


def ended(main: Callable[[], None]) -> None:
    """Run a benchmark; what a user can mend ends the process with a line that names options."""
    with arguments_as_options({}):
        try:
            main()
        except (UserError, OSError) as error:
            sys.exit(f"error: {error}")


def parser_of(doc: str, name: str, *, trial: str = "quick", without: tuple[str, ...] = ()) -> argparse.ArgumentParser:
    """A parser with the options that benchmarks in pieces share.

    Args:
        name: of the file of results.
        trial: the option of a quick trial.
        without: options that this one does not take.
    """
    shared = {
        "data": {"type": Path, "default": DATA, "help": "folder of the texts, also $SHALLOWER_DATA (%(default)s)"},
        "out": {"type": Path, "help": f"the results; the table goes beside it (benchmarks/results/{name}.json)"},
        trial: {"action": "store_true", "help": "a trial with little of everything; needs --out"},
        "again": {"metavar": "NAME", "help": "measure the pieces anew whose name begins so"},
        "only": {"metavar": "NAME", "default": "", "help": "only pieces whose name begins so"},
        "restart": {"action": "store_true", "help": "begin anew"},
        "table": {"action": "store_true", "help": "only remake the table from the results"},
    }
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, how in shared.items():
        if option not in without:
            parser.add_argument(f"--{option}", **how)
    return parser


def parsed(parser: argparse.ArgumentParser, name: str, *, trial: str = "quick") -> argparse.Namespace:
    """The arguments, with the place of the results settled; a trial must not replace the real ones."""
    given = parser.parse_args()
    if getattr(given, trial) and not given.out:
        parser.error(f"--{trial} needs --out FILE, so that the real results stay as they are")
    given.out = given.out or ROOT / f"benchmarks/results/{name}.json"
    return given


def check_data(data: Path, *names: str) -> None:
    """Raise a UserError unless these texts are in the folder of the texts."""
    for name in names:
        if not (data / name).is_file():
            raise UserError(f"no {name} in {data}: say with --data or $SHALLOWER_DATA where the texts are")


def needed(pieces: dict, name: str) -> dict:
    """A piece that another one needs.

    Raises:
        UserError: it was not made.
    """
    if name not in pieces:
        raise UserError(f"{name!r} has to be made first: --only {name!r}, or all pieces without --only")
    return pieces[name]


def _run(given: argparse.Namespace, beside: str, settings: tuple[dict, dict], about, jobs, show) -> None:
    chosen = settings[given.quick]
    if given.table:
        show(json.loads(given.out.read_text()), given.out)
        return
    if given.gather:
        content = gathered(given.out, given.gather)
        save(given.out, content)
        show(content, given.out)
        return
    if not (given.data.parent / beside).is_file():
        raise UserError(f"no {beside} beside {given.data}: say with --data or $SHALLOWER_DATA where the texts are")
    content = begun(given.out, about(chosen), restart=given.restart)
    with shown():
        for name, make in jobs(given.data, chosen, content["pieces"]).items():
            wanted = name not in content["pieces"] or (given.again and name.startswith(given.again))
            if wanted and name.startswith(given.only):
                print(name, file=sys.stderr)
                with others() as shared:
                    made = make()
                content["pieces"][name] = made | shared | place(content, machine())
                save(given.out, content)
                show(content, given.out)
