"""Every criterion against a literal transcription of its formula, which shares nothing with the package
(first half).
"""

import copy
import math
import random
from functools import cache

import numpy as np
import pytest
import torch
import zoo
from literal import blocks, plain, without

from shallower import Calibration, UserError, drop, methods, prune, score
from shallower.anatomy.model import Model
from shallower.artifacts import Removal
from shallower.walk import batching, removals
from shallower.walk import gradients as walked_gradients
from shallower.walk.replay import Replay
from shallower.walk.scoring import DATA, Asked, gather
from shallower.walk.sums import Sums

FAMILIES = ("llama", "gpt2", "qwen3_moe", "gemma2")  # plain; Conv1D and LayerNorm biases; experts; mixed masks
TOKENS = zoo.tokens(batch=5, length=20)
CLOSE = 1e-5


def nll(model, tokens):
    """Σ over samples and positions of -log p(next token), as a share of all predictions of TOKENS."""
    total = torch.zeros((), dtype=torch.float64)
    for sample in tokens:
        logits = model(input_ids=sample[None], use_cache=False).logits[0].double()
        for place in range(len(sample) - 1):
            total = total - logits[place].log_softmax(-1)[sample[place + 1]]
    return total / TOKENS[:, 1:].numel()


@torch.no_grad()
def streams(model, tokens):
    """h_0 … h_N as arrays (sample, position, feature): what enters the first layer, then what leaves each layer."""
    found, model = [], copy.deepcopy(model)

    def note(_, __, stream):
        found.append(stream if torch.is_tensor(stream) else stream[0])

    blocks(model)[0].register_forward_pre_hook(lambda layer, args: note(layer, None, args))
    for layer in blocks(model):
        layer.register_forward_hook(note)
    model(input_ids=tokens, use_cache=False)
    return [stream.numpy().astype(np.float64) for stream in found]


def cosine(a, b) -> float:
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def magnitude(model, tokens):
    """I(n) = Σ_k Σ_ij |W_ij|"""
    return [
        sum(np.abs(weight.detach().numpy().astype(np.float64)).sum() for weight in layer.parameters())
        for layer in blocks(model)
    ]


def taylor(model, tokens):
    """I(n) = Σ_k Σ_ij | Σ_b W_ij · ∂L_b/∂W_ij |, Σ_b L_b the mean NLL; batches of 2, 2 and 1 samples."""
    products = [{} for _ in blocks(model)]
    for batch in (tokens[:2], tokens[2:4], tokens[4:]):
        model.zero_grad()
        nll(model, batch).backward()
        for total, layer in zip(products, blocks(model), strict=True):
            for k, weight in layer.named_parameters():
                total[k] = total.get(k, 0) + weight.detach().double() * weight.grad.double()
    return [sum(float(product.abs().sum()) for product in total.values()) for total in products]


@torch.no_grad()
def perplexity(model, tokens):
    """I(n) = exp(mean NLL of the model without layer n)"""
    return [math.exp(nll(without(model, n), tokens)) for n in range(len(blocks(model)))]


def block_influence(model, tokens):
    """BI(n) = 1 - E_tokens cos(h_n, h_{n+1})"""
    h = streams(model, tokens)
    return [
        1 - np.mean([cosine(h[n][place], h[n + 1][place]) for place in np.ndindex(*tokens.shape)])
        for n in range(len(h) - 1)
    ]


def angular_windows(model, tokens):
    """windows[n-1][s] = E_samples arccos(cos(h_s, h_{s+n})) / π at the last position"""
    h = [stream[:, -1] for stream in streams(model, tokens)]

    def run(before, after):
        return float(np.mean([math.acos(cosine(a, b)) / math.pi for a, b in zip(before, after, strict=True)]))

    return [[run(h[s], h[s + n]) for s in range(len(h) - n)] for n in range(1, len(h) - 1)]


def gradients(model, tokens):
    """Layer by layer: Σ_b ∂L_b/∂W of its parameters with two or more dimensions."""
    model.zero_grad()
    nll(model, tokens).backward()
    return [[weight.grad.double() for weight in layer.parameters() if weight.dim() > 1] for layer in blocks(model)]


def gradient(model, tokens):
    """I(n) = Σ_W Σ_ij | ∂L/∂W_ij |"""
    return [sum(float(gradient.abs().sum()) for gradient in layer) for layer in gradients(model, tokens)]


def gradient_l2(model, tokens):
    """I(n) = Σ_W ‖ ∂L/∂W ‖_F"""
    return [sum(float(gradient.norm()) for gradient in layer) for layer in gradients(model, tokens)]


