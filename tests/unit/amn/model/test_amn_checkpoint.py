"""Checkpoints: what is refused, and with which words."""

from __future__ import annotations

import json

import pytest
import torch
from amn_helpers import ENCODER, contexts, made
from safetensors.torch import load_file, save_file

from amn.config import ModelConfig
from amn.errors import CheckpointError
from amn.evaluation.importing import import_published
from amn.manifest import MANIFEST, files_sha256
from amn.model import checkpoint
from amn.model.layouts import build


@pytest.fixture
def folder(tmp_path):
    model = made("card")
    checkpoint.save(
        model,
        tmp_path / "amn",
        name="amn",
        encoder_id=ENCODER,
        records={"metrics": {"n": 1}},
    )
    return tmp_path / "amn"


def edit_manifest(folder, **changes):
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_saved_model_comes_back_with_the_same_answers(folder):
    loaded = checkpoint.load(folder)
    expected = made("card")
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(contexts(3)), expected(contexts(3)))
    assert not loaded.model.training
    assert loaded.manifest.metrics == {"n": 1}
    assert loaded.manifest.model_id == f"amn@{loaded.manifest.sha256[:12]}"


def test_a_link_to_a_checkpoint_is_followed(folder):
    link = folder.parent / "production_model"
    link.symlink_to("amn")
    assert checkpoint.load(link).path == folder.resolve()


def test_sixteen_bit_storage_halves_the_file_and_answers_in_float32(tmp_path):
    model = made("card")
    manifest = checkpoint.save(model, tmp_path, name="amn", encoder_id=ENCODER, records={}, storage="float16")
    assert manifest.storage == "float16"
    assert (tmp_path / checkpoint.WEIGHTS_FILE).stat().st_size < 3_000_000
    assert checkpoint.load(tmp_path).model.positions.dtype == torch.float32


def test_an_unknown_storage_type_is_refused(tmp_path):
    model = build(ModelConfig(layout="card"))
    with pytest.raises(CheckpointError, match="choose one of float32, float16"):
        checkpoint.save(model, tmp_path, name="amn", encoder_id=ENCODER, records={}, storage="int4")


def test_tampered_weights_are_refused(folder):
    path = folder / checkpoint.WEIGHTS_FILE
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="altered or cut short"):
        checkpoint.load(folder)


def test_truncated_weights_are_refused(folder):
    path = folder / checkpoint.WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="altered or cut short"):
        checkpoint.load(folder)


def test_damaged_weights_with_a_fitting_hash_are_refused(folder):
    path = folder / checkpoint.WEIGHTS_FILE
    path.write_bytes(b"no tensors at all")
    edit_manifest(folder, sha256=files_sha256([path]))
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(folder)


def test_a_wrong_parameter_count_is_refused(folder):
    edit_manifest(folder, parameters=1_472_767)
    with pytest.raises(CheckpointError, match="1,472,767"):
        checkpoint.load(folder)


def test_golden_outputs_of_another_network_are_refused(folder):
    path = folder / checkpoint.GOLDEN_FILE
    golden = load_file(path)
    golden["outputs"][0, 0] += 2e-5
    save_file(golden, path)
    edit_manifest(folder, golden_sha256=files_sha256([path]))
    with pytest.raises(CheckpointError, match="golden outputs differ"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": torch.zeros(())},
        {"inputs": torch.zeros(4, 5, 7)},
        {"inputs": torch.zeros(4, 5, 768, dtype=torch.int8)},
        {"outputs": torch.zeros(())},
        {"outputs": torch.zeros(3, 768)},
        {"inputs": torch.zeros(0, 5, 768), "outputs": torch.zeros(0, 768)},
    ],
)
def test_golden_vectors_of_other_shapes_or_types_are_refused(folder, change):
    path = folder / checkpoint.GOLDEN_FILE
    save_file(load_file(path) | change, path)
    edit_manifest(folder, golden_sha256=files_sha256([path]))
    with pytest.raises(CheckpointError, match="incomplete"):
        checkpoint.load(folder)


def test_golden_vectors_that_are_missing_are_refused(folder):
    path = folder / checkpoint.GOLDEN_FILE
    save_file({"inputs": torch.zeros(0, 5, 768)}, path)
    edit_manifest(folder, golden_sha256=files_sha256([path]))
    with pytest.raises(CheckpointError, match="incomplete"):
        checkpoint.load(folder)


def test_keys_of_another_layout_are_refused(folder):
    config = ModelConfig(layout="published").to_dict()
    edit_manifest(folder, layout="published", config=config, parameters=1_510_912)
    with pytest.raises(CheckpointError, match=r"does not fit layout published: .*Missing key"):
        checkpoint.load(folder)


