"""`flashlin eval` beside lm-evaluation-harness: log-likelihoods, accuracies, perplexities, RULER's prompts and scores.

usage: python tests/python/harness.py PATH_OF_FLASHLIN

Two programs that share nothing compute the same thing: here lm_eval's own tasks and loops with the models of second.py (numpy, float64)
and the tokenizer of the `tokenizers` package; there `flashlin eval`. For RULER, lm_eval's generators run with flashlin's random numbers in
place of Python's, so whole prompts must be equal. Everything runs offline.
"""

import importlib.metadata
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import types
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import second

SHAKESPEARE = Path(__file__).parents[2] / "data" / "shakespeare.txt"
TOLERANCE = 1e-4
CONFIG = {"hidden_size": 48, "num_hidden_layers": 2, "num_heads": 2, "head_dim": 16, "intermediate_size": 40}
VOCAB = 900
# RULER's example of variable tracking has to fit 500 tokens, or lm_eval's generator never ends: the tokenizer learns its phrases.
PHRASES = """Memorize and track the chain(s) of variable assignment hidden in the following text. Question: Find all variables that are
assigned the value 12345 in the text above. Answer: According to the chain(s) of variable assignment in the text above, 5 variables are assgined
the value 98760, they are: The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. VAR = VAR"""


def flashlin(*args):
    done = subprocess.run([BINARY, *map(str, args), "--json", "--quiet"], capture_output=True, text=True)
    assert done.returncode == 0, f"flashlin {args}: {done.stderr}"
    return json.loads(done.stdout)


def items(folder):
    lines = [json.loads(line) for line in next(folder.glob("items-*.jsonl")).read_text().splitlines()[1:]]
    return sorted(lines, key=lambda item: item["id"])


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


def make_model(folder):
    """A BPE tokenizer, and weights that have opinions."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=["<s>", "</s>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([*SHAKESPEARE.read_text()[:200_000].split("\n\n"), *[PHRASES] * 200], trainer)
    source = folder.parent / "tokenizer"
    source.mkdir()
    tokenizer.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    sets = [f"--set={key}={value}" for key, value in CONFIG.items()]
    flashlin("new", "gated_deltanet", "--tokenizer", source, "--out", folder, *sets)
    rng = np.random.default_rng(1)
    path = folder / "model.safetensors"
    weights = {n: second.fresh(n, t.shape, rng).astype(np.float32) for n, t in sorted(load_file(path).items())}
    save_file(weights, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    return tokenizer, second.Net(config, {n: w.astype(np.float64) for n, w in weights.items()})


def adapter(tokenizer, net, max_length):
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM

    class Second(TemplateLM):
        @property
        def eot_token_id(self):
            return tokenizer.token_to_id("</s>")

        @property
        def prefix_token_id(self):
            return tokenizer.token_to_id("<s>")

        def tok_encode(self, text, add_special_tokens=None, **kwargs):
            return tokenizer.encode(text, add_special_tokens=False).ids

        def _loglikelihood_tokens(self, requests, **kwargs):
            return [self.one(context, continuation) for _, context, continuation in requests]

        def one(self, context, continuation):
            ids = (context + continuation)[-(max_length + 1) :]
            logits = net.logits(ids[:-1])[-len(continuation) :]
            top = logits.max(-1, keepdims=True)
            logprobs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
            picked = logprobs[np.arange(len(continuation)), continuation]
            return float(picked.sum()), bool((logits.argmax(-1) == continuation).all())

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            sums = []
            for (text,) in (r.args for r in requests):
                windows = utils.get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, max_length, 1)
                sums.append(sum(self.one(*utils.make_disjoint_window(w))[0] for w in windows))
            return sums

        def generate_until(self, requests, disable_tqdm=False):
            raise NotImplementedError

    return Second()


def run_lm_eval(lm, root, include, files, **config):
    """One of lm_eval's own tasks on local files."""
    import lm_eval
    import yaml
    from lm_eval.tasks import TaskManager

    folder = Path(lm_eval.__file__).parent / "tasks"
    name = f"local_{Path(include).stem}_{len(list(root.glob('*.yaml')))}"
    task = {"include": str(folder / include), "task": name, "dataset_path": "json", "dataset_name": None, "tag": "local",
            "dataset_kwargs": {"data_files": {k: str(v) for k, v in files.items()}}, **config}
    (root / f"{name}.yaml").write_text(yaml.dump(task))
    manager = TaskManager(include_path=str(root), include_defaults=False)
    out = lm_eval.simple_evaluate(lm, tasks=[name], task_manager=manager, log_samples=True, bootstrap_iters=2, verbosity="ERROR",
                                  cache_requests=False)
    return out["results"][name], sorted(out["samples"][name], key=lambda s: s["doc_id"])


