"""The server as OpenAI's own client meets it."""

import base64
import json
import math

import httpx2 as httpx
import numpy as np
import openai
import pytest
from serving import chatting_model, encoder, running, settled


@pytest.fixture(scope="module")
def server():
    with running() as (url, service):
        yield url, service


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0)


def test_a_completion_is_the_models_own_text(client):
    answer = client.completions.create(
        model="tiny", prompt="once upon", max_tokens=20, temperature=0
    )
    assert answer.choices[0].text == chatting_model().generate_text("once upon", 20, 0.0)
    assert answer.choices[0].finish_reason == "length"
    twice = client.completions.create(model="tiny", prompt=["once", "once"], max_tokens=3, n=2)
    assert (twice.usage.prompt_tokens, twice.usage.completion_tokens) == (10, 12)
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (10, 20, 30)


def test_one_seed_gives_one_text_streamed_or_not(client):
    ask = {"model": "tiny", "prompt": ["abc", "the end"], "n": 2, "max_tokens": 25, "seed": 7}
    whole = client.completions.create(**ask)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in whole.choices}) == 4
    texts, ends = [""] * 4, [None] * 4
    for chunk in client.completions.create(**ask, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        ends[choice.index] = choice.finish_reason or ends[choice.index]
    assert texts == [choice.text for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert client.completions.create(**ask).choices == whole.choices
    fresh = client.completions.create(**{**ask, "seed": None})
    again = client.completions.create(**{**ask, "seed": fresh.seed})
    assert [c.text for c in again.choices] == [c.text for c in fresh.choices]


def test_the_fingerprint_says_the_batch_size_that_can_be_asked_for(client):
    ask = {"model": "tiny", "prompt": "abc", "max_tokens": 8, "seed": 3}
    small = client.completions.create(**ask, extra_body={"batch_size": 1})
    large = client.completions.create(**ask, extra_body={"batch_size": 4})
    assert small.system_fingerprint.endswith("-b1")
    assert large.system_fingerprint.endswith("-b4")


def test_prompts_of_ids_and_echo(client):
    texts = [
        client.completions.create(
            model="tiny", prompt=prompt, max_tokens=5, temperature=0, echo=True
        )
        .choices[0]
        .text
        for prompt in ("xyz", chatting_model().encode("xyz"), [chatting_model().encode("xyz")])
    ]
    assert len(set(texts)) == 1 and texts[0].startswith("xyz")


def test_a_conversation_goes_through_the_template(client):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
    ]
    answer = client.chat.completions.create(
        model="tiny", messages=messages, max_completion_tokens=15, temperature=0
    )
    plain = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    wanted = chatting_model().chat(plain, 15, 0.0)
    assert answer.choices[0].message.content == wanted
    assert answer.choices[0].message.role == "assistant"
    back = [*messages, answer.choices[0].message.model_dump(), {"role": "user", "content": "b"}]
    more = client.chat.completions.create(model="tiny", messages=back, max_tokens=2, temperature=0)
    assert more.usage.prompt_tokens > answer.usage.total_tokens
    pieces = client.chat.completions.create(
        model="tiny",
        messages=plain,
        max_tokens=15,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(pieces)
    text = "".join(c.choices[0].delta.content for c in chunks if c.choices)
    assert text == wanted
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].usage.completion_tokens == 15


def test_a_text_may_fill_the_context_where_nobody_says_how_long(client):
    answer = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "a"}], seed=1
    )
    assert answer.usage.total_tokens <= 192
    assert answer.choices[0].finish_reason in ("length", "stop")


def test_log_probabilities(client):
    ask = {"model": "tiny", "prompt": "abc", "max_tokens": 6, "seed": 5}
    told = client.completions.create(**ask, logprobs=2).choices[0]
    assert "".join(told.logprobs.tokens) != "" and len(told.logprobs.tokens) == 6
    assert all(x < 0 for x in told.logprobs.token_logprobs)
    assert all(len(top) <= 2 for top in told.logprobs.top_logprobs)
    chat = (
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "abc"}],
            max_tokens=4,
            logprobs=True,
            top_logprobs=3,
            temperature=0,
        )
        .choices[0]
        .logprobs
    )
    for entry in chat.content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == entry.top_logprobs[0].logprob  # greedy
        assert math.exp(entry.logprob) < 1


def test_options_reach_the_sampler(client):
    biased = client.completions.create(
        model="tiny", prompt="abc", max_tokens=6, logit_bias={"122": 100}
    )
    assert biased.choices[0].text == "zzzzzz"
    counted = client.completions.create(
        model="tiny",
        prompt="abc",
        max_tokens=4,
        temperature=0,
        logit_bias={"122": 30, "121": 29.5},
        frequency_penalty=1,
    )
    assert sorted(counted.choices[0].text) == ["y", "y", "z", "z"]
    stopped = client.completions.create(
        model="tiny", prompt="abc", max_tokens=9, logit_bias={"122": 100}, stop=["zzz"]
    )
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("", "stop")
    more = {"top_k": 1, "min_p": 0.5, "typical_p": 0.9, "repetition_penalty": 1.1}
    one = client.completions.create(model="tiny", prompt="abc", max_tokens=9, extra_body=more)
    wanted = chatting_model().generate_text(
        "abc", 9, top_k=1, min_p=0.5, typical_p=0.9, repetition_penalty=1.1
    )
    assert one.choices[0].text == wanted


