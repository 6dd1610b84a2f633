"""Learning from the dense model, the dense model as a control, and the optimiser's state across a cut."""

import json
import math
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zoo
from marks import rest_slow
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, kl_div, linear, log_softmax, mse_loss, softmax
from trainings import CPU, KILLED, LAUNCH, arguments, command, curve, healed, weights

from shallower import UserError, drop, methods, open_model, prune, report
from shallower.anatomy.model import Model
from shallower.artifacts import Recipe, TrainingRow
from shallower.methods.healing import distill
from shallower.results.healing import gap_closed, gaps
from shallower.stages.lineage import state_from
from shallower.surgery.trained import STATE_FILE
from shallower.training.checkpoints import checkpoint_folder
from shallower.training.distillation import Distillation, Teaching, layer_pairs, share_weights, taps
from shallower.training.objective import ChunkedLoss, Head, Soft, loss_of

REMOVED = (2, 5)
ADAMW = Recipe(1e-4, (0.9, 0.95), 0.1, 1, "cosine", 0.1, 128)


@pytest.fixture(scope="module")
def pruned(saved, tmp_path_factory):
    """name -> a pruned model of that family, its dense one still there."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("pruned") / name
            model = open_model(saved(name), CPU)
            prune(model, drop(model, REMOVED), out=made[name])
        return made[name]

    return get


# ---------------------------------------------------------------- the loss


def soft_kl(student: torch.Tensor, teacher: torch.Tensor, soft: Soft) -> torch.Tensor:
    """T² KL(teacher || student) at temperature T summed over places, from whole logits."""
    warm, known = ((logits / soft.temperature).log_softmax(-1) for logits in (student, teacher))
    if soft.top_k:
        top = known.topk(min(soft.top_k, known.shape[1]), dim=1)
        warm, known = warm.gather(1, top.indices), top.values.log_softmax(-1)
    return soft.temperature**2 * (known.exp() * (known - warm)).sum()


@pytest.mark.parametrize("soft", [Soft(), Soft(0.3, 2.0, 2.5), Soft(0.0, 1.0, 1.0, 7), Soft(1.0, 0.5, 3.0, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_chunks_equal_the_whole(bias: bool, soft: Soft, monkeypatch) -> None:
    monkeypatch.setattr("shallower.training.objective.CHUNK_BYTES", {"cpu": 4 * 50 * 3})  # three places at once
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    tensors, theirs = (draw(10, 8), draw(50, 8), draw(50)), Head(draw(10, 8), draw(50, 8), draw(50))
    targets = torch.randint(50, (10,), generator=generator)
    found = []
    for way in ("chunked", "logits", "whole"):
        hidden, weight, offset = (one.clone().requires_grad_() for one in tensors)
        offset = offset if bias else None
        if way == "chunked":
            loss, term_sums = ChunkedLoss.apply(hidden, weight, offset, targets, theirs, soft)
        elif way == "logits":
            loss, term_sums = loss_of(linear(hidden, weight, offset), targets, theirs.logits(slice(None)), soft)
        else:
            logits, known = linear(hidden, weight, offset), theirs.logits(slice(None))
            nll, kl = cross_entropy(logits, targets, reduction="sum"), soft_kl(logits, known, soft)
            loss, term_sums = soft.nll * nll + soft.kl * kl, torch.stack([nll, kl]).detach()
        (3 * loss).backward()
        found.append([loss.detach(), term_sums, hidden.grad, weight.grad, *([offset.grad] if bias else [])])
    for one, logits, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits, other, rtol=1e-4, atol=1e-4)


def test_the_divergence_is_torchs() -> None:
    logits, known = torch.randn(2, 6, 40, generator=torch.Generator().manual_seed(3))
    wanted = 4 * kl_div(log_softmax(logits / 2, -1), softmax(known / 2, -1), reduction="sum")
    torch.testing.assert_close(soft_kl(logits, known, Soft(temperature=2.0)), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(soft_kl(logits, known, Soft(top_k=40)), soft_kl(logits, known, Soft()))


@pytest.mark.parametrize("name", ["llama", "gpt2", "granite", "bloom", "gemma2"])
def test_every_term_by_hand(name: str, saved, pruned) -> None:
    """Streams and attention outputs of equal original index are compared, from ordinary forwards with hooks."""
    student, teacher = open_model(pruned(name), CPU), open_model(saved(name), CPU)
    objective = Distillation(student, teacher, Teaching(Soft(1.0, 1.0), 2.0, 3.0, 0.5))
    tokens, loss_mask = zoo.tokens(seed=5), torch.ones_like(zoo.tokens(seed=5), dtype=torch.bool)
    loss, term_sums = objective(tokens, None, loss_mask)
    found, kept = [], [layer for layer in range(8) if layer not in REMOVED]
    first = lambda output: output[0] if isinstance(output, tuple) else output  # noqa: E731
    for model, wanted in ((student, range(6)), (teacher, kept)):
        layers, seen = model.module.get_submodule(model.outline.name), {"hidden": [], "attention": [], "embedding": []}
        model.module.get_input_embeddings().register_forward_hook(
            lambda *args, seen=seen: seen["embedding"].append(args[-1])
        )
        for place in wanted:
            attention = next(
                part
                for part_name, part in layers[place].named_children()
                if "attn" in part_name or "attention" in part_name
            )
            layers[place].register_forward_hook(lambda *args, seen=seen: seen["hidden"].append(first(args[-1])))
            attention.register_forward_hook(lambda *args, seen=seen: seen["attention"].append(first(args[-1])))
        with torch.no_grad():
            found.append((model.module(tokens).logits[:, :-1].flatten(0, 1), seen))
    (logits, ours), (known, theirs) = found
    count, targets = len(logits), tokens[:, 1:].flatten()
    terms = [cross_entropy(logits, targets), kl_div(log_softmax(logits, -1), softmax(known, -1), reduction="batchmean")]
    terms += [
        sum(mse_loss(a[:, :-1], b[:, :-1]) for a, b in zip(ours[part], theirs[part], strict=True))
        for part in objective.terms[2:]
    ]
    torch.testing.assert_close(term_sums / count, torch.stack(terms), rtol=1e-3, atol=1e-5)
    assert float(loss.detach()) / count == pytest.approx(
        float(torch.stack(terms) @ torch.tensor([1.0, 1.0, 2.0, 3.0, 0.5])), rel=1e-3
    )
    assert sorted(objective.maps) == [f"hidden{place}" for place in range(6)]


def test_an_identical_student_has_nothing_to_learn(saved) -> None:
    student, teacher = open_model(saved("llama"), CPU), open_model(saved("llama"), CPU)
    objective = Distillation(student, teacher, Teaching(Soft(), 1.0, 1.0, 1.0, relative=True))
    tokens = zoo.tokens(seed=5)
    _, term_sums = objective(tokens, None, torch.ones_like(tokens, dtype=torch.bool))
    assert term_sums[0] > 1 and term_sums[1:].abs().max() < 1e-4


# ---------------------------------------------------------------- healing by it


def test_a_layer_without_attention_is_paired_by_what_it_has(saved, text, tmp_path) -> None:
    """Its stream is compared, and its attention with nothing."""
    source = saved("llama")
    prune(source, drop(source, ["2.attention", "4.mlp", 5]), out=tmp_path / "less", format="custom")
    student, teacher = open_model(tmp_path / "less", CPU), open_model(source, CPU)
    labels = {tap.label for tap in taps(student, teacher, Teaching(Soft(), 1.0, 1.0, 1.0))}
    every = {f"{term}{place}" for term in ("hidden", "attention") for place in range(7)}
    assert labels == {"embedding"} | every - {"attention2"}
    options = {"objective": "layerchop"}
    found = healed(tmp_path / "less", text, tmp_path / "out", method="distill", settings=options)
    assert found.rows[1].terms["attention"] > 0 and found.rows[-1].loss < found.rows[1].loss
    assert json.loads((tmp_path / "out" / "config.json").read_text())["silent"][2]


@pytest.mark.parametrize("objective", ["logits", "layerchop"])
def test_the_student_comes_nearer(objective: str, pruned, text, tmp_path) -> None:
    found = healed(
        pruned("llama"),
        text,
        tmp_path / "out",
        method="distill",
        settings={"objective": objective, "lm": "0"},
        tokens=2560,
    )
    rows = [row for row in found.rows if row.terms]
    assert set(rows[0].terms) == {"kl", "hidden", "attention", "embedding"}
    assert rows[-1].terms["kl"] < 0.9 * rows[0].terms["kl"]
    assert (rows[0].terms["hidden"] > 0) == (objective == "layerchop")
    assert found.teacher and found.reloaded.logits == "bit for bit"
    assert not any("maps" in name for name in weights(tmp_path / "out"))


def test_frozen_weights_are_shared(saved, pruned, text, tmp_path) -> None:
    student, teacher = open_model(pruned("llama"), CPU), open_model(saved("llama"), CPU)
    assert layer_pairs(student, teacher) == [0, 1, 3, 4, 6, 7]
    distill.prepare(student.module, student.outline.name, distill.Settings(rank=2))
    every = sum(parameter.numel() for name, parameter in student.module.named_parameters() if "lora" not in name)
    assert share_weights(student, teacher) == every
    own = {parameter.data_ptr() for parameter in student.module.parameters()}
    alone = [name for name, parameter in teacher.module.named_parameters() if parameter.data_ptr() not in own]
    assert alone and all(name.startswith(("model.layers.2.", "model.layers.5.")) for name in alone)
    found = healed(pruned("llama"), text, tmp_path / "out", method="distill", settings={"rank": "2"}, lr=1e-2)
    assert found.rows[-1].terms["kl"] < found.rows[1].terms["kl"]
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(("settings", "match"), [
    ({"temperature": "0"}, "temperature is above 0"),
    ({"kl": "-1"}, "weights are 0 or more"),
    ({"lm": "0", "kl": "0"}, "one above it"),
    ({"rank": "2", "last_layers": "1"}, "give one of them"),
    ({"teacher": "/nowhere"}, "the dense model /nowhere cannot be opened"),
])  # fmt: skip
def test_wrong_settings(settings, match, pruned, text, tmp_path) -> None:
    with pytest.raises(UserError, match=match):
        healed(pruned("llama"), text, tmp_path / "out", method="distill", settings=settings)
    assert not list(tmp_path.iterdir())


def test_the_teacher_must_be_the_one(saved, pruned, text, tmp_path, monkeypatch) -> None:
    with pytest.raises(UserError, match=r"no shallower.json says which model it was pruned from"):
        healed(saved("llama"), text, tmp_path / "out", method="distill")
    monkeypatch.setattr(Model, "vocabulary", property(lambda model: len(model.checkpoint.source)))
    with pytest.raises(UserError, match=r"knows \d+ tokens, .* it cannot be its teacher"):
        healed(pruned("llama"), text, tmp_path / "out", method="distill")
    monkeypatch.undo()
    further = open_model(pruned("llama"), CPU)
    prune(further, drop(further, (1,)), out=tmp_path / "further")
    options = {"teacher": str(tmp_path / "further"), "objective": "layerchop"}
    with pytest.raises(UserError, match="layer 1 of the dense model is in"):
        healed(pruned("llama"), text, tmp_path / "out", method="distill", settings=options)


@pytest.mark.slow
def test_killed_and_resumed(pruned, text, tmp_path) -> None:
    """The learned maps are kept too."""
    own = ("--set", "objective=layerchop")
    assert (
        command("-c", KILLED, *arguments(pruned("gpt2"), text, tmp_path / "out", "distill", *own)).returncode
        == -signal.SIGKILL
    )
    assert any("maps" in name for name in load_file(checkpoint_folder(tmp_path / "out") / "step-3.safetensors"))
    again = command("-m", "shallower", *arguments(pruned("gpt2"), text, tmp_path / "out", "distill", *own, "--resume"))
    assert again.returncode == 0 and "resuming at step 3" in again.stderr, again.stderr
    whole = healed(pruned("gpt2"), text, tmp_path / "whole", method="distill", settings={"objective": "layerchop"})
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows if "loss" in row] == curve(whole)
    one, other = weights(tmp_path / "out"), weights(tmp_path / "whole")
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.slow
@pytest.mark.parametrize(
    "which", ["llama", "llama last_layers", "llama+tied --shard", "mixtral --shard", "llama last_layers --shard"]
)
def test_two_processes_follow_the_same_curve(which: str, pruned, text, tmp_path) -> None:
    """Split or not, the teacher too; its weights outside of the layers, here tied, stay whole."""
    name, *more = which.split()
    settings = {"objective": "layerchop"} | ({"last_layers": "1"} if "last_layers" in more else {})
    own = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    split = ["--shard"] if "--shard" in more else []
    ran = command(*LAUNCH, *arguments(pruned(name), text, tmp_path / "two", "distill", *own, *split, "--json"))
    assert ran.returncode == 0, ran.stderr
    one = healed(pruned(name), text, tmp_path / "one", method="distill", settings=settings)
    two = json.loads(ran.stdout)["rows"]
    assert [row["loss"] for row in two if "loss" in row] == pytest.approx(curve(one), rel=1e-4)


# ---------------------------------------------------------------- the control, the state, the trackers, the data


@pytest.mark.parametrize("method", rest_slow(methods.names("healing"), {"continued"}))
def test_the_control_is_the_unpruned_model_trained_the_same(method: str, saved, pruned, text, tmp_path) -> None:
    found = healed(pruned("llama"), text, tmp_path / "out", method=method, control=True, eval_texts=[text])
    alone = healed(
        saved("llama"), text, tmp_path / "alone", method="lora" if method == "lora" else "continued", eval_texts=[text]
    )
    control, own = found.control, [row for row in alone.rows if row.eval]
    assert [row.eval for row in control[:-1]] == [row.eval for row in own[:-1]]
    last = [row.eval["book"].nll for row in (control[-1], own[-1])]  # that of the model as written, its adapters merged
    assert last[0] == pytest.approx(last[1], rel=1e-6)
    plain = healed(pruned("llama"), text, tmp_path / "plain", method=method, eval_texts=[text])
    assert curve(found) == curve(plain) and plain.control is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "out", "plain"]
    page = report(tmp_path, out=tmp_path / "page.html").read_text()
    assert "book, dense" in page and "Perplexity of book by seconds" in page


def test_how_much_of_the_gap_is_closed(saved, text, tmp_path) -> None:
    found = healed(saved("llama"), text, tmp_path / "out")

    def row(step: int, value: float) -> TrainingRow:
        read = {"book": {"value": math.exp(value), "nll": value, "tokens": 1}}
        return TrainingRow(step, step, loss=value if step else None, eval=read)

    found = replace(found, rows=[row(0, 5.0), row(6, 4.0)], control=[row(0, 3.0), row(6, 2.5)])
    assert gaps(found)["book"] == pytest.approx((0.5, 0.25))
    assert gap_closed(found, "book").startswith("50% of the gap to the dense model, 25% of it")
    assert gaps(replace(found, control=None)) == {} == gaps(replace(found, control=[row(0, 6.0), row(6, 5.0)]))


@pytest.mark.slow
def test_a_control_that_was_finished_is_not_trained_again(pruned, text, tmp_path) -> None:
    given = arguments(pruned("llama"), text, tmp_path / "out", "continued", "--control", "--eval-text", str(text))
    killed = KILLED.replace("step == 3", "step == 3 and '.control.' not in str(self.folder)")
    assert command("-c", killed, *given).returncode == -signal.SIGKILL
    again = command("-m", "shallower", *given, "--resume")
    assert (
        again.returncode == 0 and "resuming at step 3" in again.stderr and "the dense model first" not in again.stderr
    ), again.stderr
    assert json.loads((tmp_path / "out" / "healing.json").read_text())["control"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_control_needs_a_text(pruned, text, tmp_path) -> None:
    with pytest.raises(UserError, match="eval_texts; give at least one file"):
        healed(pruned("llama"), text, tmp_path / "out", method="continued", control=True)


def test_the_optimisers_state_goes_across_the_cut(saved, text, tmp_path) -> None:
    """What is kept of a layer of the dense model is found again under its new number."""
    healed(saved("llama"), text, tmp_path / "warm", keep_optimizer=True)
    model = open_model(tmp_path / "warm", CPU)
    prune(model, drop(model, REMOVED), out=tmp_path / "cut")
    kept = load_file(tmp_path / "warm" / STATE_FILE)
    _, state = state_from(tmp_path / "warm", open_model(tmp_path / "cut", CPU), ADAMW)
    for own, before in enumerate([0, 1, 3, 4, 6, 7]):
        name = "state:exp_avg:model.model.layers.{}.mlp.down_proj.weight"
        assert torch.equal(state[name.format(own)], kept[name.format(before)])
    assert len(state) < len(kept) and "state:exp_avg_sq:model.lm_head.weight" in state
    started = healed(tmp_path / "cut", text, tmp_path / "on", optimizer_from=tmp_path / "warm")
    anew = healed(tmp_path / "cut", text, tmp_path / "anew")
    assert curve(started)[0] == curve(anew)[0] and curve(started)[1] != curve(anew)[1]


def test_the_state_of_the_same_model_is_found_whole(saved, text, tmp_path) -> None:
    healed(saved("llama"), text, tmp_path / "warm", keep_optimizer=True)
    found, state = state_from(tmp_path / "warm", open_model(tmp_path / "warm", CPU), ADAMW)
    assert found == open_model(tmp_path / "warm").record.fingerprint
    assert {name: tensor.tolist() for name, tensor in state.items()} == {
        name: tensor.tolist() for name, tensor in load_file(tmp_path / "warm" / STATE_FILE).items()
    }


def test_a_state_that_does_not_fit(saved, text, tmp_path) -> None:
    with pytest.raises(UserError, match="heal with keep_optimizer=True leaves one"):
        healed(saved("llama"), text, tmp_path / "out", optimizer_from=saved("llama"))
    healed(saved("llama"), text, tmp_path / "warm", keep_optimizer=True, settings={"optimizer": "lion"})
    with pytest.raises(UserError, match="it is that of lion, this training uses adamw"):
        healed(saved("llama"), text, tmp_path / "out", optimizer_from=tmp_path / "warm")


def test_figures_go_to_a_tracker(saved, text, tmp_path) -> None:
    pytest.importorskip("tensorboard")
    healed(saved("llama"), text, tmp_path / "out", track="tensorboard")
    assert list((tmp_path / "out-logs").rglob("events.out.tfevents.*"))
    with pytest.raises(UserError, match=r"track=paper: known are .*tensorboard"):
        healed(saved("llama"), text, tmp_path / "other", track="paper")
