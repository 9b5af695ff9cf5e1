"""Marks of the layers, forward and backward."""

import torch
from torch import nn

from pretrain.models.layer_list import LayerList
from pretrain.models.layers import LayerSpec, ModelSpec
from pretrain.resilience.marks import BACKWARD_MARKS, Marks


def layers(count: int = 3) -> LayerList:
    specs = [LayerSpec(f"layers.{i}", lambda: nn.Linear(2, 2), lambda m, state: (m(state[0]),)) for i in range(count)]
    return LayerList(ModelSpec(tuple(specs), {}, ("x",)), seed=None)


def said(marks: Marks) -> tuple[str, str, int]:
    return marks.reached.layer, marks.direction, marks.micro_batch


def test_the_last_layer_of_each_pass():
    model, marks = layers(), Marks()
    marks.listen(model)
    assert said(marks) == ("", "", 0)
    (out,) = model((torch.ones(1, 2, requires_grad=True),))
    assert said(marks) == ("layers.2", "forward", 1)
    before = marks.reached.marks
    out.sum().backward()
    assert said(marks) == ("layers.0", "backward", 1)
    assert marks.reached.marks == before + 3
    model((torch.ones(1, 2),))
    assert said(marks) == ("layers.2", "forward", 2)
    marks.begin_step()
    assert said(marks) == ("", "", 0)


def test_at_a_thousand_layers_only_some_mark_the_backward_pass_and_none_is_left():
    model, marks = layers(1000), Marks()
    marks.listen(model)
    assert 16 <= sum(bool(module._forward_pre_hooks) for module in model.modules()) <= BACKWARD_MARKS
    marks.close()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_results_and_gradients_are_the_same():
    model = layers()
    x = torch.ones(1, 2)
    model((x,))[0].sum().backward()
    before = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    marks = Marks()
    marks.listen(model)
    model((x,))[0].sum().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True))
