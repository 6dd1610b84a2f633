"""Healing: one loop, two methods.

What is trained on, never lost, the same in one process and two, and written as a plain model.
"""

import itertools
import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo
from marks import rest_slow
from safetensors import SafetensorError, safe_open
from torch.nn.functional import cross_entropy
from trainings import CPU, KILLED, LAUNCH, SIZE, STOPPED, arguments, command, curve, healed, weights
from transformers import AutoModelForCausalLM

from shallower import (
    Compute,
    Protocol,
    Training,
    UserError,
    cli,
    drop,
    evaluate,
    heal,
    methods,
    open_model,
    prune,
    report,
)
from shallower.artifacts import Recipe, plain
from shallower.data.packing import WITH_INPUT, Documents, packed_sequences, read_documents
from shallower.errors import DiskError
from shallower.methods.healing import continued, lora
from shallower.runtime.progress import shown
from shallower.settings.quantities import tokens_of
from shallower.training import checkpoints, loop
from shallower.training.checkpoints import checkpoint_folder
from shallower.training.lion import Lion
from shallower.training.objective import ChunkedLoss, Objective, activation_bytes, isolates
from shallower.training.schedule import fit_schedule

PAPER = Recipe(1e-4, (0.9, 0.95), 0.1, 2000, "cosine", 0.1, 1 << 20)


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> Path:
    """Many short documents."""
    path = tmp_path_factory.mktemp("lines") / "lines.jsonl"
    path.write_text(
        "".join(json.dumps({"text": line}) + "\n" for line in (zoo._SENTENCES * 4).splitlines()), encoding="utf-8"
    )
    return path


# ---------------------------------------------------------------- the loss falls, the model is plain


FALLING = ("llama", "gpt2", "mixtral", "llama+tied", "mamba", "granite", "gemma2")
FALLING_FAST = {("mixtral", "continued"), ("llama", "distill"), ("llama+tied", "lora")}


@pytest.mark.parametrize(
    ("name", "method"), rest_slow(itertools.product(FALLING, methods.names("healing")), FALLING_FAST)
)
def test_loss_falls_and_the_model_is_plain(name: str, method: str, saved, lines, tmp_path) -> None:
    options = {"lr": 1e-2, "settings": {"targets": "in_proj"} if name == "mamba" else None} if method == "lora" else {}
    options = {"settings": {"teacher": str(saved(name))}} if method == "distill" else options
    found = healed(saved(name), lines, tmp_path / "out", method=method, tokens=1280, eval_texts=[lines], **options)
    assert found.reloaded.logits == "bit for bit"
    before, *_, after = (row.eval["lines"].nll for row in found.rows if row.eval)
    assert after < before - 0.2
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert open_model(tmp_path / "out").record.fingerprint == found.fingerprint != found.model.fingerprint
    assert {"healing.json", "healing.png", "metrics.jsonl", "tokenizer.json"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    told = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in told] == plain(found.rows)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_validation_is_what_evaluate_says(saved, text, tmp_path) -> None:
    found = healed(saved("llama"), text, tmp_path / "out", eval_texts=[text])
    for source, row in ((saved("llama"), found.rows[0]), (tmp_path / "out", found.rows[-1])):
        said = evaluate(source, texts=[text], protocol=Protocol(length=32), compute=CPU).perplexity["book"]
        assert row.eval["book"].value == pytest.approx(said.value, rel=1e-5)
        assert row.eval["book"].tokens == said.tokens


def test_a_stored_dtype_stays(text, tmp_path) -> None:
    folder = zoo.save("llama", tmp_path / "model", dtype=torch.bfloat16)
    found = heal(
        folder,
        data=[text],
        train_tokens=256,
        out=tmp_path / "out",
        training=Training(**SIZE),
        compute=Compute("bf16", "cpu"),
    )
    assert found.dtype == "bfloat16"
    assert {tensor.dtype for tensor in weights(tmp_path / "out").values()} == {torch.bfloat16}


def test_last_layers_leave_the_others(saved, text, tmp_path) -> None:
    healed(saved("llama"), text, tmp_path / "out", settings={"last_layers": "2"})
    before, after = weights(saved("llama")), weights(tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"lm_head.weight", "model.norm.weight"} < changed
    assert all(name.startswith(("model.layers.6.", "model.layers.7.", "lm_head", "model.norm")) for name in changed)


