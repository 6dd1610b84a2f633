"""Model card: the README.md of a written model, from what is on record about it."""

import html
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from ..anatomy.loading import hub_of
from ..artifacts import Evaluation, HealingReport, Pruned, TaskResult, Unverified
from ..errors import UserError
from ..results.healing import perplexity_times
from ..results.summary import model_name, percent, perplexity_text, settings_of, tokens_used
from ..runtime.format import byte_count, count_text, layers, millions
from ..runtime.provenance import safe_command
from ..storage.ownership import BASE_CARD, CARD
from ..storage.ownership import CARD_MARK as MARK
from ..surgery.side_files import stays_within

CARRIED_METADATA = (
    "license",
    "license_name",
    "license_link",
    "language",
)  # what holds for the pruned model as for its base
TAGS = ("shallower", "depth-pruning", "layer-pruning")
SIMPLE = re.compile(r"[\w .,:;=+/()%-]+")
ESCAPED_SIGNS = str.maketrans({sign: f"\\{sign}" for sign in r"\`*_|[]#!~"})
LARGEST_CARD = 1 << 20  # bytes of a base's card that are read


@dataclass(frozen=True)
class Base:
    """What is known of the model that was pruned: its Hub id, if it has one, and the metadata of its own card."""

    hub_id: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(folder: Path, hub_id: str | None = None) -> "Base":
        """Read the base's card in a folder.

        The one kept aside where there is one, else its README.md if we did not write it.
        """
        for name in (BASE_CARD, CARD):
            path = folder / name
            if (
                path.is_file()
                and path.stat().st_size <= LARGEST_CARD
                and MARK not in (text := path.read_text(encoding="utf-8", errors="replace"))
            ):
                return Base(hub_id, metadata(text))
        return Base(hub_id)

    @property
    def model(self) -> Any:
        """What ``base_model`` says: the Hub id, else what the base's card says of its own."""
        return self.hub_id or _plain(self.metadata.get("base_model"))


def metadata(text: str) -> dict[str, Any]:
    """The front matter of a card; empty where there is none, or none that can be read."""
    match = re.match(r"\s*---\r?\n(.*?)\r?\n---\s*(\n|$)", text, re.S)
    try:
        content = yaml.safe_load(match[1]) if match else None
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _plain(value: Any) -> Any:
    """A short text or a list of them; anything else is None."""
    items = value if isinstance(value, list) else [value]
    fits = bool(items) and len(items) <= 100 and all(isinstance(item, str) and 0 < len(item) <= 200 for item in items)
    return value if fits else None


def card_text(
    pruned: Pruned, name: str, base: Base, *, evaluations: Sequence[Evaluation] = (), code: bool = False
) -> str:
    """The text of the card.

    Args:
        name: of the written model.
        evaluations: of it, of its base, or of its base without these layers.
        code: loading it runs code that comes with it.
    """
    plan = pruned.plan
    base_name = model_name(plan.model)
    went = f"{len(plan.removed)} attentions, MLPs and layers" if plan.units else plan.how_many
    went = str(plan.removal) if plan.removal.narrows else went.replace(" of ", " of its ")
    parts = [
        _front(base, name, [evaluation for evaluation in evaluations if _is_of(evaluation, pruned)]),
        MARK,
        f"# {unmarked(name)}",
        f"{_link(base, base_name)} without {went}: {millions(plan.params_before)} parameters became "
        f"{millions(plan.params_after)} "
        f"({percent(1 - plan.share)}).{_repair_text(pruned)} Made by shallower; {_needs(pruned)}.",
        "## Figures",
        _figures(pruned, evaluations),
        "## How to load it",
        _loading_code(name, code),
        "## How it was made",
        _provenance(pruned),
        "## Limits",
        "What holds for the base holds here: its licence, its intended use, its weaknesses. With less of it "
        "a model knows and reasons "
        "less; try it on your own task before you rely on it. The base's own card, where it came with one, is "
        f"in `{BASE_CARD}`.",
    ]
    return "\n\n".join(parts) + "\n"


