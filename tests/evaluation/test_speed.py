"""Speed on tiny models: exact numbers of tokens, models in turns, figures against hand computation, and what is
refused.
"""

import json

import pytest
import torch
from commands import status

import shallower
from shallower import Compute, Grid, UserError, artifacts
from shallower.anatomy.decoding import Decoder, cache_bytes
from shallower.artifacts import FailedRow
from shallower.cli import measurement_tables as tables
from shallower.evaluation import speed
from shallower.evaluation.analytic import analytic, bandwidth
from shallower.runtime.provenance import processor

SMALL = {"batches": (1, 2), "prompts": (5,), "new": (4,), "repeats": 3, "warmup": 1}
OPTIONS = ("--batch", "1,2", "--prompt", "5", "--new", "4", "--repeats", "3", "--warmup", "1")
DECODED = ["llama", "gpt2", "gemma2", "mixtral", "deepseek_v3", "mamba", "qwen3_next", "recurrent_gemma"]


@pytest.fixture(autouse=True)
def _small_buffer(monkeypatch):
    monkeypatch.setattr("shallower.evaluation.analytic.COPIED_BYTES", 1 << 22)


@pytest.fixture
def opened(saved):
    """``opened(name)``: a fresh Model."""
    return lambda name, **options: shallower.open_model(saved(name), Compute(**options))


@pytest.fixture
def shallow(saved, tmp_path):
    """llama without three of its layers."""
    model = shallower.open_model(saved("llama"))
    shallower.prune(model, shallower.drop(model, (1, 4, 5)), out=tmp_path / "shallow", verify=False)
    return tmp_path / "shallow"


@pytest.fixture
def calls(monkeypatch):
    """(model, shape of the tokens) of every forward that a clock sees, in order."""
    log = []
    for name in ("prefill", "step"):
        plain = getattr(Decoder, name)

        def logged(self, tokens, plain=plain):
            log.append((len(self.module.base_model.layers), tuple(tokens.shape)))
            return plain(self, tokens)

        monkeypatch.setattr(Decoder, name, logged)
    return log


@torch.no_grad()
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", DECODED)
def test_decoding_by_hand_is_the_plain_forward(name, cache, opened) -> None:
    module = opened(name).module
    tokens = torch.randint(4, 500, (2, 12), generator=torch.Generator().manual_seed(1))
    full = module(input_ids=tokens, use_cache=False).logits
    decoder = Decoder(module, room=12 if cache == "static" else None)
    for _ in range(2):  # a second time with the same static cache
        steps = [decoder.prefill(tokens[:, :8]), *(decoder.step(tokens[:, at : at + 1]) for at in range(8, 12))]
        assert (torch.stack(steps, 1) - full[:, 7:]).abs().max() < 1e-3 * full.abs().max()
    assert decoder.cached_bytes > 0
    decoder.rest()
    assert (decoder.cached_bytes > 0) == (cache == "static")


def test_bytes_of_a_cache() -> None:
    one = torch.zeros(3, 5)
    assert (
        cache_bytes({"a": [one, (one,)], "b": {"c": one[0].double(), "d": None}, "e": torch.nn.Linear(9, 9)}) == 60 + 40
    )


def test_figures_of_llama_by_hand(opened) -> None:
    model, tied = opened("llama"), opened("llama+tied")
    config, found = model.checkpoint.config, analytic(model)
    width, head = config.hidden_size, config.vocab_size * config.hidden_size
    matrices = sum(p.numel() for p in model.stack.layers[0].parameters() if p.dim() == 2)
    everything = sum(p.numel() for p in model.module.parameters())
    assert (found.parameters, found.weight_bytes) == (everything, 4 * everything)
    assert found.read_bytes_per_token == 4 * (everything - head + width)  # of the untied input embedding one row
    assert found.flops_per_token == 2 * (8 * matrices + head)
    assert (found.kv_bytes_per_token, found.state_bytes) == (
        8 * 2 * config.num_key_value_heads * config.head_dim * 4,
        0,
    )
    assert analytic(tied).read_bytes_per_token == analytic(tied).weight_bytes == 4 * (everything - head)