def test_lora_merged_is_the_adapter(saved, text, tmp_path) -> None:
    """The kept adapter on the given model gives the logits of the merged one."""
    from peft import PeftModel

    healed(saved("llama"), text, tmp_path / "out", method="lora", lr=1e-2)
    base = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(saved("llama")), tmp_path / "out" / "adapter"
    ).eval()
    merged, tokens = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval(), zoo.tokens(seed=3)
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, base(tokens).logits, rtol=1e-4, atol=1e-4)
    assert {path.name for path in (tmp_path / "out" / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert len({path.stat().st_mode for path in (tmp_path / "out").rglob("*.*") if path.is_file()}) == 1


def test_experts_that_adapters_do_not_reach_are_told(saved, capsys) -> None:
    for name, told in (("mixtral", True), ("llama", False)):
        module = open_model(saved(name)).module
        with shown():
            lora.prepare(module, "model.layers", lora.Settings())
        assert ("are experts, which adapters do not reach" in capsys.readouterr().err) == told


def test_lora_targets(saved) -> None:
    module = open_model(saved("llama"), CPU).module
    lora.prepare(module, "model.layers", lora.Settings(targets="q_proj+down_proj", rslora=True, dora=True))
    trained = {
        name.partition(".lora")[0].rpartition(".")[2] for name, one in module.named_parameters() if one.requires_grad
    }
    assert trained == {"q_proj", "down_proj"}


# ---------------------------------------------------------------- pruned models stay known


def test_a_pruned_model_stays_recognised(saved, text, tmp_path) -> None:
    model = open_model(saved("llama"), CPU)
    pruned = prune(model, drop(model, (2, 5)), out=tmp_path / "pruned")
    for out, source, method in (("one", "pruned", "continued"), ("two", "one", "lora")):
        healed(tmp_path / source, text, tmp_path / out, method=method)
    side = json.loads((tmp_path / "two" / "shallower.json").read_text())
    record = open_model(tmp_path / "two").record
    assert side["original"] == record.original == pruned.original == [0, 1, 3, 4, 6, 7]
    assert side["fingerprint"] == record.fingerprint
    assert [item["method"] for item in side["healing"]] == ["continued", "lora"]
    card = (tmp_path / "two" / "README.md").read_text()
    assert "proven after pruning, before it was trained" in card and "healing: `lora`" in card
    page = report(tmp_path).read_text()
    assert "continued, lora" in page and "Healing by training" in page
    assert {"healing.png", "healing-2.png"} <= {path.name for path in (tmp_path / "report").iterdir()}
    again = open_model(tmp_path / "two", CPU)
    prune(again, drop(again, (1,)), out=tmp_path / "further")
    assert not (tmp_path / "further" / "healing.json").exists()


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("bias", [True, False])
def test_chunked_loss_equals_the_plain_one(bias: bool, monkeypatch) -> None:
    monkeypatch.setattr("shallower.training.objective.CHUNK_BYTES", {"cpu": 4 * 50 * 3})  # three places at once
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((10, 8), (50, 8), (50,))]
    targets = torch.randint(50, (10,), generator=generator)
    found = []
    for way in ("chunked", "plain"):
        hidden, weight, offset = (one.float().requires_grad_() for one in tensors)
        offset = offset if bias else None
        if way == "chunked":
            loss, _ = ChunkedLoss.apply(hidden, weight, offset, targets, None, None)
        else:
            loss = cross_entropy(torch.nn.functional.linear(hidden, weight, offset), targets, reduction="sum")
        (3 * loss).backward()
        found.append([loss.detach(), hidden.grad, weight.grad, *([offset.grad] if bias else [])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "granite", "gemma2", "cohere2", "opt", "mamba", "gemma3"])
def test_the_objective_is_the_models_own_loss(name: str, saved) -> None:
    """With a head that scales or caps its logits they are taken whole."""
    module = open_model(saved(name), CPU).module
    objective, tokens = Objective(module), zoo.tokens(seed=5)
    loss_mask = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    wanted = cross_entropy(
        module(tokens).logits[:, :-1][loss_mask[:, 1:]], tokens[:, 1:][loss_mask[:, 1:]], reduction="sum"
    )
    torch.testing.assert_close(objective(tokens, None, loss_mask)[0], wanted, rtol=1e-4, atol=1e-3)
    assert objective.chunked == (name not in ("granite", "gemma2"))


def test_which_models_keep_documents_apart(saved) -> None:
    assert isolates(open_model(saved("llama"), CPU).module)
    assert not isolates(open_model(saved("mamba"), CPU).module)


# ---------------------------------------------------------------- the data


def test_documents_are_packed_in_full() -> None:
    ids = [np.arange(10 * number, 10 * number + 5) for number in range(1, 6)]
    found = packed_sequences(Documents(ids, [0] * 5, False, "test", 2), 8, 7, isolated=True)
    assert found.tokens.shape == (3, 8)
    assert sorted(set(found.tokens.flatten().tolist())) == sorted(found.tokens.flatten().tolist())
    starts = found.tokens % 10 == 0
    assert (found.positions[starts] == 0).all() and not found.loss_mask[starts].any()
    assert (found.positions[:, 0] == 0).all() and not found.loss_mask[:, 0].any()
    assert found.loss_mask[:, 1:].sum() == 21 - starts[:, 1:].sum()
    order = [number for step in range(3) for number in found.batch(step, 2)]
    assert sorted(order[:3]) == sorted(order[3:]) == [0, 1, 2]  # each pass takes every sequence once
    assert order == [
        number
        for step in range(3)
        for number in packed_sequences(Documents(ids, [0] * 5, False, "t", 2), 8, 7, isolated=True).batch(step, 2)
    ]


@pytest.mark.parametrize("apart", [True, False])
def test_instructions_bear_a_loss_on_the_answer_only(apart: bool, tmp_path) -> None:
    rows = [
        {"instruction": f"Say {word}.", "input": word if word == "b" else "", "output": f"It is {word}!"}
        for word in "abc"
    ]
    path = tmp_path / "alpaca.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    coder = zoo.tokenizer()
    found = packed_sequences(read_documents([path], coder, zoo.VOCAB), 512, 0, isolated=apart)
    assert found.tokens.shape[1] == (512 if apart else 256)
    assert found.about.kind == "instructions"
    answers = [coder.decode(tokens[loss_mask]) for tokens, loss_mask in zip(found.tokens, found.loss_mask, strict=True)]
    joined = "".join(answers)
    assert sorted(joined.replace("<eos>", "").split("It is ")[1:]) == ["a!", "b!", "c!"] and joined.count("<eos>") == 3
    whole = "".join(coder.decode(tokens) for tokens in found.tokens)
    assert WITH_INPUT.format(instruction="Say b.", input="b") + "It is b!" in whole


@pytest.mark.parametrize("name", rest_slow(("llama", "mamba"), {"llama"}))
def test_healing_on_instructions(name: str, saved, tmp_path) -> None:
    path = tmp_path / "alpaca.jsonl"
    words = [line.split() for line in zoo._SENTENCES.splitlines()]
    path.write_text(
        "".join(
            json.dumps({"instruction": " ".join(w[:3]), "input": "", "output": " ".join(w[3:])}) + "\n" for w in words
        )
    )
    found = healed(saved(name), path, tmp_path / name, length=512, batch_tokens=1024, tokens=8192)
    assert curve(found)[-1] < curve(found)[0] - 0.2


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("empty.txt", "  \n", "only empty texts"),
        ("short.txt", "Too short.", "less than one sequence of 32"),
        ("field.jsonl", '{"text": "a"}\n{"body": "b"}\n', "line 2 has no field 'text'"),
        ("type.jsonl", '{"text": 5}\n', "line 1 has a field 'text' that is a int"),
        (
            "alpaca.jsonl",
            '{"instruction": "a", "input": "", "output": "b"}\n{"instruction": "a"}\n',
            "line 2 has no field 'output'",
        ),
        ("mixed.jsonl", '{"instruction": "a", "output": "b"}\n{"text": "a"}\n', "line 2 has no field 'instruction'"),
        ("broken.jsonl", '{"text": "a"}\n{"text\n', "line 2 is not JSON"),
        ("list.jsonl", "[1]\n", "line 1 is a list"),
        ("text.csv", "a,b", ".csv is not read"),
        (None, "", "no such file"),
    ],
)
def test_bad_data_is_one_line(name, content, match, saved, tmp_path, capsys) -> None:
    path = tmp_path / (name or "absent.txt")
    if name:
        path.write_text(content)
    given = [
        "--data",
        str(path),
        "--train-tokens",
        "1K",
        "--length",
        "32",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "out"),
    ]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["heal", str(saved("llama")), "--method", "continued", *given])
    assert stopped.value.code == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and match in error[0]
    assert sorted(item.name for item in tmp_path.iterdir()) == ([name] if name else [])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"settings": {"rank": "many"}, "method": "lora"}, "lora: rank=many: expected int"),
        ({"settings": {"rank": "0"}, "method": "lora"}, "rank 1 or more"),
        (
            {"settings": {"targets": "nothing"}, "method": "lora"},
            "no linear module nothing in the layers; there are down_proj",
        ),
        ({"settings": {"optimizer": "sgd"}}, "allowed are adamw, lion"),
        ({"settings": {"last_layers": "9"}}, "last_layers=9: give 1 to 8"),
        ({"method": "lorra"}, "unknown healing 'lorra': did you mean lora"),
        ({"tokens": "many"}, "train_tokens='many'"),
        ({"lr": 0.0}, "lr=0.0: a number above 0"),
        ({"batch_tokens": 16}, "batch_tokens=16: at least one sequence"),
    ],
)
def test_wrong_options_are_refused(options, match, saved, text, tmp_path) -> None:
    with pytest.raises(UserError, match=match):
        healed(saved("llama"), text, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- the schedule


def test_a_small_budget_shrinks_batch_and_warm_up() -> None:
    large, said = fit_schedule(PAPER, 2000 << 20, 2048)
    assert (large.steps, large.batch, large.recipe.warmup, said) == (2000, 512, 2000, [])
    small, said = fit_schedule(PAPER, 20_000_000, 500)
    assert (small.batch, small.steps, small.recipe.warmup) == (20, 2000, 2000)
    tiny, said = fit_schedule(PAPER, 20_000, 128)
    assert (tiny.batch, tiny.steps, tiny.recipe.warmup) == (16, 10, 1) and len(said) == 2
    assert [tokens_of(text, "train_tokens") for text in ("20M", "500k", "768", 768)] == [
        20_000_000,
        500_000,
        768,
        768,
    ]
    rates = [large.lr(step) for step in (0, 1999, 2000)]
    assert rates == pytest.approx([5e-8, 1e-4, 1e-4])
    assert fit_schedule(PAPER, 4000 << 20, 2048)[0].lr(3999) == pytest.approx(1e-5, rel=1e-3)


def test_lion_follows_its_rule() -> None:
    weight = torch.tensor([1.0, -2.0], requires_grad=True)
    optimizer = Lion([weight], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    for gradient in ([1.0, -1.0], [-20.0, 0.0]):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
    # w = 0.95 w - 0.1 sign(...): the second step's sign is that of 0.9 m + 0.1 g with m = 0.01 g of the first
    torch.testing.assert_close(weight.detach(), torch.tensor([(0.95 - 0.1) * 0.95 + 0.1, (-1.9 + 0.1) * 0.95 + 0.1]))
    assert continued.recipe(continued.Settings(optimizer="lion")).betas == (0.9, 0.99)


# ---------------------------------------------------------------- never lost


@pytest.mark.parametrize("method", rest_slow(("lora", "continued", "continued in 8 bit"), {"lora"}))
def test_killed_and_resumed_is_undisturbed(method: str, saved, text, tmp_path, capsys) -> None:
    """Losses and weights are equal to the last bit, with dropout too (lora)."""
    own = ("--set", "optimizer=adamw8bit") if "8 bit" in method else ()
    settings, method = dict(one.split("=") for one in own[1:]), method.split()[0]
    given = arguments(saved("gpt2"), text, tmp_path / "out", method, *own)
    if method == "lora":  # told to stop: what has been reached is kept, although no checkpoint was due
        given[given.index("--checkpoint-steps") + 1] = "100"
        ended = command("-c", STOPPED, *given)
        assert ended.returncode == 128 + signal.SIGTERM
        assert "stopped: step 3 is kept" in ended.stderr and "--resume goes on from there" in ended.stderr
    else:
        assert command("-c", KILLED, *given).returncode == -signal.SIGKILL
    kept = checkpoint_folder(tmp_path / "out")
    assert [path.name for path in sorted(kept.glob("step-*"))][-1] == "step-3.safetensors"
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="pass resume=True to go on"):
        healed(saved("gpt2"), text, tmp_path / "out", method=method, settings=settings)
    with pytest.raises(UserError, match=r"is of another run \(recipe: "):
        healed(saved("gpt2"), text, tmp_path / "out", method=method, settings=settings, lr=1e-3, resume=True)
    with shown():
        healed(saved("gpt2"), text, tmp_path / "out", method=method, settings=settings, resume=True)
    assert "resuming at step 3" in capsys.readouterr().err
    healed(saved("gpt2"), text, tmp_path / "whole", method=method, settings=settings)
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("out", "whole")
    ]
    curves = [[(row["step"], row.get("loss"), row.get("grad_norm")) for row in one] for one in rows]
    assert curves[0] == curves[1]
    one, other = weights(tmp_path / "out"), weights(tmp_path / "whole")
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_nothing_to_resume_is_said(saved, text, tmp_path, capsys) -> None:
    with shown():
        healed(saved("gpt2"), text, tmp_path / "out", tokens=128, resume=True)
    said = capsys.readouterr().err
    assert "nothing to resume" in said and re.search(
        r"about .* for weights, gradients, optimiser, activations of 4 x 32 tokens", said
    )


