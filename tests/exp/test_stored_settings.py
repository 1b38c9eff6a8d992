"""What args.json says of the data, beside the architecture, is held to the limits of its flags."""

import pytest
from exp_helpers import assert_setting_refused

from exp.options import stored_settings


@pytest.mark.parametrize("name, value, wanted", [
    ("seq_len", None, "whole number"), ("seq_len", 10**30, "2147483648"), ("seq_len", "672", "whole number"),
    ("seq_len", True, "whole number"), ("data", "Other", "Univariate"), ("data", ["Other"], "Univariate"),
    ("d_model", 0, "from 1"),
])
def test_unusable_settings_are_named_with_what_they_must_be(tmp_path, name, value, wanted):
    assert_setting_refused(stored_settings, tmp_path, name, value, wanted)


def test_a_bare_checkpoint_has_no_settings(tmp_path):
    assert stored_settings(tmp_path / "checkpoint.pth") == {}
