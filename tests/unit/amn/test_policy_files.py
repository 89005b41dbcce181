"""Policy files: what is read, what is refused, and what the hash covers."""

from __future__ import annotations

import pytest

from amn.errors import ConfigError
from amn.policy import PRESETS_FOLDER, load_policy, parse_policy, presets

LEAST = 'format = 1\nname = "x"\n'


def test_the_shipped_policies_are_read_and_named_as_their_files():
    assert presets() == ["bankless", "calibrated", "card", "upstream"]
    assert [load_policy(name).name for name in presets()] == presets()


def test_the_card_is_the_card():
    card = load_policy("card")
    assert set(card.hard.lanes) == {"sci-fact", "math-derivation", "med-guideline", "policy/procedure"}
    assert (card.hard.tokens_max, card.confidence.below, card.margin.below) == (384, 0.70, 0.02)
    assert (card.budget.rate, card.budget.window_s, card.answer.rule) == (0.20, 3600, "last")
    assert not card.needs_calibration


def test_a_policy_may_be_a_file(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text((PRESETS_FOLDER / "card.toml").read_text().replace("0.70", "0.60"))
    own = load_policy(str(path))
    assert own.confidence.below == 0.60
    assert own.policy_id() != load_policy("card").policy_id()


def test_a_rule_without_its_section_does_not_exist():
    policy = parse_policy(LEAST, "x")
    assert (policy.confidence, policy.margin, policy.gain, policy.hard.lanes) == (None, None, None, ())
    assert not policy.needs_bank
    assert (policy.confidence_method, policy.margin_method) == ("none", "none")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = 1", "format is None"),
        ("format = 2", "format is 2; this version reads format = 1"),
        ("format = 1", "name is missing"),
        ("format = ", "not TOML"),
        ("format = " + "9" * 5_000, "not TOML"),
        ("format = " + "[" * 10_000, "not TOML"),
        (LEAST + "hard = 3", r"hard is 3; make it a section, \[hard\]"),
        (LEAST + "[confidense]\nbelow = 1", "confidense is not known; known here: name"),
        (LEAST + "[confidence]\nbelov = 1", "confidence.belov is not known; known here: below"),
        (LEAST + "[confidence]\n", "confidence.below is missing"),
        (LEAST + '[confidence]\nbelow = "a"', "confidence.below is 'a'; use float"),
        (LEAST + "[confidence]\nbelow = true", "confidence.below is True; use float"),
        (LEAST + "[confidence]\nbelow = 70", "confidence.below is 70.0; use a cosine"),
        (LEAST + '[confidence]\nbelow = 0.7\nmethod = "top2"', "confidence.method is 'top2'"),
        (LEAST + "[hard]\nlanes = [1]", r"hard.lanes is \[1\]; use a list of text"),
        (LEAST + "[hard]\ntokens_max = 0", "hard.tokens_max is 0"),
        (LEAST + "[budget]\nrate = 1.5", "budget.rate is 1.5"),
        (LEAST + "[budget]\nrate = 0.1\nreserve = 0.2", "budget.reserve is 0.2"),
        (LEAST + '[budget]\nmode = "on"', "budget.mode is 'on'; use 'observe', 'enforce'"),
        (LEAST + '[chain]\ntiers = ["secondary"]', r"chain.tiers is \['secondary'\]"),
        (LEAST + '[answer]\nrule = "best"', "answer.rule is 'best'"),
    ],
)
def test_a_bad_policy_is_refused_with_the_place_and_what_to_do(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_policy(text, "own.toml")


def test_an_unknown_name_lists_the_presets():
    with pytest.raises(ConfigError, match="bankless, calibrated, card, upstream"):
        load_policy("budgeted")


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "own.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"own\.toml cannot be read: .*; give a TOML file in UTF-8"):
        load_policy(str(tmp_path / "own.toml"))


def test_the_hash_covers_every_value_and_the_calibration_where_it_counts():
    calibrated, card = load_policy("calibrated"), load_policy("card")
    assert calibrated.policy_id("gain@1") != calibrated.policy_id("gain@2")
    assert card.policy_id("gain@1") == card.policy_id("gain@2") == load_policy("card").policy_id()
    seen = {card.policy_id()}
    text = (PRESETS_FOLDER / "card.toml").read_text()
    changes = [("version = 2", "version = 3"), ("0.70", "0.71"), ("0.02", "0.03"), ("384", "385")]
    changes += [("0.20", "0.21"), ("3600", "3601"), ("observe", "enforce"), ('"sci-fact", ', "")]
    changes += [("top1", "mean_top_k"), ("distinct", "raw"), ('"last"', '"blend"'), ('["accuracy"]', "[]")]
    for old, new in changes:
        assert text.count(old) == 1
        seen.add(parse_policy(text.replace(old, new), "x").policy_id())
    assert len(seen) == len(changes) + 1