@pytest.mark.slow
def test_a_broken_checkpoint_falls_back(saved, text, tmp_path) -> None:
    command("-c", KILLED, *arguments(saved("gpt2"), text, tmp_path / "out", "continued"))
    kept = checkpoint_folder(tmp_path / "out")
    (kept / "step-3.safetensors").write_bytes(b"half")
    again = command("-m", "shallower", *arguments(saved("gpt2"), text, tmp_path / "out", "continued", "--resume"))
    assert again.returncode == 0 and "resuming at step 2" in again.stderr, again.stderr


def test_a_full_disk_keeps_the_last_good_checkpoint(saved, text, tmp_path, monkeypatch) -> None:
    write, written = checkpoints.save_file, []

    def full(tensors, path, header):
        written.append(path)
        if len(written) == 3:
            path.write_bytes(b"half")
            raise SafetensorError("Error: I/O error: No space left on device (os error 28)")
        write(tensors, path, header)

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(DiskError, match=r"no space left on the disk .*resume=True goes on from there"):
        healed(saved("llama"), text, tmp_path / "out", checkpoint_steps=1)
    assert sorted(path.name for path in checkpoint_folder(tmp_path / "out").glob("*step*")) == [
        "step-1.safetensors",
        "step-2.safetensors",
    ]
    with safe_open(checkpoint_folder(tmp_path / "out") / "step-2.safetensors", "pt") as file:  # no pickle
        kinds = {name.rpartition(":")[0] for name in file.keys()}  # noqa: SIM118
    assert kinds == {"weight", "state:step", "state:exp_avg", "state:exp_avg_sq"}
    assert healed(saved("llama"), text, tmp_path / "out", resume=True).steps == 6