def test_constrained_answers(client):
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["a"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "abc"}],
        n=4,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    )
    for choice in answer.choices:
        if choice.finish_reason == "stop":
            assert json.loads(choice.message.content)["a"] in range(10)
    assert any(choice.finish_reason == "stop" for choice in answer.choices)
    choice = client.completions.create(
        model="tiny", prompt="abc", extra_body={"choice": ["yes", "no"]}
    )
    assert choice.choices[0].text in ("yes", "no")
    digits = client.completions.create(
        model="tiny", prompt="abc", max_tokens=20, extra_body={"regex": "[0-9]{4}"}
    )
    assert digits.choices[0].text.isdigit() and len(digits.choices[0].text) == 4
    with pytest.raises(openai.BadRequestError, match="cannot both hold"):
        client.completions.create(
            model="tiny", prompt="a", extra_body={"regex": "a", "choice": ["b"]}
        )


def test_embeddings(client):
    texts = ["a first text", "b"]
    wanted = encoder().embed(texts)
    numbers = client.embeddings.create(model="tiny-encoder", input=texts, encoding_format="float")
    np.testing.assert_array_equal(
        np.array([entry.embedding for entry in numbers.data], np.float32), wanted
    )
    coded = client.embeddings.create(model="tiny-encoder", input="b")  # the client's own: base64
    np.testing.assert_allclose(np.array(coded.data[0].embedding, np.float32), wanted[1], atol=1e-6)
    assert numbers.usage.prompt_tokens == sum(len(encoder().encode(text)) for text in texts)


def test_base64_is_little_endian_float32(server):
    body = {"model": "tiny-encoder", "input": "b", "encoding_format": "base64"}
    answer = httpx.post(f"{server[0]}/v1/embeddings", json=body).json()
    vector = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(vector, encoder().embed("b"), atol=1e-6)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny", "tiny-encoder"]
    assert client.models.retrieve("tiny").owned_by == "llmasos"
    with pytest.raises(openai.NotFoundError, match="tiny, tiny-encoder"):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("more", "kind", "words"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, 'no model "gpt-9"'),
        ({"model": "tiny-encoder"}, openai.NotFoundError, "no model"),
        ({"max_tokens": -3}, openai.BadRequestError, "max_tokens"),
        ({"max_tokens": 10**9}, openai.BadRequestError, "more than the 192"),
        ({"prompt": "a" * 500}, openai.BadRequestError, "at most 191 tokens"),
        ({"prompt": [[]]}, openai.BadRequestError, "a list of ids"),
        ({"prompt": [300]}, openai.BadRequestError, "the id 300"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"extra_body": {"max_token": 5}}, openai.BadRequestError, 'did you mean "max_tokens"'),
        ({"extra_body": {"batch_size": 3}}, openai.BadRequestError, "1, 4"),
        ({"logit_bias": {"x": 1}}, openai.BadRequestError, "ids of tokens"),
        ({"logit_bias": {"264": 1}}, openai.BadRequestError, "0 to"),
        ({"n": 16, "prompt": ["a"] * 9}, openai.BadRequestError, "may ask for 64"),
        ({"echo": True, "logprobs": 1}, openai.BadRequestError, "leave out echo"),
    ],
)
def test_what_is_wrong_is_said(client, more, kind, words):
    with pytest.raises(kind, match=words) as error:
        client.completions.create(**{"model": "tiny", "prompt": "a", **more})
    body = error.value.body
    assert set(body) == {"message", "type", "param", "code"}
    assert "\n" not in body["message"]


def test_a_surrogate_alone_is_no_text(server):
    answer = httpx.post(
        f"{server[0]}/v1/completions",
        content=b'{"model": "tiny", "prompt": "\\ud800"}',
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400, answer.text


def test_metrics_tell_what_was_served(server, client):
    url, service = server
    before = service.engine.stats()
    client.completions.create(model="tiny", prompt="count me", max_tokens=7)
    settled(service)
    lines = dict(
        line.rsplit(" ", 1)
        for line in httpx.get(f"{url}/metrics").text.splitlines()
        if not line.startswith("#")
    )
    generated = float(lines["llmasos_generated_tokens_total"])
    assert generated == before.generated_tokens + 7
    assert float(lines['llmasos_requests_total{route="/v1/completions",status="200"}']) >= 1
    assert float(lines["llmasos_pages_in_use"]) == 0
    assert float(lines["llmasos_first_token_seconds_count"]) >= 1
    assert service.engine.stats().num_compiled == service.engine.num_programs
