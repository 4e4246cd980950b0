"""The configurations: what they derive, their way through JSON, and what they refuse."""

import json

import pytest

from pbe_model import CONFIGS, TINY, V1, PBEConfig
from pbe_model.config import EditDefaults

from .small import SMALL, SMALL_ALL, SMALL_V


@pytest.mark.parametrize("config", [V1, TINY, SMALL, SMALL_ALL, SMALL_V])
def test_json_round_trip(config):
    assert PBEConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_partial_dictionary_takes_the_defaults_for_the_rest():
    config = PBEConfig.from_dict({"tokens": "all", "unet": {"context_dim": 8}})
    assert config.tokens == "all"
    assert config.unet.context_dim == 8
    assert config.unet.model_channels == V1.unet.model_channels


def test_size_multiples():
    assert V1.vae.downscale == 8
    assert V1.size_multiple == 64
    assert TINY.vae.downscale == 2
    assert TINY.size_multiple == 16
    assert all(c.resolution % c.size_multiple == 0 for c in CONFIGS.values())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"unets": {}}, ["unets", "PBEConfig", "'unet'"]),
        ({"unet": {"width": 3}}, ["width", "UNetConfig", "model_channels"]),
        ({"tokens": "some"}, ["some", "class", "all"]),
        ({"schedule": {"prediction": "x0"}}, ["x0", "epsilon", "v"]),
        ({"schedule": {"prediction": ["v"]}}, ["('v',)", "epsilon"]),
        ({"schedule": {"zero_snr": True}}, ["zero_snr", "ScheduleConfig", "zero_terminal_snr"]),
    ],
)
def test_unknown_entries_are_named_with_those_that_exist(values, words):
    with pytest.raises(ValueError) as caught:
        PBEConfig.from_dict(values)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_schedule_from_before_it_named_the_prediction_predicts_the_noise():
    values = {"num_timesteps": 1000, "linear_start": 0.00085, "linear_end": 0.012}
    assert PBEConfig.from_dict({"schedule": values}) == V1


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"zero_terminal_snr": True}, "epsilon.* tells nothing .* use prediction 'v'"),
        ({"prediction": "v", "zero_terminal_snr": 1}, "zero_terminal_snr is 1; give true or false"),
        ({"prediction": "v", "zero_terminal_snr": True, "num_timesteps": 1}, "at least 2"),
        ({"prediction": "v", "num_timesteps": True}, "num_timesteps is True; give whole numbers"),
    ],
)
def test_schedules_that_cannot_be_are_refused_in_a_sentence(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        PBEConfig.from_dict({"schedule": values})


@pytest.mark.parametrize(
    ("defaults", "words"),
    [
        ({"steps": 0}, "steps is 0; give whole numbers"),
        ({"similarity": "much"}, "similarity is much; give a number above 0"),
        ({"sampler": 3}, "sampler is 3; give the name of one"),
        ({"colour": 1}, "unknown configuration entries"),
    ],
)
def test_defaults_that_cannot_be_are_refused_in_a_sentence(defaults, words):
    with pytest.raises(ValueError, match=words):
        PBEConfig.from_dict({"defaults": defaults})


def test_usual_defaults_are_not_written_as_earlier_versions_do_not_know_them():
    assert "defaults" not in PBEConfig().to_dict()
    own = PBEConfig(defaults=EditDefaults(similarity=2.0))
    assert PBEConfig.from_dict(own.to_dict()) == own