def test_memory_can_be_spared(saved, text, tmp_path) -> None:
    """Layers computed twice, and one sequence at once, give the same curve."""
    plain = healed(saved("llama"), text, tmp_path / "plain")
    spared = healed(saved("llama"), text, tmp_path / "spared", gradient_checkpointing=True, micro_batch=1)
    assert curve(spared) == pytest.approx(curve(plain), rel=1e-5)


def test_micro_batches_are_even(saved, text, tmp_path, monkeypatch) -> None:
    """Of a step's four sequences two and two, not three and a rest that costs nearly as much."""
    given, sizes = loop.inputs, []
    monkeypatch.setattr(loop, "inputs", lambda piece, *how: sizes.append(len(piece.tokens)) or given(piece, *how))
    healed(saved("llama"), text, tmp_path / "out", micro_batch=3)
    assert set(sizes) == {2}


def test_activations_are_foretold(saved) -> None:
    """In bf16 the cast weights are left once, however many sequences run."""
    objective = Objective(open_model(saved("llama"), CPU).module.requires_grad_(True))
    foretold = {bf16: activation_bytes(objective, 32, bf16=bf16) for bf16 in (False, True)}
    weights_in_bf16 = sum(2 * one.numel() for one in objective.parameters() if one.dim() == 2)
    assert foretold[True].once - foretold[False].once == pytest.approx(weights_in_bf16, rel=0.25)
    assert foretold[True].fitting(foretold[True].of(7)) == 7 and foretold[True].fitting(0) == 1


