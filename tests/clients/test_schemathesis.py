"""schemathesis, which makes requests out of /openapi.json: valid ones, near ones, and such as no client would send."""

from server_kit import Command

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
# Answers are short: what is asked matters here.
SHORT = ["--context", "128", "--kv-type", "f32", "--threads", "1"]


def test_no_request_makes_the_server_fail(program, nano_artifact):
    with Command(str(nano_artifact("f32")), "--engine", "llamacpp", *SHORT) as command:
        url = f"{command.client.base_url}/openapi.json"
        words = ["--checks", CHECKS, "--max-examples", "60", "--seed", "1", "--request-timeout", "30"]
        printed = program("schemathesis", "-m", "schemathesis.cli", "run", url, *words, seconds=280)
        assert command.client.get("/health").status_code == 200
    assert "No issues found" in printed, printed