def _front(base: Base, name: str, evaluations: Sequence[Evaluation]) -> str:
    """Metadata for the Hub, with the results that were measured of this very model."""
    carried_fields = {key: _plain(base.metadata.get(key)) for key in CARRIED_METADATA}
    fields = {"base_model": base.model, "library_name": "transformers", "pipeline_tag": "text-generation"}
    fields |= {key: value for key, value in carried_fields.items() if value is not None} | {"tags": list(TAGS)}
    results = [result for evaluation in evaluations for result in _results(evaluation)]
    if results:
        fields |= {"model_name": name, "eval_results": results}
    return f"---\n{ModelCardData(**fields).to_yaml()}\n---"


def _results(evaluation: Evaluation) -> list[EvalResult]:
    """The figures of an evaluation in the Hub's form."""
    results = []
    for name, perplexity in evaluation.perplexity.items():
        how = f"perplexity, length {perplexity.length}, BOS {perplexity.bos}"
        results.append(_result(name, "perplexity", how, perplexity.value))
    for name, task in evaluation.tasks.items():
        shots = f", {task.shots} examples" if task.shots else ""
        results.append(_result(name, task.metric, f"{task.metric}, {task.count} items{shots}", task.value))
    return results


def _result(name: str, metric: str, how: str, value: float) -> EvalResult:
    data = {"dataset_type": re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "text", "dataset_name": name}
    return EvalResult("text-generation", **data, metric_type=metric, metric_value=float(value), metric_name=how)


def code(text: Any) -> str:
    """A name as inline code; what is more than a name is text."""
    line = " ".join(str(text).split())
    return f"`{line}`" if SIMPLE.fullmatch(line) else unmarked(line)


def unmarked(text: Any) -> str:
    """Text in which nothing is markup: neither Markdown nor HTML."""
    return html.escape(" ".join(str(text).split()), quote=False).translate(ESCAPED_SIGNS)


def _is_of(evaluation: Evaluation, pruned: Pruned) -> bool:
    """Whether an evaluation is of the written model, as a whole."""
    return evaluation.model.fingerprint == pruned.fingerprint and not evaluation.removal


def _needs(pruned: Pruned) -> str:
    """What loading the model needs."""
    code_text = "loading it runs the small modelling file beside the weights, so it needs `trust_remote_code=True`"
    if pruned.format == "deci":
        return f"{code_text} in transformers; vLLM, SGLang, llama.cpp and mlx-lm read it as DeciLM (nemotron-nas)"
    if pruned.quantised:
        return "loading it in transformers needs the package compressed-tensors"
    return code_text if pruned.format == "custom" else "loading it needs nothing of it"


def _link(base: Base, name: str) -> str:
    return f"[{base.hub_id}](https://huggingface.co/{base.hub_id})" if base.hub_id else unmarked(name)


def _repair_text(pruned: Pruned) -> str:
    report = pruned.compensation
    text = ""
    if report and report.changed:
        was = "was" if len(report.changed) == 1 else "were"
        weights = count_text(len(report.changed), "weight")
        how = "trained, each layer by itself" if report.trained_layers else "refitted without training"
        text = f" {weights} of what is left {was} {how} ({code(report.method)})."
    for item in pruned.healing:
        own = f" with {count_text(item.own_answers, 'answer')} of the base model itself" if item.own_answers else ""
        text += f" It was then trained on {item.train_tokens:,} tokens{own} ({code(item.method)})."
    if quantised := pruned.quantised:
        text += f" Its projections were then rounded to {quantised.bits} bits ({code(quantised.method)})."
    return text