def pulls(model, tokens):
    """Layer by layer: h_n, h_{n+1} and ∂L/∂h_{n+1}."""
    found, model = [], copy.deepcopy(model).requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)

    def note(_, args, kwargs, out):
        out = out if torch.is_tensor(out) else out[0]
        out.retain_grad()
        found.append((args[0] if args else kwargs["hidden_states"], out))

    for layer in blocks(model):
        layer.register_forward_hook(note, with_kwargs=True)
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].double()
    (-logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).mean()).backward()
    return [(before.detach().double(), after.detach().double(), after.grad.double()) for before, after in found]


def gradient_hidden(model, tokens):
    """I(n) = E_tokens ‖ ∂L/∂h_{n+1} ‖"""
    return [float(gradient.norm(dim=-1).mean()) for _, _, gradient in pulls(model, tokens)]


def gate(model, tokens):
    """I(n) = - Σ_tokens ⟨ ∂L/∂h_{n+1}, h_{n+1} - h_n ⟩"""
    return [-float((gradient * (after - before)).sum()) for before, after, gradient in pulls(model, tokens)]


FORMULAS = {
    "gate": gate,
    "gradient": gradient,
    "angular": lambda model, tokens: angular_windows(model, tokens)[0],
    "block_influence": block_influence,
    "magnitude": magnitude,
    "perplexity": perplexity,
    "random": lambda model, tokens: [random.Random(f"1234:{n}").random() for n in range(len(blocks(model)))],
    "taylor": taylor,
}


@cache
def opened(folder) -> Model:
    return Model(folder, device="cpu")


def found(criterion: str, model: Model, removed: tuple[int, ...] = (), **settings: str):
    method = methods.find("criteria", criterion)
    return gather(
        [Asked(method, methods.configure(method, settings))], model, TOKENS, removal=Removal.of_layers(removed)
    )[0]


def values(criterion: str, model: Model) -> list[float]:
    return list(found(criterion, model).scores.values())


def cut(monkeypatch, count: int) -> None:
    """Walk in batches of that many samples from now on."""
    for module in (removals, walked_gradients, batching):
        monkeypatch.setattr(
            module, "batches", lambda model, tokens, limit=None: list(tokens.to(model.device).split(count))
        )


LAYERS = [
    name for name in methods.names("criteria") if methods.find("criteria", name).EVIDENCE != "inputs"
]  # not groups
each_criterion = pytest.mark.parametrize("criterion", LAYERS)
each_family = pytest.mark.parametrize("name", FAMILIES)


@each_criterion
@each_family
def test_equals_the_formula(criterion, name, saved, monkeypatch) -> None:
    cut(monkeypatch, 2)
    wanted = FORMULAS[criterion](plain(saved(name)), TOKENS)
    got = found(criterion, opened(saved(name)))
    assert list(got.scores) == list(range(zoo.LAYERS))
    assert list(got.scores.values()) == pytest.approx(wanted, rel=CLOSE, abs=CLOSE * max(map(abs, wanted)))
    assert len({round(value, 4) for value in wanted}) == zoo.LAYERS  # the formula tells the layers apart
    windows = angular_windows(plain(saved(name)), TOKENS) if criterion == "angular" else ()
    for ours, theirs in zip(got.windows or (), windows, strict=True):
        assert ours == pytest.approx(theirs, rel=CLOSE)


@pytest.mark.parametrize(("norm", "formula"), [("l2", gradient_l2), ("hidden", gradient_hidden)])
@pytest.mark.parametrize("whole", [False, True])
@each_family
def test_other_norms_of_the_gradient(norm, formula, whole, name, saved, monkeypatch) -> None:
    cut(monkeypatch, 2)
    if whole:
        monkeypatch.setattr(Replay, "faithful", lambda self: False)
    got = found("gradient", Model(saved(name), device="cpu"), norm=norm)
    assert list(got.scores.values()) == pytest.approx(formula(plain(saved(name)), TOKENS), rel=CLOSE)


def test_the_gate_is_the_change_of_the_loss_to_first_order(saved) -> None:
    """A layer switched off by a thousandth changes the loss by a thousandth of its gate, in the direction that its
    sign says.
    """
    model, step = plain(saved("llama")), 1e-3
    for index, score_ in enumerate(values("gate", opened(saved("llama")))):
        hook = blocks(model)[index].register_forward_hook(
            lambda _, args, kwargs, out: out - step * (out - (args[0] if args else kwargs["hidden_states"])),
            with_kwargs=True,
        )
        with torch.no_grad():
            moved = float(nll(model, TOKENS))
        hook.remove()
        with torch.no_grad():
            assert (moved - float(nll(model, TOKENS))) / step == pytest.approx(score_, rel=0.05, abs=2e-4)


