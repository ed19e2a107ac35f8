"""Clients of OpenAI's API work unchanged against `flashlin serve`: the `openai` package, lm-evaluation-harness (`local-completions`), and
the examples of docs/serve.md, against a model that the quick start's recipe trained for some steps.

usage: python tests/python/serve.py PATH_OF_FLASHLIN [--model FOLDER]
"""

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import openai

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = (
    "{% for m in messages %}{{ m.role | upper }}.\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT.\n{% endif %}"
)
PROMPT = "PROSPERO.\n"


class Server:
    def __init__(self, binary, model, *args):
        command = [binary, "serve", str(model), "--port", "0", "--json", *args]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.about = json.loads(self.process.stdout.readline())
        self.url = self.about["url"]

    def post(self, path, body):
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, "the server did not end as it should"


def check_openai(server):
    name = server.about["model"]
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    assert [m.id for m in client.models.list()] == [name]
    assert client.models.retrieve(name).owned_by == "flashlin"

    options = {"model": name, "max_tokens": 24, "seed": 3, "temperature": 0.9}
    whole = client.completions.create(prompt=PROMPT, logprobs=2, **options)
    assert whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 24
    assert len(whole.choices[0].logprobs.tokens) == 24
    parts = client.completions.create(
        prompt=PROMPT, stream=True, stream_options={"include_usage": True}, **options
    )
    text, usage = "", None
    for part in parts:
        usage = part.usage or usage
        text += part.choices[0].text if part.choices else ""
    assert text == whole.choices[0].text and usage == whole.usage
    stop = text[5:8]
    cut = client.completions.create(prompt=PROMPT, stop=stop, **options)
    assert cut.choices[0].text == text[: text.index(stop)] and cut.choices[0].finish_reason == "stop"
    several = client.completions.create(prompt=[PROMPT, "MIRANDA.\n"], n=3, **options)
    assert [c.index for c in several.choices] == list(range(6))
    assert several.choices[0].text == text

    talk = [{"role": "system", "content": "Speak well."}, {"role": "user", "content": "Who art thou?"}]
    chat = client.chat.completions.create(
        messages=talk, model=name, max_completion_tokens=16, seed=1, logprobs=True, top_logprobs=2
    )
    assert chat.choices[0].message.role == "assistant" and chat.usage.completion_tokens == 16
    assert len(chat.choices[0].logprobs.content[0].top_logprobs) == 2
    parts = client.chat.completions.create(
        messages=talk, model=name, max_completion_tokens=16, seed=1, stream=True
    )
    said = "".join(p.choices[0].delta.content or "" for p in parts if p.choices)
    assert said == chat.choices[0].message.content

    for error, request in [
        (openai.NotFoundError, {"model": "gpt-4", "prompt": "a"}),
        (openai.BadRequestError, {"model": name, "prompt": "a", "temperature": -1}),
        (openai.BadRequestError, {"model": name, "prompt": "a", "max_tokens": 10**9}),
    ]:
        try:
            client.completions.create(**request)
        except error as e:
            assert e.body["message"], e
        else:
            raise AssertionError(f"{request} should be refused")

    async def crowd():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none") as many:
            ask = lambda i: many.completions.create(prompt=PROMPT, model=name, max_tokens=24, seed=3 + i % 2, temperature=0.9)
            return await asyncio.gather(*(ask(i) for i in range(12)))

    answers = [a.choices[0].text for a in asyncio.run(crowd())]
    assert set(answers[::2]) == {text}, "a request's text depends on who else asks"
    print("openai: completions, chat, streams, errors, twelve at once")


def check_docs(server):
    text = (ROOT / "docs/serve.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(sh|python)\n(.*?)```", text, re.S)
    assert len(blocks) >= 4
    for kind, block in blocks:
        block = block.replace("http://127.0.0.1:8000", server.url)
        command = [sys.executable, "-c", block] if kind == "python" else ["bash", "-euo", "pipefail", "-c", block]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and done.stdout and '"error"' not in done.stdout, (block, done)
    print(f"docs/serve.md: {len(blocks)} examples run")


TASKS = {
    "flashlin_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_target": "{{label}}",
        "doc_to_choice": "{{choices}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "flashlin_say": {
        "output_type": "generate_until",
        "doc_to_text": "{{query}}",
        "doc_to_target": "{{choices[label]}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    "flashlin_roll": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
}


def check_lm_eval(server, temp):
    docs = [
        {"query": "PROSPERO.\nMy brave", "choices": [" spirit!", " zzxq", " of the of"], "label": 0, "text": PROMPT * 40},
        {"query": "MIRANDA.\nO,", "choices": [" qqq", " wonder!"], "label": 1, "text": "Full fathom five thy father lies."},
        {"query": "Now my", "choices": [" charms", "\x01", "é"], "label": 0, "text": "naïve café 日本語"},
    ]
    data = temp / "docs.jsonl"
    data.write_text("".join(json.dumps(d) + "\n" for d in docs), encoding="utf-8")
    tasks = temp / "tasks"
    tasks.mkdir()
    for name, task in TASKS.items():
        head = {"task": name, "dataset_path": "json", "test_split": "test", "dataset_kwargs": {"data_files": {"test": str(data)}}}
        # JSON is YAML.
        (tasks / f"{name}.yaml").write_text(json.dumps(head | task), encoding="utf-8")
    out = temp / "lm_eval"
    arguments = f"model={server.about['model']},base_url={server.url}/v1/completions,num_concurrent=4,max_retries=1,max_length=256"
    command = [
        sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments, "--include_path", str(tasks),
        "--tasks", ",".join(TASKS), "--output_path", str(out), "--log_samples", "--batch_size", "2",
    ]
    env = os.environ | {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(temp / "hf")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stderr[-4000:]

    def samples(task):
        (path,) = out.rglob(f"samples_{task}_*.jsonl")
        return sorted(map(json.loads, path.read_text(encoding="utf-8").splitlines()), key=lambda s: s["doc_id"])

    ids = lambda text: server.post("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]
    for doc, sample in zip(docs, samples("flashlin_choice"), strict=True):
        for choice, answer in zip(doc["choices"], sample["filtered_resps"], strict=True):
            whole, context = ids(doc["query"] + choice), len(ids(doc["query"]))
            scored = server.post("/v1/completions", {"prompt": whole, "max_tokens": 0, "echo": True, "logprobs": 0})
            mine = sum(scored["choices"][0]["logprobs"]["token_logprobs"][context:])
            assert abs(float(answer[0]) - mine) < 1e-9, (doc, choice, answer, mine)
    for doc, sample in zip(docs, samples("flashlin_say"), strict=True):
        body = {"prompt": doc["query"], "max_tokens": 12, "temperature": 0, "stop": ["\n\n"]}
        assert sample["resps"][0][0] == server.post("/v1/completions", body)["choices"][0]["text"], sample
    assert len(samples("flashlin_roll")) == len(docs)
    print("lm-evaluation-harness: log-likelihoods, rolling log-likelihoods and generation through the server")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--model", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temp:
        temp = Path(temp)
        model = args.model
        if model is None:
            run = temp / "run"
            command = [args.binary, "quickstart", "--steps", "30", "--max-new-tokens", "4", "-q", "--out", str(run)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            model = run / "latest"
        template = temp / "template.jinja"
        template.write_text(TEMPLATE, encoding="utf-8")
        server = Server(args.binary, model, "--served-name", "latest", "--chat-template", str(template))
        try:
            check_openai(server)
            check_docs(server)
            check_lm_eval(server, temp)
        finally:
            server.end()


if __name__ == "__main__":
    main()