def _figures(pruned: Pruned, evaluations: Sequence[Evaluation]) -> str:
    plan = pruned.plan
    report = pruned.compensation
    rows = [
        ("layers", str(plan.model.layers), str(len(plan.kept))),
        ("parameters", f"{plan.params_before:,}", f"{plan.params_after:,} ({percent(1 - plan.share)})"),
        *([("zeros that its form asks for beside them", "", f"{pruned.zeros:,}")] if pruned.zeros else []),
        *_weight_rows(pruned),
        *_cache_rows(pruned),
        *_quality_rows(pruned, evaluations),
    ]
    if report:
        loss = report.loss
        before, after = perplexity_times(loss)
        values = f"{loss.after:.4f}, ×{after:.3f} in perplexity (×{before:.3f} before the repair)"
        rows.append(("loss on held-out calibration tokens, nats", f"{loss.dense:.4f}", values))
    table = "\n".join(["| | base | this model |", "|---|--:|--:|", *("| " + " | ".join(row) + " |" for row in rows)])
    missing = "\n\nIts quality was not measured when this card was written; `shallower evaluate` does that."
    return table + ("" if any(item.model.fingerprint == pruned.fingerprint for item in evaluations) else missing)


def _cache_rows(pruned: Pruned) -> list[tuple[str, str, str]]:
    """Bytes of the cache that a token takes, where that was looked at."""
    before, after = pruned.cache_bytes_per_token_before, pruned.cache_bytes_per_token
    return [("cache per token, bytes", f"{before:,}", f"{after:,}")] if before and after is not None else []


def _weight_rows(pruned: Pruned) -> list[tuple[str, str, str]]:
    """Bytes of the weights as they are stored; of a .gguf file what it holds too."""
    before, after = pruned.plan.bytes_before, pruned.weight_bytes or pruned.plan.bytes_after
    if not before or not after:
        return []
    model = pruned.plan.model
    packed_text = f"; as GGUF {byte_count(model.packed_bytes)}" if model.packed_bytes else ""
    return [("weights as stored", f"{byte_count(before)} ({unmarked(model.storage)}{packed_text})", byte_count(after))]


def _quality_rows(pruned: Pruned, evaluations: Sequence[Evaluation]) -> list[tuple[str, str, str]]:
    """A row per text and task: the base, and this model."""
    own = [item for item in evaluations if item.model.fingerprint == pruned.fingerprint and not item.removal]
    others = [
        item for item in evaluations if item.model.fingerprint == pruned.plan.model.fingerprint and not item.removal
    ]
    rows = []
    for evaluation in own:
        for text, perplexity in evaluation.perplexity.items():
            twins = (twin for other in others if (twin := other.perplexity.get(text)) and twin.hash == perplexity.hash)
            base = next(twins, None)
            ratio = f" (×{perplexity.value / base.value:.3f})" if base else ""
            what = f"perplexity, {unmarked(text)}, length {unmarked(perplexity.length)}"
            rows.append((what, perplexity_text(base.value) if base else "", perplexity_text(perplexity.value) + ratio))
        for name, task in evaluation.tasks.items():
            peers = (peer for other in others if (peer := other.tasks.get(name)) and peer.count == task.count)
            dense = next(peers, None)
            what = f"{unmarked(name)}, {unmarked(task.metric)}"
            rows.append((what, _with_error(dense) if dense else "", _with_error(task)))
    return rows


def _with_error(task: TaskResult) -> str:
    return f"{task.value:.3f} ± {task.stderr or 0:.3f}"


def _loading_code(name: str, code: bool) -> str:
    arguments = json.dumps(name, ensure_ascii=False) + (", trust_remote_code=True" if code else "")
    return _code_block(
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({arguments})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({arguments})",
        "python",
    )