def test_figures_of_gpt2_by_hand(opened) -> None:
    model = opened("gpt2")
    config, found = model.checkpoint.config, analytic(model)
    unread = (config.n_positions - 1) * config.n_embd  # the head is the input embedding; of the positions one row
    assert found.read_bytes_per_token == found.weight_bytes - 4 * unread
    assert found.kv_bytes_per_token == 8 * 2 * config.n_embd * 4


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_of_experts_the_active_ones_count(implementation, opened) -> None:
    model = opened("mixtral")
    model.module.set_experts_implementation(implementation)
    config, found = model.checkpoint.config, analytic(model)
    experts = sum(p.numel() for p in model.module.parameters() if p.dim() == 3)
    idle = experts * (config.num_local_experts - config.num_experts_per_tok) // config.num_local_experts
    table = config.vocab_size * config.hidden_size
    assert idle > 0
    assert found.read_bytes_per_token == found.weight_bytes - 4 * (idle + table - config.hidden_size)
    matrices = sum(p.numel() for p in model.module.parameters() if p.dim() > 1)
    assert found.flops_per_token == 2 * (matrices - idle - table)


def test_a_state_does_not_grow(opened) -> None:
    found = analytic(opened("mamba"))
    assert found.kv_bytes_per_token == 0 < found.state_bytes


def test_exact_tokens_and_turns(saved, shallow, calls) -> None:
    found = shallower.bench(saved("llama"), against=shallow, grid=Grid.of(**SMALL))
    begun = 2 * (1 + 2)  # the analytic figures of both
    timed = calls[begun:]
    expected = []
    for batch in (1, 2):
        run = [(batch, 5), *[(batch, 1)] * 3]  # the prefill makes the first of exactly 4 tokens
        expected += [(layers, shape) for _ in range(1 + 3) for layers in (8, 5) for shape in run]
    assert timed == expected
    assert [row.runs for row in found.rows] == [3] * 4


def test_rows_are_complete(saved, shallow, tmp_path, capsys) -> None:
    found = shallower.bench(shallow, against=saved("llama"), grid=Grid.of(**SMALL), out=tmp_path / "speed.json")
    assert json.loads(artifacts.dumps(artifacts.load(tmp_path / "speed.json", "speed"))) == json.loads(
        artifacts.dumps(found)
    )
    assert artifacts.load(tmp_path / "speed.json", "speed") == found
    assert [(row.of, row.batch) for row in found.rows] == [
        (of, batch) for batch in (1, 2) for of in ("model", "against")
    ]
    for row in found.rows:
        for key in ("prefill", "decode", "latency"):
            assert 0 < getattr(row, key).p10 <= getattr(row, key).median <= getattr(row, key).p90
        assert row.latency.p90 >= row.prefill.p10 + 3 * row.decode.p10
        assert row.tokens_per_second == pytest.approx(row.batch * 4 / row.latency.median)
        assert min(row.peak_memory_bytes, row.bound) > 0
    weights = [found.analytic[name].read_bytes_per_token for name in ("against", "model")]
    for row, batch in zip(found.speedups, (1, 2), strict=True):
        assert (row.batch, row.prompt, row.new) == (batch, 5, 4) and min(vars(row).values()) > 0
        assert row.ideal == pytest.approx(weights[0] / weights[1], rel=0.02)
    assert (found.model.layers, found.against.layers, found.protocol, found.device, found.threads) == (
        5,
        8,
        "default",
        f"cpu ({processor()})",
        1,
    )
    tables.speed_table(found, tmp_path / "speed.json")
    shown = capsys.readouterr().out
    assert "shallow" in shown and "milliseconds" in shown and str(tmp_path) in shown


