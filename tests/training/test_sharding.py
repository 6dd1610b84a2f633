"""A model that is split among processes is trained as a whole one is, and comes out whole."""

import json
import os

import pytest
import torch
from trainings import KILLED, LAUNCH, arguments, command, curve, healed, weights

from shallower import UserError, open_model

SLOW = ["llama+tied continued", "mixtral continued", "llama lora"]


@pytest.mark.parametrize("which", [pytest.param(one, marks=pytest.mark.slow) for one in ("llama continued", *SLOW)])
def test_split_and_whole_follow_the_same_curve(which: str, saved, text, tmp_path) -> None:
    name, method = which.split()
    own = ("--set", "dropout=0") if method == "lora" else ()
    given = arguments(saved(name), text, tmp_path / "two", method, *own, "--shard", "--eval-text", str(text), "--json")
    ran = command(*LAUNCH, *given)
    assert ran.returncode == 0, ran.stderr
    one = healed(
        saved(name),
        text,
        tmp_path / "one",
        method=method,
        settings={"dropout": "0"} if own else None,
        eval_texts=[text],
    )
    two = json.loads(ran.stdout)
    assert [row["loss"] for row in two["rows"] if "loss" in row] == pytest.approx(curve(one), rel=1e-4)
    assert two["rows"][-1]["eval"]["book"]["nll"] == pytest.approx(one.rows[-1].eval["book"].nll, rel=1e-4)
    assert two["trained_parameters"] == one.trained_parameters and two["reloaded"]["logits"] == "bit for bit"
    assert open_model(tmp_path / "two").record.fingerprint == two["fingerprint"]
    found, wanted = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["FSDP", "DEEPSPEED"])
def test_what_accelerate_asks_for_means_splitting(what: str, saved, text, tmp_path) -> None:
    """On a CPU ``accelerate launch`` passes no such wish on: the variable by which it does so is set by hand."""
    given = arguments(saved("llama"), text, tmp_path / "out", "continued", "--json")
    others = {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "8"}
    ran = command(*LAUNCH, *given, **{f"ACCELERATE_USE_{what}": "true"}, **others)
    assert ran.returncode == 0, ran.stderr
    assert (
        "split by FSDP2, as by --shard" in ran.stderr and "in each process" in ran.stderr
    )  # the memory of a split one
    one = healed(saved("llama"), text, tmp_path / "one")
    assert [row["loss"] for row in json.loads(ran.stdout)["rows"] if "loss" in row] == pytest.approx(
        curve(one), rel=1e-4
    )


def test_one_process_takes_nothing_of_what_accelerate_asks_for(saved, text, tmp_path, monkeypatch) -> None:
    plain = healed(saved("llama"), text, tmp_path / "plain")
    for name, value in {"USE_FSDP": "true", "GRADIENT_ACCUMULATION_STEPS": "8"}.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    found = healed(saved("llama"), text, tmp_path / "out")
    assert [row.grad_norm for row in found.rows if row.loss is not None] == [
        row.grad_norm for row in plain.rows if row.loss is not None
    ]
    assert curve(found) == curve(plain) and os.environ["ACCELERATE_USE_FSDP"] == "true"


@pytest.mark.slow
def test_a_split_training_is_killed_and_goes_on(saved, text, tmp_path) -> None:
    """The checkpoint is a whole one: one process could go on with it, too."""
    given = arguments(
        saved("llama"), text, tmp_path / "out", "continued", "--micro-batch", "1", "--keep-optimizer", "--shard"
    )
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    assert command(*LAUNCH[:-2], str(script), *given).returncode != 0
    script.unlink()
    again = command(*LAUNCH, *given, "--resume")
    assert again.returncode == 0 and "resuming at step 3" in again.stderr, again.stderr
    whole = healed(saved("llama"), text, tmp_path / "whole", keep_optimizer=True)
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows if "loss" in row] == pytest.approx(curve(whole), rel=1e-4)
    kept = [
        {name: tensor.shape for name, tensor in weights(tmp_path / name / "training").items()}
        for name in ("out", "whole")
    ]
    assert kept[0] == kept[1]


@pytest.mark.slow
def test_what_cannot_be_split(saved, text, tmp_path) -> None:
    with pytest.raises(UserError, match="there is one process: start several by torchrun"):
        healed(saved("llama"), text, tmp_path / "out", shard=True)
    given = arguments(saved("llama"), text, tmp_path / "out", "continued", "--shard")
    given[given.index("--batch-tokens") + 1] = "96"
    ran = command(*LAUNCH, *given)
    assert (
        ran.returncode != 0
        and "error: --shard: a batch of 3 sequences does not split evenly: --batch-tokens 64 does" in ran.stderr
    )
    assert not list(tmp_path.iterdir())
