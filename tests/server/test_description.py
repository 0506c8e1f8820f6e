"""/openapi.json is true: what it describes is what comes, whatever is sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from server_support import Running, serving

pytestmark = pytest.mark.slow

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]


EXAMPLES = 12
"""Requests for each operation."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    limits = {"output_tokens": 2, "most_output_tokens": 4, "context_length": 2048, "save_prompts": False}
    with serving(tmp_path_factory.mktemp("server"), **limits) as running:
        yield running


def test_what_is_described_is_what_comes(server: Running) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    for found in schema.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy())
        @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
        def check(case: Any) -> None:
            case.validate_response(case.call(timeout=60), checks=CHECKS)

        check()


def test_no_validation_error_of_the_framework_is_described(server: Running) -> None:
    told = httpx.get(f"{server.url}/openapi.json", timeout=60).json()
    assert "HTTPValidationError" not in told["components"]["schemas"]
    assert all("422" not in operation["responses"] for path in told["paths"].values() for operation in path.values())
    assert {"/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/memories", "/tokenize"} <= set(told["paths"])
