from pydantic import TypeAdapter, ValidationError

from posttrain.serving.fields import AskedChat
from posttrain.serving.refused import Refusal, of_validation


def test_openais_shape():
    refusal = Refusal(429, "the queue is full", retry=3)
    assert refusal.body() == {"error": {"message": "the queue is full", "type": "rate_limit_error", "param": None, "code": None}}  # fmt: skip
    assert refusal.headers() == {"Retry-After": "3"} and Refusal(401, "x").headers() == {"WWW-Authenticate": "Bearer"}
    assert [Refusal(status, "x").body()["error"]["type"] for status in (400, 401, 404, 413, 422, 500, 503)] == [
        "invalid_request_error", "authentication_error", "not_found_error", "invalid_request_error", "invalid_request_error",
        "server_error", "server_error",
    ]  # fmt: skip


def problems(body):
    try:
        TypeAdapter(AskedChat).validate_python(body)
    except ValidationError as error:
        return [one | {"loc": ("body", *one["loc"])} for one in error.errors()]


def test_the_first_problem_in_words():
    one = of_validation(problems({"messages": []}))
    assert (one.status, one.param) == (422, "messages") and one.message.startswith(
        "messages: List should have at least 1"
    )
    two = of_validation(problems({"best_of": 2, "messages": []}))
    assert two.message.endswith("(and 1 more problems)")
    own = of_validation(problems({"messages": [{"role": "user", "content": "a"}], "top_p": 0.5}))
    assert own.message == "top_p: only 1 is possible: answers are drawn from the model's whole, unchanged distribution"


def test_what_is_not_json():
    error = {
        "type": "json_invalid",
        "loc": ("body", 1),
        "msg": "JSON decode error",
        "ctx": {"error": "Expecting value"},
    }
    assert (of_validation([error]).status, of_validation([error]).message) == (
        400,
        "the body is not JSON: Expecting value",
    )
