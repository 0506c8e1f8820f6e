"""Errors say what kind they are, and so what a command or a server answers."""

from __future__ import annotations

import pytest

from foveal import errors
from foveal.store import errors as store_errors
from foveal.store.errors import NameExists, NoSuchToken


def test_every_code_has_a_status() -> None:
    found = [
        each for each in vars(store_errors).values() if isinstance(each, type) and issubclass(each, errors.FovealError)
    ]
    assert len(found) > 10 and all(each.code in errors.STATUS for each in found)


@pytest.mark.parametrize(("error", "status"), [(NameExists("a"), 409), (NoSuchToken("at 9"), 400)])
def test_what_the_caller_did_wrong_is_no_failure_of_the_server(error: errors.FovealError, status: int) -> None:
    assert error.status == status
