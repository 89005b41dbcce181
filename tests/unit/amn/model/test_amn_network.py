"""The networks: sizes, norms, shapes, and what the bounded layout promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from amn_helpers import contexts, made, stir

from amn.config import PARAMETERS, ModelConfig, TrainConfig, model_config_from_dict
from amn.errors import ConfigError, ShapeError
from amn.kernel import bindings as kernel
from amn.model.folded import fold, shared
from amn.model.layouts import build
from amn.model.network import BoundedAMN, count_parameters, limit

COUNTS = {
    "card": 1_472_768,
    "bounded": 1_472_768,
    "stacked": 4_620_288,
    "retrieval": 1_816_844,
    "published": 1_510_912,
    "gru": 7_095_552,
    "gru-bounded": 7_095_552,
    "transformer": 17_867_520,
}
AMN_LAYOUTS = ("card", "bounded", "published")


@pytest.mark.parametrize("layout", COUNTS)
def test_every_layout_has_exactly_the_parameters_that_it_promises(layout):
    assert PARAMETERS[layout] == COUNTS[layout]
    assert count_parameters(build(ModelConfig(layout=layout))) == COUNTS[layout]


@pytest.mark.parametrize("layout", COUNTS)
def test_answers_have_norm_one_within_a_millionth(layout):
    model = made(layout)
    with torch.inference_mode():
        norms = model(contexts(4)).double().norm(dim=1)
    assert (norms - 1).abs().max() < 1e-6


@pytest.mark.parametrize("layout", COUNTS)
@pytest.mark.parametrize("shape", [(5, 768), (2, 4, 768), (2, 6, 768), (2, 5, 769)])
def test_contexts_of_another_shape_are_refused(layout, shape):
    model = build(ModelConfig(layout=layout))
    with pytest.raises(ShapeError, match="give \\(B, 5, 768\\)"):
        model(torch.zeros(shape))


@pytest.mark.parametrize("layout", AMN_LAYOUTS)
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7, 8, 33])
def test_the_folded_form_answers_like_the_module(layout, batch):
    model = made(layout)
    x = contexts(batch, topic=2.0)
    if isinstance(model, BoundedAMN):
        model.fit_familiar(x[: (batch + 1) // 2].flatten(0, 1))  # some familiar, some not
    with torch.inference_mode():
        expected = model(x)
    assert (fold(model)(x) - expected).abs().max() < 1e-5
    assert (fold(model)(x.numpy()) - expected).abs().max() < 1e-5
    assert np.abs(fold(model).arrays(x.numpy()) - expected.numpy()).max() < 1e-5


@pytest.mark.parametrize("loops", [True, False])
def test_a_stacked_network_is_folded_with_its_first_stage(loops, monkeypatch):
    monkeypatch.setattr(kernel, "READY", loops and kernel.READY)
    model = made("stacked", residual_share=0.5)
    familiar, strange = contexts(6, topic=2.0), contexts(6, seed=99)
    model.first.fit_familiar(familiar.flatten(0, 1))
    x = torch.cat([strange, familiar])
    with torch.inference_mode():
        expected, first = model(x), model.first(x)
    assert (expected - first)[6:].abs().max() > 1e-3  # the second stage has something to say
    folded = fold(model)
    assert (folded(x) - expected).abs().max() < 1e-5
    for rows in (slice(0, 12), slice(0, 1), slice(6, 7), slice(4, 8)):
        assert np.abs(folded.arrays(x[rows].numpy()) - expected[rows].numpy()).max() < 1e-5


@pytest.mark.parametrize("batch", [1, 3, 12])
def test_trusted_and_distrusted_contexts_of_one_batch_are_all_answered_like_the_module(batch):
    model = made("bounded")
    familiar, strange = contexts(batch, topic=2.0), contexts(batch, seed=99)
    model.fit_familiar(familiar.flatten(0, 1))
    for x, trusted in ((familiar, batch), (strange, 0), (torch.cat([strange, familiar]), batch)):
        with torch.inference_mode():
            expected, trust = model(x), model.trust(x.mean(1))
        assert int((trust > 0).sum()) == trusted
        assert np.abs(fold(model).arrays(x.numpy()) - expected.numpy()).max() < 1e-5
        for row in range(len(x)):
            assert np.abs(fold(model).arrays(x[row : row + 1].numpy()) - expected[row].numpy()).max() < 1e-5


@pytest.mark.parametrize("writeable", [True, False])
def test_a_tensor_shares_memory_only_with_an_array_that_may_be_written(writeable):
    array = np.arange(6, dtype=np.float32)
    array.flags.writeable = writeable
    tensor = shared(array)
    np.testing.assert_array_equal(tensor.numpy(), array)
    assert np.shares_memory(tensor.numpy(), array) is writeable


@pytest.mark.parametrize("shape", [(5, 768), (1, 4, 768), (2, 5, 767)])
def test_the_folded_form_refuses_other_shapes(shape):
    with pytest.raises(ShapeError, match="give"):
        fold(made("bounded")).arrays(np.zeros(shape, np.float32))


def test_the_folded_form_of_a_fallback_is_the_module_itself():
    model = made("gru")
    x = contexts(3)
    with torch.inference_mode():
        torch.testing.assert_close(fold(model)(x), model(x))


def test_folding_copies_the_weights():
    model = made("bounded")
    predict = fold(model)
    before = predict(contexts(2))
    stir(model, seed=9)
    torch.testing.assert_close(predict(contexts(2)), before)


def test_the_published_layout_does_not_see_the_order():
    model = made("published")
    x = contexts(3)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), model(x.flip(1)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", ["card", "bounded"])
def test_the_layouts_of_the_card_see_the_order(layout):
    model = made(layout)
    with torch.inference_mode():
        assert (model(contexts(3)) - model(contexts(3).flip(1))).abs().max() > 1e-4


def test_an_unfamiliar_context_is_answered_by_a_mixture_of_its_vectors():
    model = made("bounded")
    x = contexts(6)  # noise has about an eighth of its energy in 90 of 768 dimensions
    assert model.trust(x.mean(1)).max() == 0
    with torch.inference_mode():
        out = model(x)
    within = torch.linalg.lstsq(x.transpose(1, 2), out.unsqueeze(2)).solution
    torch.testing.assert_close((x.transpose(1, 2) @ within).squeeze(2), out, atol=1e-4, rtol=0)


def test_an_unfamiliar_answer_turns_with_the_vectors():
    model = made("bounded")
    turn = torch.linalg.qr(torch.randn(768, 768))[0]
    x = contexts(4)
    with torch.inference_mode():
        torch.testing.assert_close(model(x) @ turn, model(x @ turn), atol=1e-5, rtol=0)


def test_a_familiar_context_is_trusted_and_its_residual_is_limited():
    model = made("bounded", residual_max=0.3)
    x = contexts(8, topic=4.0)
    model.fit_familiar(x.flatten(0, 1))
    assert model.trust(x.mean(1)).min() == 1
    assert limit(torch.randn(8, 768) * 100, model.config.residual_max).norm(dim=1).max() <= 0.3 + 1e-6


def test_a_stacked_answer_to_an_unfamiliar_context_is_its_first_stages():
    model = made("stacked")
    x = contexts(6)
    assert model.first.trust(x.mean(1)).max() == 0
    with torch.inference_mode():
        torch.testing.assert_close(model(x), model.first(x), atol=1e-6, rtol=0)


def test_the_second_stage_corrects_familiar_contexts_by_its_share():
    x = contexts(8, topic=4.0)
    with torch.inference_mode():
        answers = []
        for share in (0.0, 0.5, 1.0):
            model = made("stacked", residual_share=share)
            model.first.fit_familiar(x.flatten(0, 1))
            answers.append(model(x))
        first = model.first(x)
    torch.testing.assert_close(answers[0], first, atol=1e-6, rtol=0)
    moved = [(answer - first).norm(dim=1) for answer in answers[1:]]
    assert (moved[0] > 1e-3).all()
    assert (moved[1] > moved[0]).all()


def test_a_stacked_network_in_training_leaves_its_first_stage_alone():
    model = made("stacked", dropout=0.5, distrust=0.5).train()
    assert model.training
    assert not model.first.training
    assert not any(parameter.requires_grad for parameter in model.first.parameters())


def test_fitting_the_familiar_subspace_gives_orthonormal_rows():
    model = build(ModelConfig(layout="bounded"))
    model.fit_familiar(contexts(100).flatten(0, 1))
    torch.testing.assert_close(model.familiar @ model.familiar.T, torch.eye(90), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "values",
    [
        {"layout": "lstm"},
        {"layout": "card", "dropout": 1.0},
        {"layout": "bounded", "residual_max": 0.0},
        {"layout": "stacked", "stage_max": 3.0},
        {"layout": "stacked", "residual_share": 1.5},
        {"layout": "bounded", "familiar_low": 0.8},
    ],
)
def test_impossible_model_settings_are_refused(values):
    with pytest.raises(ConfigError):
        ModelConfig(**values)


@pytest.mark.parametrize(
    "values",
    [{"epochs": 0}, {"ema_decay": 1.5}, {"weight_decay": -1.0}, {"loss": "l1"}, {"schedule": "x"}],
)
def test_impossible_training_settings_are_refused(values):
    with pytest.raises(ConfigError):
        TrainConfig(**values)


def test_a_config_with_unknown_fields_is_refused():
    with pytest.raises(ConfigError, match="unexpected keyword argument 'width'"):
        model_config_from_dict({"layout": "card", "width": 3})
    with pytest.raises(ConfigError, match=r"missing .* 'layout'"):
        model_config_from_dict({})


def test_numpy_contexts_are_not_changed_by_a_prediction():
    x = contexts(1).numpy()
    before = x.copy()
    fold(build(ModelConfig(layout="bounded")))(x)
    np.testing.assert_array_equal(x, before)
