"""Whole layers against attention only, MLP only and both mixed, at equal parameters, in fp32 on the CPU.

Every kind of unit is removed by Taylor+, by its removal losses (one-shot) and by greedy until 10 and 20 % of the
parameters are gone; what goes is evaluated on three texts as it is, and with a repair without training. A kind of which
that much cannot go, or not within 1 % of it, has no figure there. Each finished piece is on disk before the next one
begins; the table is made from the JSON file alone. A second model is measured too where $SHALLOWER_SECOND_MODEL names
one.
"""

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean

from harness.machine import machine
from harness.pieces import Jobs, check_data, run
from harness.store import CALIBRATION, FP32, TEXTS

from shallower import Amount, Calibration, Protocol, RepairOptions, SelectionOptions, UserError, open_model, plan
from shallower.anatomy.model import Model
from shallower.artifacts import NOTHING, UNIT_KINDS, Units
from shallower.cli.demo import demo_model
from shallower.evaluation.perplexity import evaluation_segments, perplexity
from shallower.evaluation.removals import removals_perplexity
from shallower.runtime.memory import Peak
from shallower.runtime.provenance import versions
from shallower.stages.prune import fit_repair

WAYS = {"taylor": ("taylor", "lowest"), "perplexity": ("perplexity", "lowest"), "greedy": ("perplexity", "greedy")}
SECOND = "SHALLOWER_SECOND_MODEL"
NEAR = 0.01  # of all parameters: how far from a share a removal may be and still stand for it
FULL = {"shares": [0.1, 0.2], "scoring": [10, 128], "fitting": [64, 128], "tokens": 4096, "length": 128}
QUICK = {"shares": [0.1], "scoring": [2, 32], "fitting": [8, 32], "tokens": 256, "length": 32}


def sources() -> list[Path]:
    """The models: the demo's, and a second one where it is named."""
    return [demo_model(), *([Path(os.environ[SECOND])] if os.environ.get(SECOND) else [])]


def about(settings: dict) -> dict:
    """All that decides the results."""
    return {"settings": settings, "texts": list(TEXTS), "versions": versions(), "machine": machine()}


def jobs(data: Path, settings: dict) -> Jobs:
    """The pieces, by model, kind of unit and way, repairs last."""
    check_data(data, CALIBRATION, *TEXTS)
    found: dict[str, Callable[[], dict]] = {}
    for source in sources():
        bench = Bench(source, data, settings)
        name = source.stem
        found |= {f"dense {name}": bench.dense}
        for way in WAYS:
            for kind in UNIT_KINDS:
                found[f"choose {name} {kind} {way}"] = partial(bench.choose, kind, way)
        for kind in UNIT_KINDS:
            found[f"repair {name} {kind} greedy"] = partial(bench.repair, kind)
    return found


