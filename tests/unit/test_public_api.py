"""The library's public names."""

from __future__ import annotations

import pytest

import lmi_build


def test_every_public_name_is_there() -> None:
    """`__all__` is exact: each name can be got, and there is no other."""
    assert sorted(lmi_build.__all__) == list(lmi_build.__all__)
    assert {name for names in lmi_build._HOMES.values() for name in names} == {
        *lmi_build.__all__
    }
    for name in lmi_build.__all__:
        assert getattr(lmi_build, name) is not None


def test_other_names_are_not() -> None:
    """An unknown name is an AttributeError, as for any module."""
    with pytest.raises(AttributeError, match="no attribute 'compile_everything'"):
        lmi_build.compile_everything  # noqa: B018