def close(ours, theirs, what):
    assert abs(ours - theirs) <= TOLERANCE * max(1.0, abs(theirs)), f"{what}: flashlin {ours}, lm_eval {theirs}"
    return abs(ours - theirs)


def arc(i, rng):
    n = 3 + i % 3
    text = SHAKESPEARE.read_text()
    cut = lambda k: " ".join(text[rng.randrange(len(text) - 400) :].split()[1 : 1 + k])
    labels = list("ABCDE"[:n]) if i % 2 else [str(j + 1) for j in range(n)]
    return {"id": str(i), "question": cut(4 + i % 9) + ("? " if i % 4 == 0 else "?"), "answerKey": rng.choice(labels),
            "choices": {"text": [cut(1 + (i + j) % 4) + " né" * (j == 1) for j in range(n)], "label": labels}}


def swag(i, rng):
    text = SHAKESPEARE.read_text()
    cut = lambda k: " ".join(text[rng.randrange(len(text) - 400) :].split()[1 : 1 + k])
    endings = [" [title] " * (j == 0) + cut(3 + j) + "  [step] and so on. " * (i % 2) for j in range(4)]
    return {"ind": i, "activity_label": cut(2), "ctx_a": cut(6), "ctx_b": cut(i % 4), "endings": endings, "label": str(rng.randrange(4))}