@each_criterion
@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_split_equals_merged(criterion, name, saved, monkeypatch) -> None:
    model = opened(saved(name))
    merged = values(criterion, model)
    for count, bytes_ in (
        (1, batching.BLOCK_LOGIT_BYTES),
        (3, batching.BLOCK_LOGIT_BYTES),
        (3, 4 * zoo.VOCAB * 7),
    ):  # last: logits of 7 places
        cut(monkeypatch, count)
        monkeypatch.setattr(batching, "BLOCK_LOGIT_BYTES", bytes_)
        assert values(criterion, model) == pytest.approx(
            merged, rel=CLOSE, abs=CLOSE * max(map(abs, merged))
        )  # a signed sum cancels


@each_criterion
@pytest.mark.parametrize("removed", [pytest.param((), marks=pytest.mark.slow), (1, 4)])
@each_family
def test_whole_forwards_equal_replay(criterion, removed, name, saved, monkeypatch) -> None:
    cut(monkeypatch, 2)
    wanted = found(criterion, opened(saved(name)), removed=removed).scores
    assert removals.replay_of(opened(saved(name))) is not None
    monkeypatch.setattr(Replay, "faithful", lambda self: False)
    whole = Model(saved(name), device="cpu")
    assert found(criterion, whole, removed=removed).scores == pytest.approx(
        wanted, rel=CLOSE, abs=CLOSE * max(map(abs, wanted.values()))
    )
    assert removals.replay_of(whole) is None


@each_family
def test_scores_without_layers_equal_those_of_the_pruned_model(name, saved, tmp_path) -> None:
    prune(saved(name), drop(saved(name), (1, 4)), out=tmp_path / "pruned", verify=False)
    physical = Model(tmp_path / "pruned", device="cpu")
    for criterion in set(FORMULAS) - {"random"}:  # random follows the layer's number in the given model
        virtual = found(criterion, opened(saved(name)), removed=(1, 4)).scores
        assert list(virtual) == [0, 2, 3, 5, 6, 7], criterion
        wanted = values(criterion, physical)
        assert list(virtual.values()) == pytest.approx(wanted, rel=CLOSE, abs=CLOSE * max(map(abs, wanted))), criterion


@each_criterion
def test_the_model_stays_as_it_was(criterion, saved) -> None:
    model = opened(saved("gpt2"))
    found(criterion, model, removed=(2,))
    with torch.no_grad():
        wanted, got = (
            module(input_ids=TOKENS, use_cache=False).logits for module in (plain(saved("gpt2")), model.module)
        )
    assert torch.equal(wanted, got)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.module.parameters())
    assert not any(module._forward_hooks or "forward" in module.__dict__ for module in model.module.modules())


@each_criterion
def test_same_seed_same_scores(criterion, saved) -> None:
    given = (Calibration(samples=3, length=16, seed=seed) for seed in (7, 7, 8))
    first, again, other = (
        score(opened(saved("llama")), criterion=criterion, calibration=calibration) for calibration in given
    )
    assert (first.scores, first.windows, first.calibration) == (again.scores, again.windows, again.calibration)
    needs = methods.find("criteria", criterion).EVIDENCE in DATA
    assert first.calibration.hash != other.calibration.hash if needs else first.calibration is None
    assert (first.scores == other.scores) == (criterion == "magnitude")


@each_criterion
def test_score_is_gather_on_the_given_tokens(criterion, saved, tmp_path) -> None:
    np.save(tmp_path / "tokens.npy", TOKENS.numpy())
    got = score(saved("gpt2"), criterion=criterion, calibration=Calibration(tokens=str(tmp_path / "tokens.npy")))
    wanted = found(criterion, opened(saved("gpt2")))
    assert (got.criterion, got.scores, got.windows) == (criterion, list(wanted.scores.values()), wanted.windows)


@pytest.mark.parametrize("criterion", sorted(set(FORMULAS) - {"random"}))
def test_broken_weights_are_an_error(criterion, saved) -> None:
    model = Model(saved("llama"), device="cpu")
    model.stack.layers[3].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"layer \d|NaN"):
        found(criterion, model)


def test_taylor_of_weights_that_layers_share(saved) -> None:
    wanted = taylor(plain(saved("zamba2")), TOKENS)  # layers 2 and 5 share a block
    assert values("taylor", opened(saved("zamba2"))) == pytest.approx(wanted, rel=CLOSE)


def test_a_layer_that_others_need_is_an_error(saved) -> None:
    with pytest.raises(UserError):
        found("perplexity", opened(saved("gemma3n_text")))


def test_sums_merge_by_adding() -> None:
    merged, one = Sums(), Sums.of({"total": torch.full((2,), 0.1), "count": 3})
    merged += one
    merged += Sums.of({"total": torch.full((2,), 0.2), "count": 3})
    assert merged["total"].dtype == merged["count"].dtype == torch.float64
    assert merged["total"].tolist() == pytest.approx([0.3, 0.3])
    assert (merged["count"], one["count"]) == (6, 3)  # the parts stay
    with pytest.raises(AssertionError, match="other"):
        merged += Sums.of({"other": 1.0})