def test_the_command_line(saved, tmp_path, capsys) -> None:
    assert status("bench", saved("mamba"), *OPTIONS, "--out", tmp_path / "speed.json", "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads((tmp_path / "speed.json").read_text())
    assert (content["kind"], content["against"], content["speedups"], len(content["rows"])) == ("speed", None, [], 2)
    assert content["settings"]["repeats"] == 3 and content["settings"]["seconds"] is None
    assert status("bench", saved("gpt2"), *OPTIONS, "--cache", "static") == 0
    assert "gpt2" in capsys.readouterr().out


def test_the_protocols() -> None:
    paper = Grid.of("shortened-llama")
    assert (paper.prompts, paper.new, paper.batches[0], paper.batches[-1]) == ((12,), (128, 512), 1, 256)
    assert (paper.repeats + paper.warmup, paper.warmup, paper.repeated, paper.typical, paper.seconds) == (
        30,
        10,
        True,
        "mean",
        None,
    )
    assert len(paper.settings) == 18
    assert Grid.of(batches=(4, 1, 4)).settings == [(1, 128, 32), (4, 128, 32)]
    same, other = (speed.prompts(500, 3, 7, repeated=repeated) for repeated in (True, False))
    assert (same == same[0]).all() and not (other == other[0]).all()


def test_the_mean_counts_by_the_paper(opened) -> None:
    grid = Grid.of("shortened-llama", batches=(2,), new=(4,), repeats=3, warmup=0)
    row = shallower.bench(opened("llama"), grid=grid).rows[0]
    assert row.tokens_per_second == pytest.approx(2 * 4 / row.latency.mean)


def test_no_time_left(opened) -> None:
    found = shallower.bench(opened("llama"), grid=Grid.of(**SMALL | {"repeats": 50}, seconds=1e-6))
    assert [row.runs for row in found.rows] == [speed.LEAST] * 2


def test_drift_cancels() -> None:
    pace = torch.linspace(1, 2, 40)
    found = speed.ratios(pace[0::2].tolist(), (2 * pace[1::2]).tolist())
    assert len(found) == 39 and torch.tensor(found).mean() == pytest.approx(2, rel=1e-3)


def test_out_of_memory_ends_a_models_batches(saved, shallow, monkeypatch) -> None:
    plain = Decoder.step

    def step(self, tokens):
        if len(tokens) >= 2 and len(self.module.base_model.layers) == 8:
            raise torch.OutOfMemoryError("none left")
        return plain(self, tokens)

    monkeypatch.setattr(Decoder, "step", step)
    found = shallower.bench(shallow, against=saved("llama"), grid=Grid.of(**SMALL | {"batches": (1, 2, 3)}))
    outcome = [(row.of, row.batch, getattr(row, "error", None)) for row in found.rows]
    alone = [("model", 2, None), ("against", 2, "out of memory"), ("model", 3, None)]
    assert outcome == [("model", 1, None), ("against", 1, None), *alone]
    assert [row.batch for row in found.speedups] == [1]
    tables.speed_table(found)


def test_a_cache_that_cannot_fit_is_not_tried(opened, calls) -> None:
    rows = shallower.bench(opened("llama"), grid=Grid.of(batches=(10**9,), prompts=(5,), new=(4,))).rows
    assert rows == [FailedRow("model", 10**9, 5, 4, "out of memory")]
    assert len(calls) == 3


def test_nan_is_said(opened, monkeypatch) -> None:
    model = opened("llama")
    with torch.no_grad():
        model.module.lm_head.weight[3] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        shallower.bench(model, grid=Grid.of(**SMALL))


def test_a_layered_model_is_refused(opened, shallow) -> None:
    with pytest.raises(UserError, match="one layer in memory"):
        shallower.bench(shallow, against=opened("llama", layered=True))


def test_models_that_do_not_fit_together(opened, shallow, monkeypatch) -> None:
    monkeypatch.setattr(speed, "total_memory", lambda device: 2e6)
    with pytest.raises(UserError, match="without against"):
        shallower.bench(shallow, against=opened("llama"))


def test_a_model_without_a_cache(opened, monkeypatch) -> None:
    model = opened("llama")
    plain = model.module.forward
    monkeypatch.setattr(
        model.module, "forward", lambda input_ids, use_cache=None: plain(input_ids=input_ids, use_cache=False)
    )
    with pytest.raises(UserError, match="keeps no cache"):
        shallower.bench(model, grid=Grid.of(**SMALL))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--batch", "0"), "1 or more"),
        (("--batch", "a,2"), "give numbers such as 3,4,5"),
        (("--batch", ""), "give numbers such as 3,4,5"),
        (("--prompt", "5,-1"), "give numbers such as 3,4,5"),
        (("--new", "1"), "2 or more"),
        (("--repeats", "0"), "at least 1"),
        (("--warmup", "-1"), "0 or more"),
        (("--protocol", "fast"), "shortened-llama"),
        (("--cache", "big"), "dynamic or static"),
        (("--compile",), "--cache static"),
        (("--device", "abacus"), "abacus"),
        (("--against", "nowhere"), "nowhere"),
        (("--out", "."), "."),
    ],
)
def test_bad_input(options, said, saved, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert status("bench", saved("llama"), *options) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and said in err
    assert list(tmp_path.iterdir()) == []


def test_more_positions_than_there_are(saved, capsys) -> None:
    assert status("bench", saved("gpt2"), "--batch", "1", "--prompt", "9999", "--new", "2", "--repeats", "1") == 2
    assert "lower --prompt or --new" in capsys.readouterr().err.splitlines()[-1]


def test_bandwidth() -> None:
    assert 1e8 < bandwidth("cpu") < 1e13