def _provenance(pruned: Pruned) -> str:
    plan = pruned.plan
    report = pruned.compensation
    by = f" by {code(plan.criterion)}" if plan.criterion else ""
    numbering = (
        ""
        if plan.model.original == list(range(plan.model.layers))
        else f" (of the first ancestor's, these stay: {layers(pruned.original)})"
    )
    lines = [
        f"removed {'units' if plan.units else 'layers'}, numbered from 0: {plan.removal}{numbering}",
        f"selection: {code(plan.selection)}{by}, first {plan.keep_first} and last {plan.keep_last} layers protected",
        f"settings: {unmarked(settings_of(plan.settings))}" if plan.settings else "",
        f"calibration: {unmarked(tokens_used(plan.calibration))}; hash {code(plan.calibration.hash)}"
        if plan.calibration
        else "",
        f"config: {unmarked('; '.join(pruned.config_changes))}" if pruned.config_changes else "",
        f"repair: {code(report.method)}, {count_text(len(report.changed), 'weight')} changed; what it did is in "
        "`compensation.json`"
        if report
        else "",
        *(_healing_line(item) for item in pruned.healing),
        _quantisation_line(pruned),
        _proof_line(pruned),
        f"versions: {unmarked(', '.join(f'{name} {version}' for name, version in pruned.provenance.versions.items()))}",
    ]
    text = "\n".join(f"- {line}" for line in lines if line)
    command = pruned.provenance.command
    command_block = "\n\n" + _code_block(safe_command(command, paths=False)) if command.startswith("shallower ") else ""
    return f"{text}{command_block}\n\nThe plan, the scores and the proof are in `shallower.json`."


def _healing_line(item: HealingReport) -> str:
    loss = item.loss
    source = unmarked(item.source)
    own = f" ({count_text(item.own_answers, 'answer')} of the base model to prompts)" if item.own_answers else ""
    return (
        f"healing: {code(item.method)} on {item.train_tokens:,} tokens of {source}{own} in {item.steps} "
        "steps, training loss "
        f"{loss.first:.4f} to {loss.last:.4f} nats; reloaded, its logits equal those of the trained "
        f"model {unmarked(item.reloaded)}; "
        "the last such training is in `healing.json`"
    )


def _quantisation_line(pruned: Pruned) -> str:
    if (item := pruned.quantised) is None:
        return ""
    return (
        f"quantisation: {code(item.method)} to {item.bits} bits in groups of {item.group_size}, by "
        f"{unmarked(item.source)}; against the model before, KL {item.divergence:.3g} nats per token and perplexity "
        f"×{item.ratio:.3f} on held-out samples; more in `quantised.json`"
    )


def _proof_line(pruned: Pruned) -> str:
    proof = pruned.verified
    if isinstance(proof, Unverified):
        return f"not verified ({unmarked(proof.skipped)})"
    later = ["trained"] if pruned.healing else []
    later += ["quantised"] if pruned.quantised else []
    when = f"pruning, before it was {' and '.join(later)}" if later else "writing"
    by = "" if pruned.format in ("custom", "deci") else "by plain transformers "
    return (
        f"proven after {when}: reloaded {by}in {unmarked(proof.dtype)}, no missing weights, logits equal "
        f"{unmarked(proof.logits)} to those of the intended model, cached decoding equal to uncached"
    )


def _code_block(text: str, language: str = "") -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def write_card(folder: Path, pruned: Pruned, name: str, *, source: Path) -> None:
    """Put the card into a model that is being written, and the base's own card, if it has one, beside it."""
    base = Base.of(source, hub_of(pruned.plan.model.source))
    for path in (source / BASE_CARD, source / CARD):  # the first, where the base was written by us too
        if path.is_file() and stays_within(path, source) and MARK not in path.read_text("utf-8", "replace"):
            shutil.copyfile(path, folder / BASE_CARD)
            break
    (folder / CARD).write_text(card_text(pruned, name, base, code=any(folder.glob("*.py"))), encoding="utf-8")


def check_card(folder: Path, pruned: Pruned, evaluations: dict[str, Evaluation]) -> None:
    """Raise a UserError where the card is not ours to rewrite, or an evaluation (by its path) speaks of
    another model.
    """
    path = folder / CARD
    if path.exists() and MARK not in path.read_text("utf-8", "replace"):
        raise UserError(
            f"{path} was written by somebody else (or its mark was taken out): move it away to have it made anew"
        )
    for name, evaluation in evaluations.items():
        if evaluation.model.fingerprint not in (pruned.fingerprint, pruned.plan.model.fingerprint):
            raise UserError(
                f"{name} is of another model ({evaluation.model.source}, fingerprint {evaluation.model.fingerprint}) "
                f"than {folder} "
                f"(fingerprint {pruned.fingerprint}) and its base: give evaluations of these two"
            )