def test_weights_that_are_not_finite_are_refused(folder):
    model = build(ModelConfig(layout="card"))
    weights = dict(model.state_dict())
    weights["positions"] = torch.full((5, 768), float("nan"))
    with pytest.raises(CheckpointError, match="NaN"):
        checkpoint.load_weights(model, weights, origin="here")


def test_weights_of_another_shape_are_refused():
    model = build(ModelConfig(layout="card"))
    weights = dict(model.state_dict()) | {"positions": torch.zeros(4, 768)}
    with pytest.raises(CheckpointError, match=r"size mismatch for positions: .*\[4, 768\]"):
        checkpoint.load_weights(model, weights, origin="here")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not a JSON object"),
        ("[]", "not a JSON object"),
        ('{"version": 99}', "version 99"),
        ('{"version": 1}', "missing"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused(folder, text, words):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match=words):
        checkpoint.load(folder)


def test_unknown_layouts_and_settings_in_a_manifest_are_refused(folder):
    edit_manifest(folder, config={"layout": "card", "colour": "red"})
    with pytest.raises(CheckpointError, match="colour"):
        checkpoint.load(folder)
    edit_manifest(folder, layout="lstm")
    with pytest.raises(CheckpointError, match="unknown layout 'lstm'"):
        checkpoint.load(folder)


def test_a_folder_without_files_is_refused(tmp_path, folder):
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.load(tmp_path / "nothing")
    (folder / checkpoint.GOLDEN_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"golden\.safetensors does not exist"):
        checkpoint.load(folder)


def published_file(path, **changes):
    model = made("published")
    values = {
        "epoch": 18,
        "model_type": "amn",
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": {"state": {}, "param_groups": []},
        "val_loss": 0.00114,
        "val_cosine": 0.5604,
        "model_config": {"input_dim": 768, "d_model": 256, "hidden_dim": 512},
        "args": {"lr": 5e-4},
    }
    torch.save(values | changes, path)
    return path


def test_published_keys_are_taken_as_they_are_and_golden_vectors_recorded(tmp_path):
    path = published_file(tmp_path / "best_model.pt")
    manifest = import_published(path, tmp_path / "out", encoder_id=ENCODER)
    loaded = checkpoint.load(tmp_path / "out")
    assert manifest.parameters == 1_510_912
    assert manifest.training["val_cosine"] == 0.5604
    assert "does not prove the class" in loaded.manifest.notes[0]
    with torch.inference_mode():
        expected = made("published")(contexts(2))
        torch.testing.assert_close(loaded.model(contexts(2)), expected)


@pytest.mark.parametrize("kind", ["gru", "transformer"])
def test_published_fallbacks_are_taken_as_well(tmp_path, kind):
    state = build(ModelConfig(layout=kind)).state_dict()
    path = published_file(tmp_path / "x.pt", model_type=kind, model_state_dict=state)
    assert import_published(path, tmp_path / "out", encoder_id=ENCODER).layout == kind


def test_published_files_with_missing_or_unknown_keys_are_refused(tmp_path):
    state = build(ModelConfig(layout="published")).state_dict()
    state.pop("query_encoder.bias")
    path = published_file(tmp_path / "x.pt", model_state_dict=state)
    with pytest.raises(CheckpointError, match=r"Missing key.*query_encoder\.bias"):
        import_published(path, tmp_path / "out", encoder_id=ENCODER)
    state = build(ModelConfig(layout="published")).state_dict() | {"lstm.bias": torch.zeros(1)}
    path = published_file(tmp_path / "y.pt", model_state_dict=state)
    with pytest.raises(CheckpointError, match=r"Unexpected key.*lstm\.bias"):
        import_published(path, tmp_path / "out", encoder_id=ENCODER)


def test_published_files_that_need_pickle_are_refused(tmp_path):
    path = published_file(tmp_path / "x.pt", args=Pickled())
    with pytest.raises(CheckpointError, match="not a plain tensor file"):
        import_published(path, tmp_path, encoder_id=ENCODER)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="not a plain tensor file"):
        import_published(path, tmp_path, encoder_id=ENCODER)


class Pickled:
    """An object that only pickle can restore."""


@pytest.mark.parametrize("changes", [{"model_type": "lstm"}, {"model_state_dict": 3}])
def test_published_files_of_another_form_are_refused(tmp_path, changes):
    path = published_file(tmp_path / "x.pt", **changes)
    with pytest.raises(CheckpointError, match=r"model_type|model_state_dict"):
        import_published(path, tmp_path / "out", encoder_id=ENCODER)


def test_a_published_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing\.pt does not exist"):
        import_published(tmp_path / "nothing.pt", tmp_path, encoder_id=ENCODER)
