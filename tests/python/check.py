"""Checkpoints that flashlin saves open in Python: `safetensors`, `tokenizers`, and `transformers` (AutoConfig, AutoTokenizer).

usage: python tests/python/check.py PATH_OF_FLASHLIN

Neither PyTorch nor flash-linear-attention is needed. `transformers` knows only some of the model types; for the others a plain
configuration class is registered first, as the package flash-linear-attention does on import.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

TEXT = "PROSPERO.\nNow my charms are all o'erthrown, naïve café 日本語 🦀\n  two  blanks\n"


def flashlin(*args):
    done = subprocess.run([BINARY, *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, f"flashlin {args}: {done.stderr}"
    return done.stdout


def check_weights(folder):
    shown = json.loads(flashlin("show", folder, "--json"))
    # numpy has no bf16; shapes and dtypes come from the header, values are read where numpy can.
    with safe_open(folder / "model.safetensors", framework="numpy") as f:
        ours = {t["name"]: t for t in shown["tensors"]}
        assert set(f.keys()) == set(ours), set(f.keys()) ^ set(ours)
        for name, tensor in ours.items():
            piece = f.get_slice(name)
            assert list(piece.get_shape()) == tensor["dims"], name
            if tensor["dtype"] == "f32":
                assert abs(f.get_tensor(name)).max() < 1e3, name
        return len(ours)


def check_config(folder):
    raw = json.loads((folder / "config.json").read_text())
    model_type = raw["model_type"]
    try:
        config = AutoConfig.from_pretrained(folder)
    except ValueError:
        config_class = type("Config", (PretrainedConfig,), {"model_type": model_type})
        AutoConfig.register(model_type, config_class)
        config = AutoConfig.from_pretrained(folder)
    assert config.model_type == model_type
    for key in ("hidden_size", "num_hidden_layers", "vocab_size"):
        assert getattr(config, key) == raw[key], key


def check_tokenizer(folder):
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = raw.encode(TEXT, add_special_tokens=False).ids
    assert raw.decode(ids) == TEXT
    auto = AutoTokenizer.from_pretrained(folder)
    assert auto(TEXT, add_special_tokens=False)["input_ids"] == ids
    assert auto.decode(ids) == TEXT
    assert (auto.pad_token_id, auto.bos_token_id, auto.eos_token_id) == (0, 1, 2)


def main():
    models = json.loads(flashlin("models", "--json"))
    with tempfile.TemporaryDirectory() as temp:
        temp = Path(temp)
        for model in models:
            name, preset = model["model_type"], model["presets"][0]
            for dtype in ("f32", "bf16"):
                out = temp / f"{name}-{dtype}"
                flashlin("new", name, "--preset", preset, "--dtype", dtype, "--tokenizer", "bytes", "--out", out)
                tensors = check_weights(out)
                check_config(out)
                check_tokenizer(out)
            print(f"{name}: {tensors} tensors, config and tokenizer open")
        text = temp / "text.txt"
        text.write_text((TEXT + "The quick brown fox jumps over the lazy dog.\n") * 200, encoding="utf-8")
        run = temp / "run"
        flashlin("quickstart", "--text", text, "--out", run, "--steps", 2, "--max-new-tokens", 4, "-q",
                 "--data.vocab_size", 300, "--data.seq_len", 64, "--data.batch_size", 2, "--schedule.warmup_steps", 0)
        trained = run / "latest"
        check_weights(trained)
        check_config(trained)
        check_tokenizer(trained)
        print("a trained checkpoint with a BPE tokenizer: opens")
        assert (trained / "generation_config.json").exists()


if __name__ == "__main__":
    BINARY = sys.argv[1]
    main()