class Bench:
    """One model: what goes by every way, and what that costs."""

    def __init__(self, source: Path, data: Path, settings: dict):
        self.model: Model = open_model(source, FP32)
        self.data, self.settings = data, settings
        samples, length = settings["scoring"]
        self.calibration = Calibration(text=str(data / CALIBRATION), samples=samples, length=length)
        self.orders: dict[tuple[str, str], list[int]] = {}

    @property
    def texts(self) -> dict:
        """The texts that perplexity is measured on."""
        protocol = Protocol(length=self.settings["length"], max_tokens=self.settings["tokens"])
        return evaluation_segments(self.model, [self.data / name for name in TEXTS], None, protocol)

    def dense(self) -> dict:
        """Perplexity of the model as it is."""
        found = removals_perplexity(self.model, self.texts, [NOTHING], "dense")[0]
        return {"perplexity": {name: one.value for name, one in found.items()}, "layers": self.model.record.layers}

    def order(self, kind: str, way: str) -> list[int]:
        """Numbers of the units in the order of removal, until the largest share is gone or no more may go."""
        key = kind, way
        if key not in self.orders:
            criterion, selection = WAYS[way]
            units = self.model.units(kind)
            for share in reversed(self.settings["shares"]):
                try:
                    chosen = plan(
                        self.model,
                        amount=Amount(ratio=share),
                        choosing=SelectionOptions(selection),
                        criterion=criterion,
                        units=kind,
                        calibration=self.calibration,
                    )
                    break
                except UserError:  # more than there is of the kind
                    continue
            else:
                return []
            names = [*chosen.units] or [str(index) for index in chosen.order]
            known = {units.name(number): number for number in range(len(units))}
            self.orders[key] = [known[name] for name in names]
        return self.orders[key]

    def cut(self, units: Units, order: list[int], share: float) -> list[int] | None:
        """The first units of an order with which about that share goes; None where none is near enough."""
        every = self.model.record.parameters
        cuts = [order[:count] for count in range(1, len(order) + 1)]
        nearest = min(cuts, key=lambda one: abs(units.parameters(one) / every - share), default=[])
        near = nearest and abs(units.parameters(nearest) / every - share) <= NEAR + _coarse(units, every)
        return nearest if near else None

    def choose(self, kind: str, way: str) -> dict:
        """What goes at every share, and the perplexity without it."""
        units = self.model.units(kind)
        with Peak("cpu") as peak:
            order = self.order(kind, way)
        cuts = {share: one for share in self.settings["shares"] if (one := self.cut(units, order, share))}
        removals = [units.removal(numbers) for numbers in cuts.values()]
        figures = removals_perplexity(self.model, self.texts, removals, f"{kind} {way}") if removals else []
        rows = {
            f"{share:g}": {
                "units": [units.name(number) for number in numbers],
                "share": units.parameters(numbers) / self.model.record.parameters,
                "perplexity": {name: value.value for name, value in figure.items()},
            }
            for (share, numbers), figure in zip(cuts.items(), figures, strict=True)
        }
        return {"rows": rows, "seconds": peak.seconds}

    def repair(self, kind: str) -> dict:
        """The largest share that greedy removed, repaired by ``sequential``."""
        units = self.model.units(kind)
        share = self.settings["shares"][-1]
        numbers = self.cut(units, self.order(kind, "greedy"), share)
        if numbers is None:
            return {"rows": {}}
        samples, length = self.settings["fitting"]
        calibration = Calibration(samples=samples, length=length)  # of the shipped prose: no kind of the texts alone
        removal = units.removal(numbers)
        patch, report = fit_repair(self.model, removal, RepairOptions("sequential", {}, calibration))
        with self.model.patched(patch):
            found = {name: perplexity(self.model, one, removal=removal).value for name, one in self.texts.items()}
        row = {"share": units.parameters(numbers) / self.model.record.parameters, "perplexity": found}
        return {"rows": {f"{share:g}": row}, "changed": len(patch), "seconds": report.seconds}


def _coarse(units: Units, every: int) -> float:
    """Half of the largest unit, as a share: whole layers cannot come nearer."""
    return max(one.parameters for one in units.listing) / every / 2 if units.whole else 0.0


def table(content: dict) -> str:
    """The results in Markdown, from the file alone."""
    pieces, settings = content["pieces"], content["settings"]
    cpu = content["machine"]
    lines = ["# Units: layers, attention, MLP and both", ""]
    about_text = ", ".join(f"{name} {value}" for name, value in content["versions"].items())
    lines += [f"{cpu['cpu']} ({', '.join(cpu['instruction_sets'])}), fp32; {about_text}; {content['date']}.", ""]
    samples, length = settings["scoring"]
    texts = ", ".join(content["texts"])
    lines += [
        f"Geometric mean over {texts} of perplexity as a multiple of the dense model's; chosen on {samples} x {length} "
        f"tokens of {CALIBRATION}; the share of parameters that really goes stands beside it.",
        "",
    ]
    for name in [key.removeprefix("dense ") for key in pieces if key.startswith("dense ")]:
        dense = pieces[f"dense {name}"]["perplexity"]
        shares = [f"{share:g}" for share in settings["shares"]]
        heads = [head for share in shares for head in (f"{float(share):.0%}", "gone")]
        lines += [f"## {name}", "", f"| units | chosen by | {' | '.join(heads)} |", f"|---|---|{'--:|' * len(heads)}"]
        for key, piece in pieces.items():
            act, model, kind, way = key.split(" ") if key.count(" ") == 3 else ("", "", "", "")
            if model == name:
                cells = [cell for share in shares for cell in _cells(piece["rows"].get(share), dense)]
                by = f"{way}, repaired by sequential" if act == "repair" else way
                lines.append(f"| {kind} | {by} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _cells(row: dict | None, dense: dict[str, float]) -> tuple[str, str]:
    if row is None:
        return "-", "-"
    ratio = math.exp(mean(math.log(value / dense[name]) for name, value in row["perplexity"].items()))
    return f"{ratio:.2f}" if ratio < 1000 else f"{ratio:.3g}", f"{row['share']:.1%}"


if __name__ == "__main__":
    run(
        __doc__,
        "units",
        beside=f"text/{CALIBRATION}",
        settings=(FULL, QUICK),
        about=about,
        jobs=jobs,
        table=table,
    )