def test_out_of_memory_halves_the_micro_batch(saved, text, tmp_path, monkeypatch, capfd) -> None:
    """Also in the middle of a step, whose sums so far do not count.

    Where even one sequence is too much, it says what to do.
    """
    plain = healed(saved("llama"), text, tmp_path / "plain", method="continued")
    given, calls, room = loop.inputs, [], [1]

    def inputs(piece, *others):
        calls.append(len(piece.tokens))
        if len(calls) > 3 and len(piece.tokens) > room[0]:
            raise torch.OutOfMemoryError("none left")
        return given(piece, *others)

    monkeypatch.setattr(loop, "inputs", inputs)
    with shown():
        spared = healed(saved("llama"), text, tmp_path / "spared", method="continued", micro_batch=2)
    assert (
        calls[:6] == [2, 2, 2, 2, 1, 1] and "out of memory: from now on 1 sequences at once" in capfd.readouterr().err
    )
    assert curve(spared) == pytest.approx(curve(plain), rel=1e-5)
    room[0] = 0
    with pytest.raises(UserError, match=r"^out of memory in step 1 with micro_batch=1: .*gradient_checkpointing=True"):
        healed(saved("llama"), text, tmp_path / "none", method="continued", micro_batch=2)


@pytest.mark.parametrize("optimizer", ["lion", "adamw8bit"])
def test_other_optimizers(optimizer: str, saved, text, tmp_path) -> None:
    """With checkpoints: each optimiser keeps other things."""
    found = healed(
        saved("llama"), text, tmp_path / "out", settings={"optimizer": optimizer}, tokens=1280, checkpoint_steps=1
    )
    assert found.recipe.optimizer == optimizer and curve(found)[-1] < curve(found)[0] - 0.2