def check_choice(lm, model, root):
    rng, worst = random.Random(5), 0.0
    data = {"arc": (arc, "arc/arc_easy.yaml"), "hellaswag": (swag, "hellaswag/hellaswag.yaml")}
    for schema, (make, include) in data.items():
        test = write_lines(root / f"{schema}.jsonl", [make(i, rng) for i in range(12)])
        pool = write_lines(root / f"{schema}-train.jsonl", [make(i, rng) for i in range(5)])
        files = {"train": pool, "validation": test, **({"test": test} if schema == "arc" else {})}
        for shots in [0, 2]:
            few = {"num_fewshot": shots, "fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}}
            theirs, samples = run_lm_eval(lm, root, include, files, **few)
            out = root / f"out-{schema}-{shots}"
            ours = flashlin("eval", "choice", model, test, "--output", out, "--num-fewshot", shots, "--fewshot-file", pool,
                            "--fewshot-order", "first", "--max-length", MAX_LENGTH)["results"]
            for mine, sample in zip(items(out), samples, strict=True):
                for a, b, greedy in zip(mine["logprobs"], sample["resps"], mine["greedy"], strict=True):
                    worst = max(worst, close(a, b[0][0], f"{schema} {mine['id']}"))
                    assert greedy == b[0][1]
            for metric in ["acc", "acc_norm"]:
                close(ours[metric]["value"], theirs[f"{metric},none"], f"{schema} {shots} {metric}")
                close(ours[metric]["stderr"], theirs[f"{metric}_stderr,none"], f"{schema} {shots} {metric} stderr")
            print(f"choice {schema}, {shots} examples: acc {ours['acc']['value']:.4f}, acc_norm {ours['acc_norm']['value']:.4f}, equal")
    print(f"choice: largest difference of a log-likelihood {worst:.1e}")


PAGE = """ = Robert <unk> = \n \n Robert @-@ James ( born 1 @,@ 978 ) said : " it 's Jones ' own " . A temperature of 3 ° C , N [ sic ] men ; no !
 = = Career = = \n \n In 2000 he had a guest @-@ starring role { see ' the list ' } in the series . Größe . \n"""


def check_ppl(lm, model, root):
    rng = random.Random(6)
    words = SHAKESPEARE.read_text().split()
    pages = [PAGE, PAGE * 3] + [" ".join(words[rng.randrange(9000) :][: 5 + 60 * i]) for i in range(3)]
    data = write_lines(root / "pages.jsonl", [{"page": page} for page in pages])
    theirs, samples = run_lm_eval(lm, root, "wikitext/wikitext.yaml", {"train": data, "validation": data, "test": data})
    out = root / "out-ppl"
    ours = flashlin("eval", "ppl", model, data, "--field", "page", "--rolling", "--wikitext", "--max-length", MAX_LENGTH,
                    "--output", out)["results"]
    for mine, sample in zip(items(out), samples, strict=True):
        loglikelihood = sample["resps"][0][0]
        close(-mine["nats"], loglikelihood, f"page {mine['id']}")
    for metric in ["word_perplexity", "byte_perplexity", "bits_per_byte"]:
        close(ours[metric], theirs[f"{metric},none"], metric)
    print(f"ppl: word_perplexity {ours['word_perplexity']:.4f}, bits_per_byte {ours['bits_per_byte']:.4f}, equal")


class Philox:
    """flashlin's random numbers (Philox 4x32-10), with the methods of Python's `random` that lm_eval uses."""

    def stream(self, seed, name):
        hashed = 0xCBF29CE484222325
        for byte in name.encode():
            hashed = (hashed ^ byte) * 0x100000001B3 % 2**64
        self.seed, self.name, self.index = seed, hashed, 0

    def bits(self):
        i, self.index = self.index, self.index + 1
        c = [i // 2 % 2**32, i // 2 >> 32, self.name % 2**32, self.name >> 32]
        k0, k1 = self.seed % 2**32, self.seed >> 32
        for _ in range(10):
            p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
            c = [p1 >> 32 ^ c[1] ^ k0, p1 % 2**32, p0 >> 32 ^ c[3] ^ k1, p0 % 2**32]
            k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
        return c[i % 2 * 2] | c[i % 2 * 2 + 1] << 32

    def below(self, n):
        return self.bits() * n >> 64

    def randint(self, low, high):
        return low + self.below(high - low + 1)

    def getrandbits(self, n):
        assert n == 128
        high = self.bits()
        return high << 64 | self.bits()

    def choice(self, items):
        return items[self.below(len(items))]

    def choices(self, items, k):
        return [self.choice(items) for _ in range(k)]

    def shuffle(self, items):
        for i in range(len(items) - 1, 0, -1):
            j = self.below(i + 1)
            items[i], items[j] = items[j], items[i]

    def sample(self, items, k):
        if k > len(items):
            raise ValueError("sample larger than population")
        items = list(items)
        for i in range(k):
            j = i + self.below(len(items) - i)
            items[i], items[j] = items[j], items[i]
        return items[:k]

    def Random(self, seed):
        return self


SEED, SAMPLES = 7, 3


def ruler_sources(root, rng):
    """Word lists, sentences and questions, small."""
    words = root / "words"
    words.mkdir()
    known = sorted(set(re.findall(r"\b[a-z]{3,8}\b", SHAKESPEARE.read_text()[:200_000])))
    rng.shuffle(known)
    lists = {"noun": known[:300], "adjective": known[250:370], "verb": known[370:570]}
    for name, items in lists.items():
        (words / f"{name}list.txt").write_text("\n".join(items))
    sentences = [" ".join(s.split()) for s in re.split(r"(?<=[.!?])\s+", SHAKESPEARE.read_text()[:120_000])]
    (root / "sentences.txt").write_text("\n".join(sentences))
    town = lambda i: f"Town {i} lies by the river R{i}.\nIts mayor, M{i}, is called 'the {i}th'."
    qas = lambda i: [{"question": f"Who is mayor of town {i}?", "is_impossible": False, "answers": [{"text": f"M{i}"}, {"text": "it's he"}]},
                     {"question": "Nothing?", "is_impossible": True, "answers": []}]
    squad = {"data": [{"paragraphs": [{"context": town(i), "qas": qas(i)} for i in range(a, a + 25)]} for a in range(0, 500, 25)]}
    (root / "squad.json").write_text(json.dumps(squad))
    documents = lambda i: [[f"Town {j}", [town(j), " It rains."]] for j in range(i, i + 3)]
    hotpot = [{"question": f"Which river is at town {i}?", "answer": f"R{i}", "context": documents(i)} for i in range(0, 900, 3)]
    (root / "hotpot.json").write_text(json.dumps(hotpot))
    return words, lists, sentences


def import_ruler(lists):
    """lm_eval's generators, whose imports want word lists and sentence rules that need a download."""
    categories = {**lists, **{f"{name}s": words for name, words in lists.items()}}
    fake = lambda name, **members: sys.modules.__setitem__(name, types.SimpleNamespace(__name__=name, __spec__=None, **members))
    fake("wonderwords", RandomWord=lambda: types.SimpleNamespace(_categories=categories))
    fake("nltk", sent_tokenize=None, data=types.SimpleNamespace(find=lambda name: True))
    version = importlib.metadata.version
    importlib.metadata.version = lambda name: "99" if name == "nltk" else version(name)
    from lm_eval.tasks.ruler import common_utils, cwe_utils, fwe_utils, niah_utils, prepare_niah, qa_utils, vt_utils

    importlib.metadata.version = version
    return types.SimpleNamespace(common=common_utils, cwe=cwe_utils, fwe=fwe_utils, niah=niah_utils, prepare=prepare_niah, qa=qa_utils,
                                 vt=vt_utils)


def their_samples(ruler, task, length, tokenizer, root, lists, sentences):
    """What lm_eval generates where its choices are flashlin's."""
    draws = Philox()
    stream = lambda what: draws.stream(SEED, f"{task}/{length}/{what}")
    count = lambda text: types.SimpleNamespace(input_ids=tokenizer.encode(text).ids)
    rounds = iter(["example", None] if task == "ruler_vt" else [None])

    def tqdm(numbers, **kwargs):
        fixed = next(rounds)
        for i in numbers:
            stream(fixed or i)
            yield i
        stream("size")

    def fewer(f):
        def limited(*args, **kwargs):
            kwargs["num_samples"] = min(kwargs.get("num_samples", 500), SAMPLES)
            return f(*args, **kwargs)
        return limited

    def cut_sentences(text):
        left, cut = len(text.split()), []
        for sentence in sentences:
            words = sentence.split()[:left]
            left -= len(words)
            cut += [" ".join(words)] if words else []
        return cut

    for module in [ruler.prepare, ruler.cwe, ruler.fwe, ruler.vt, ruler.qa]:
        module.random, module.tqdm = draws, tqdm
    stream("example-size" if task == "ruler_vt" else "size")
    if task.startswith("niah"):
        ruler.prepare.generate_random_word = lambda: f"{draws.choice(lists['adjective'])}-{draws.choice(lists['noun'])}"
        ruler.prepare.cached_sent_tokenize = cut_sentences
        essay = " ".join(sentences).split(" ")
        haystack = {"essay": essay, "repeat": ruler.prepare.get_haystack.__wrapped__("repeat"), "needle": ruler.prepare.NEEDLE}
        ruler.niah.get_haystack = lambda type_haystack: haystack[type_haystack]
        ruler.niah.generate_samples = fewer(ruler.prepare.generate_samples)
        ruler.niah.get_tokenizer, ruler.niah.download_dataset = lambda name: count, list
        return getattr(ruler.niah, task)(max_seq_lengths=[length])[0]
    if task == "ruler_cwe":
        ruler.cwe.RNG, ruler.cwe.WORDS = draws, sorted(set(sum(lists.values(), [])))
        return fewer(CWE)(num_samples=SAMPLES, max_seq_length=length, tokenizer=count)
    if task == "ruler_fwe":
        return fewer(FWE)(tokenizer=count, max_seq_length=length)
    if task == "ruler_vt":
        randint = lambda low, high: low + draws.below(high - low)
        ruler.vt.np = types.SimpleNamespace(random=types.SimpleNamespace(randint=randint))
        ruler.vt.sys_vartrack_w_noise_random, ruler.vt.print = fewer(VT), lambda *args: None
        return ruler.vt.get_dataset(tokenizer=count, seq=length)
    name = task.removeprefix("ruler_qa_")
    ruler.qa.download_json = lambda url: json.loads((root / f"{name}.json").read_text())
    qas, docs = (ruler.qa.read_squad if name == "squad" else ruler.qa.read_hotpotqa).__wrapped__()
    ruler.qa.generate_samples = fewer(QA)
    return ruler.qa.get_dataset(count, docs, qas, max_seq_length=length)


def check_ruler(tokenizer, model, root):
    global CWE, FWE, VT, QA
    import lm_eval
    import yaml
    from lm_eval.api.task import ConfigurableTask

    rng = random.Random(8)
    words, lists, sentences = ruler_sources(root, rng)
    ruler = import_ruler(lists)
    CWE, FWE, VT, QA = (ruler.cwe.sys_word_pair_random, ruler.fwe.sys_kwext, ruler.vt.sys_vartrack_w_noise_random,
                        ruler.qa.generate_samples)
    sources = ["--words", words, "--sentences", root / "sentences.txt", "--squad", root / "squad.json", "--hotpot", root / "hotpot.json"]
    lengths = [4096, 8192]
    file = root / "samples.jsonl"
    flashlin("eval", "ruler", model, *sources, "--lengths", ",".join(map(str, lengths)), "--seed", SEED, "--limit", SAMPLES,
             "--write-samples", file)
    ours = {}
    for line in file.read_text().splitlines():
        sample = json.loads(line)
        ours.setdefault((sample["task"], sample["max_length"]), []).append(sample)
    assert len(ours) == 13 * len(lengths)
    folder, answers, expected = Path(lm_eval.__file__).parent / "tasks" / "ruler", [], {}
    for (task, length), samples in ours.items():
        config = {}
        for name in ["niah_single_1", "qa_squad" if "_qa_" in task else task, task]:
            path = folder / f"{name.removeprefix('ruler_')}.yaml"
            loader = type("Loader", (yaml.SafeLoader,), {})
            loader.add_constructor("!function", lambda loader, node: node.value)
            config.update(yaml.load(path.read_text(), loader))
        theirs = their_samples(ruler, task, length, tokenizer, root, lists, sentences)
        assert len(theirs) == len(samples) == SAMPLES
        for mine, sample in zip(samples, theirs):
            for key in ["index", "input", "outputs", "length", "max_length", "gen_prefix"]:
                assert mine[key] == sample[key], f"{task} {length} {key}:\n{mine[key]!r}\n{sample[key]!r}"
            turn = ConfigurableTask.build_qa_turn(None, q=sample["input"], gen_prefix=sample["gen_prefix"],
                                                  tgt_delim=config["target_delimiter"], few_delim="")
            assert mine["prompt"] == "".join(m.to_text() for m in turn), task
            said = " \x01,".join(o.upper() for o in sample["outputs"] if rng.random() < 0.6) + "\n."
            answers.append({"prediction": said})
            process = getattr(ruler.common, config["process_results"].split(".")[1])
            expected.setdefault((task, length), []).append(process(sample, [said])[str(length)])
    scores = flashlin("eval", "ruler", model, "--samples", file, "--answers", write_lines(root / "answers.jsonl", answers))
    for score in scores["results"]["tasks"]:
        values = expected[score["task"], score["max_length"]]
        close(score["score"], ruler.common.aggregate_metrics(values), score["task"])
    print(f"ruler: {len(answers)} prompts of 13 tasks and their scores, equal")


MAX_LENGTH = 64


def main():
    with tempfile.TemporaryDirectory() as temp:
        root = Path(temp)
        os.environ["HF_HOME"] = str(root / "hf")
        tokenizer, net = make_model(root / "model")
        lm = adapter(tokenizer, net, MAX_LENGTH)
        check_choice(lm, root / "model", root)
        check_ppl(lm, root / "model", root)
        check_ruler(tokenizer, root / "model", root)


if __name__ == "__main__":
    BINARY = sys.argv[1]
    main()
