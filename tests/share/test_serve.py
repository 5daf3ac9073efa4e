"""`mgk serve`: a real process, asked over HTTP."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from mgk_core.tools.chat import ask

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

QUESTION = "고혈압이란?"
ASKED = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 20}


@pytest.fixture(scope="module")
def server(language_run):
    """Start the command and give a client of its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mgk_cli", "serve", str(language_run), "--port", "0"],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    address = re.search(r"http://\S+", process.stdout.readline())[0]
    with httpx.Client(base_url=address, timeout=120, trust_env=False) as client:
        yield client
    process.send_signal(signal.SIGINT)
    process.wait(30)
    process.stdout.close()


@pytest.fixture(scope="module")
def expected(language_run):
    """Return what `mgk ask` prints for the same question."""
    return ask(language_run, [QUESTION], tokens=20)[0]


@pytest.mark.parametrize("model", ["base", "final"])
def test_the_answer_is_that_of_ask(server, expected, model):
    """Whole and streamed, of both models."""
    done = server.post("/v1/chat/completions", json={**ASKED, "model": model}).json()
    (choice,) = done["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": getattr(expected, model),
    }
    assert choice["finish_reason"] in ("stop", "length")
    assert 0 < done["usage"]["completion_tokens"] <= 20
    asked = {**ASKED, "model": model, "stream": True}
    with server.stream("POST", "/v1/chat/completions", json=asked) as streamed:
        lines = [line.removeprefix("data: ") for line in streamed.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    text = "".join(e["choices"][0]["delta"].get("content", "") for e in events)
    assert text == choice["message"]["content"]
    assert events[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]


def test_both_models_are_listed(server):
    """Under the names that requests use."""
    assert [m["id"] for m in server.get("/v1/models").json()["data"]] == [
        "final",
        "base",
    ]


def test_the_page_may_ask_nobody_else(server):
    """Its policy allows this server alone, and its script has the policy's nonce."""
    page = server.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'; connect-src 'self'" in policy
    nonce = re.search(r"script-src 'nonce-([^']+)'", policy)[1]
    assert f'<script nonce="{nonce}">' in page.text
    assert "http://" not in page.text
    assert "https://" not in page.text


def test_another_host_name_is_refused(server):
    """So a web page cannot read the model through a name of its own."""
    assert server.get("/v1/models", headers={"Host": "evil.example"}).status_code == 400


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{", "not JSON"),
        ("[]", "JSON object"),
        (json.dumps({**ASKED, "model": "gpt"}), "one of final, base"),
        (json.dumps({**ASKED, "temperature": 0.7}), "temperature"),
        (json.dumps({**ASKED, "max_tokens": -1}), "max_tokens"),
        (json.dumps({"messages": []}), "messages"),
        (json.dumps({"messages": [{"role": "robot", "content": "x"}]}), "messages[0]"),
        (json.dumps({"messages": [{"role": "user", "content": [1]}]}), "messages[0]"),
    ],
)
def test_a_wrong_request_is_explained(server, body, words):
    """In the protocol's own form."""
    done = server.post("/v1/chat/completions", content=body)
    assert done.status_code == 400
    assert words in done.json()["error"]["message"]


def test_a_taken_port_is_named(server, language_run):
    """Before the models are loaded."""
    done = subprocess.run(
        [sys.executable, "-m", "mgk_cli", "serve", str(language_run), "--port", str(server.base_url.port)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "choose another" in done.stderr