def test_divergence_keeps_the_last_good_checkpoint(saved, text, tmp_path) -> None:
    with pytest.raises(UserError, match=r"lower lr.*the weights of step .* are kept in"):
        healed(saved("llama"), text, tmp_path / "out", lr=1e4, tokens=12800, checkpoint_steps=1)
    assert list(checkpoint_folder(tmp_path / "out").glob("step-*.safetensors"))
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- many processes


@pytest.mark.parametrize("name", ["llama", pytest.param("mixtral", marks=pytest.mark.slow)])
def test_two_processes_follow_the_same_curve(name: str, saved, lines, tmp_path) -> None:
    """With micro-batches of one sequence, documents kept apart, so that every micro-batch bears another number of
    losses.
    """
    given = arguments(
        saved(name), lines, tmp_path / "two", "continued", "--micro-batch", "1", "--eval-text", str(lines), "--json"
    )
    ran = command(*LAUNCH, *given)
    assert ran.returncode == 0, ran.stderr
    one = healed(saved(name), lines, tmp_path / "one", eval_texts=[lines])
    two = json.loads(ran.stdout)
    assert two["processes"] == 2
    assert [row["loss"] for row in two["rows"][1:]] == pytest.approx(curve(one), rel=1e-4)
    assert two["rows"][-1]["eval"]["lines"]["nll"] == pytest.approx(one.rows[-1].eval["lines"].nll, rel=1e-4)
    assert open_model(tmp_path / "two").record.fingerprint == two["fingerprint"]
