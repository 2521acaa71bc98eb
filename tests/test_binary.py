"""Binary data: its shapes, a learnable rule, and the same content everywhere."""

import numpy as np
import torch

from trainer.config.schema import BinaryConfig
from trainer.data.binary import binary
from trainer.data.build import load_data


def test_shapes_and_types() -> None:
    data = load_data(BinaryConfig())
    assert (len(data.training), len(data.validation)) == (1000, 200)
    assert data.vocabulary is None
    samples = np.array([5, 0, 999])
    inputs, targets = data.training.inputs(samples), data.training.targets(samples)
    assert (inputs.shape, inputs.dtype) == ((3, 10), torch.float32)
    assert (targets.shape, targets.dtype) == ((3,), torch.float32)
    assert inputs.is_contiguous()
    assert set(data.training.targets(np.arange(1000)).tolist()) == {0.0, 1.0}


def test_a_sample_does_not_depend_on_its_batch() -> None:
    training = binary(BinaryConfig()).training
    assert torch.equal(training.inputs(np.array([3, 7, 3]))[2], training.inputs(np.array([3]))[0])


def test_features_are_normal_and_labels_balanced() -> None:
    training = binary(BinaryConfig(samples=20_000)).training
    features = training.inputs(np.arange(20_000))
    assert features.mean().abs() < 0.01
    assert abs(features.std() - 1) < 0.01
    assert abs(training.targets(np.arange(20_000)).mean() - 0.5) < 0.02


def test_a_plane_separates_most_but_not_all() -> None:
    training = binary(BinaryConfig(samples=5000)).training
    features, labels = training.inputs(np.arange(5000)), training.targets(np.arange(5000))
    plane = torch.linalg.lstsq(features, (2 * labels - 1)[:, None]).solution
    accuracy = ((features @ plane)[:, 0] > 0).eq(labels == 1).float().mean()
    assert 0.9 < accuracy < 0.98


def test_validation_has_other_samples() -> None:
    data = binary(BinaryConfig(samples=500, validation=500))
    training, validation = data.training.inputs(np.arange(500)), data.validation.inputs(np.arange(500))
    assert not set(map(tuple, training.tolist())) & set(map(tuple, validation.tolist()))


def test_fingerprint_depends_on_content() -> None:
    first = binary(BinaryConfig()).fingerprint
    assert binary(BinaryConfig()).fingerprint == first
    others = [
        binary(BinaryConfig(seed=1)).fingerprint,
        binary(BinaryConfig(samples=1100, validation=100)).fingerprint,
        binary(BinaryConfig(features=9)).fingerprint,
    ]
    assert len({first, *others}) == 4
