"""Parts of layers, found by behaviour in many families: silent is not there, in order they make the layer."""

import pytest
import torch
import zoo
from transformers import LlamaConfig, LlamaForCausalLM

from shallower import open_model
from shallower.anatomy.stack import find_stack
from shallower.anatomy.units.grouping import groups_of
from shallower.anatomy.units.part import find_parts, silent
from shallower.errors import Refusal
from shallower.walk.replay import Replay

BOTH, NO = ("attention", "mlp"), ()
EXPECTED = {  # the modules that write, and the order of the parts; () where both read the same stream
    "llama": (("self_attn", "mlp"), BOTH),
    "phi3": (("self_attn", "mlp"), BOTH),
    "gpt2": (("attn", "mlp"), BOTH),
    "opt": (("self_attn", "fc2"), BOTH),
    "bloom": (("self_attention.dense", "mlp.dense_4h_to_h"), BOTH),  # its blocks add the stream themselves
    "gemma2": (("post_attention_layernorm", "post_feedforward_layernorm"), BOTH),  # a norm behind each product
    "gpt_neox": (("attention", "mlp"), NO),
    "falcon": (("self_attention", "mlp"), NO),
    "qwen3_moe": (("self_attn", "mlp"), BOTH),
    "recurrent_gemma": (("temporal_block", "mlp_block"), BOTH),
    "mamba": (("mixer",), ("attention",)),
}
REFUSED = ("roberta", "minimax", "gemma3n_text", "gemma4_text", "longcat_flash")


def layers_of(name):
    """Every layer of a family's model: the layer, its stream and how to call it on another."""
    module = zoo.FAMILIES[name].build()
    stack, replay = find_stack(module), None
    replay = Replay(module, stack)
    recording = replay.record(zoo.tokens(2, 12))
    stream = recording.entering
    for index, (layer, interface) in enumerate(zip(stack.layers, stack.interfaces, strict=True)):
        args, kwargs = interface.with_stream(*recording.calls[index], stream)
        yield layer, interface, args, kwargs, stack, lambda one, index=index: replay.step(recording, index, one)
        stream = replay.step(recording, index, stream)


@pytest.mark.parametrize("name", EXPECTED)
def test_parts_are_found_by_behaviour(name) -> None:
    writers, order = EXPECTED[name]
    for layer, interface, args, kwargs, stack, step in layers_of(name):
        found = find_parts(layer, interface, args, kwargs, stack.position_axis)
        assert tuple(next(iter(part.modules)) for part in found.parts.values()) == writers
        assert found.order == order
        stream, parts = interface.stream_in(args, kwargs), list(found.parts.values())
        with torch.no_grad():
            whole = step(stream)
            with silent(layer, parts, stack.width):
                assert torch.equal(step(stream), stream)  # a layer of which nothing is left hands the stream on
            alone = []
            for part in parts:
                with silent(layer, [other for other in parts if other is not part], stack.width):
                    alone.append(step(stream) - stream)
                    assert alone[-1].abs().max() > 1e-3
            if not order:  # each reads the stream that enters the layer
                assert torch.allclose(stream + sum(alone), whole, atol=1e-5)
            else:
                one = stream
                for part in order:
                    with silent(layer, [found.parts[other] for other in order if other != part], stack.width):
                        one = step(one)
                assert torch.equal(one, whole)
            assert torch.equal(step(stream), whole)  # all is back


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "bloom", "qwen3_moe"])
def test_every_parameter_serves_one_part(name) -> None:
    layer, interface, args, kwargs, stack, _ = next(layers_of(name))
    found = find_parts(layer, interface, args, kwargs, stack.position_axis)
    names = [name for part in found.parts.values() for name in part.parameters]
    assert sorted(names) == sorted(name for name, _ in layer.named_parameters())


def test_a_shared_norm_serves_no_part_alone() -> None:
    layer, interface, args, kwargs, stack, _ = next(layers_of("falcon"))
    found = find_parts(layer, interface, args, kwargs, stack.position_axis)
    left = {name for name, _ in layer.named_parameters()}.difference(
        *(part.parameters for part in found.parts.values())
    )
    assert left == {"input_layernorm.weight", "input_layernorm.bias"}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_told_apart_is_refused(name) -> None:
    layer, interface, args, kwargs, stack, _ = next(layers_of(name))
    with pytest.raises(Refusal, match="adds more to the stream"):
        find_parts(layer, interface, args, kwargs, stack.position_axis)


def test_parts_of_wide_layers_are_found_without_their_weights(tmp_path) -> None:
    """Queries and keys with the same stand-ins would let every token see itself alone, and attention mix nothing."""
    shape = {"hidden_size": 2048, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64}
    config = LlamaConfig(**shape, num_attention_heads=16, num_key_value_heads=16, tie_word_embeddings=True)
    LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path / "wide")
    model = open_model(tmp_path / "wide")
    assert [layer.order for layer in model.parts] == [BOTH, BOTH]
    assert {part.part for part in model.units("width").by_part} == {*BOTH}


def test_what_a_coarse_dtype_rounds_is_still_seen(tmp_path) -> None:
    """Layers times constants near one, and keys that layers share in what is no dict; looked at in fp32 and in bf16."""
    folder = zoo.save("gemma4_text", tmp_path / "in")
    for dtype in ("fp32", "bf16"):
        with pytest.raises(Refusal, match="adds more to the stream"):
            _ = open_model(folder, dtype=dtype).parts
    plain = zoo.FAMILIES["gemma4_text"].build()
    for layer in plain.model.layers:
        layer.layer_scalar.fill_(1)
    folder = zoo.save(plain, tmp_path / "plain")
    exact, coarse = (open_model(folder, dtype=dtype).grouped for dtype in ("fp32", "bf16"))
    assert exact == coarse and exact[0].groups


@pytest.mark.parametrize("layered", [False, True])
def test_random_weights_begin_where_products_of_experts_on_a_gpu_can_read_them(layered, tmp_path) -> None:
    model = open_model(zoo.save("qwen3_moe", tmp_path / "in"), dtype="bf16", layered=layered)
    parts, seen = model.parts, []

    def see(module: torch.nn.Module, _: tuple) -> None:
        seen.extend(parameter.data_ptr() % 16 for parameter in module.parameters())

    with model.dry() as module:
        for layer in model.outline.of(module).layers:
            layer.mlp.register_forward_pre_hook(see)
        groups_of(model.outline.of(module), module, zoo.tokens(2, 12), parts)
    assert seen and not any(seen)
