"""Run configuration: profile, then file, then given values; TOML there and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssah_lens.config import PROFILES, StudyConfig, study_config, to_toml
from ssah_lens.errors import BadInput


@pytest.fixture
def toml(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_default_is_quick():
    assert study_config() == StudyConfig() and study_config().profile == "quick"


def test_a_profile_changes_what_it_names_and_nothing_else():
    got = study_config(profile="standard")
    assert got.measure.harmful == "all" and got.freeze.seeds == 3 and got.units.calibration == 128
    assert got.freeze.steps == StudyConfig().freeze.steps and got.align == StudyConfig().align


def test_file_over_profile_and_values_over_file(toml):
    path = toml('profile = "standard"\nseed = 3\nmodel = "a"\n[freeze]\nsteps = 5\n')
    got = study_config(path, seed=9, model=None)
    assert (got.profile, got.seed, got.model) == ("standard", 9, "a")
    assert (got.freeze.steps, got.freeze.seeds) == (5, 3)  # the section is merged, not replaced


def test_a_given_profile_wins_over_the_files(toml):
    got = study_config(toml('profile = "standard"\n'), profile="full")
    assert got.profile == "full" and got.freeze.seeds == 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sed = 1", "sed"),
        ("[freeze]\nstep = 1", "freeze.step"),
        ("[freeze]\nsteps = 0", "freeze.steps"),
        ("[freeze]\ntop_cu = 1.5", "freeze.top_cu"),
        ("[align]\nlr = -1.0", "align.lr"),
        ('[measure]\nharmful = "many"', "measure.harmful"),
        ("measure = 5", "measure"),
        ('profile = "slow"', "quick, standard, full"),
        ("profile = 3", "quick, standard, full"),
        ('profile = ["quick"]', "quick, standard, full"),
        ('[profile]\nname = "quick"', "quick, standard, full"),
        ("seed = ", "not valid TOML"),
        ("seed = 1\nseed = 2", "not valid TOML"),
    ],
)
def test_bad_files_say_where(toml, text: str, says: str):
    with pytest.raises(BadInput, match=says):
        study_config(toml(text))


def test_an_error_is_one_line(toml):
    with pytest.raises(BadInput) as e:
        study_config(toml("[freeze]\nsteps = 0"))
    assert "\n" not in str(e.value) and "got 0" in str(e.value)


def test_files_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(BadInput, match="cannot be read"):
        study_config(tmp_path / "no.toml")
    with pytest.raises(BadInput, match="cannot be read"):
        study_config(tmp_path)
    (tmp_path / "latin.toml").write_bytes('model = "\xe9"'.encode("latin-1"))
    with pytest.raises(BadInput, match="not valid TOML"):
        study_config(tmp_path / "latin.toml")


def test_a_configuration_cannot_be_changed():
    from pydantic import ValidationError

    with pytest.raises(ValidationError):
        StudyConfig().seed = 2


@pytest.mark.parametrize("profile", PROFILES)
def test_toml_round_trip_of_each_profile(toml, profile: str):
    config = study_config(profile=profile, model="x/y", unaligned="z", seed=4)
    assert study_config(toml(to_toml(config))) == config


def test_toml_round_trip_of_a_size_that_means_all(toml):
    config = study_config(measure={"harmful": "all"})
    assert config.measure.harmful == "all"
    assert study_config(toml(to_toml(config))) == config
