"""Golden cases for the tokenizer: python make_golden.py > golden.json (needs `tokenizers`).

Two small vocabularies are trained here on the text below: "bytes" (byte-level) and "pieces"
(SentencePiece style, all byte tokens). Each variant replaces parts of one of them; its cases hold
what the reference library makes of the texts: [text, ids with special tokens, decoded text,
decoded text without special tokens (null: the same), begin and end of each token in bytes]. The
offsets are whole characters; variants whose offsets differ from the reference by design (the
normalizers that join characters, and where a template's last tokens stand) have none.
"""

import copy
import json
import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = """the quick brown fox jumps over the lazy dog. She said: don't stop, we'll see 123 or 4567!
def add(a, b): return a + b  # the sum of the two numbers, and the words in the world
il était une fois, où ça; über Straße naïve café   ab aba abab  the then there these those
"""


def train_bytes():
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.train_from_iterator([TEXT], trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens(["<s>", "</s>"])
    return json.loads(tok.to_str())


def train_pieces():
    tok = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    tok.train_from_iterator([TEXT], trainers.BpeTrainer(
        vocab_size=400, special_tokens=special + ["<0x%02X>" % b for b in range(256)],
        show_progress=False))
    root = json.loads(tok.to_str())
    root["added_tokens"] = root["added_tokens"][:3]
    root["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"}, replace(" ", "\u2581")]}
    root["pre_tokenizer"] = None
    root["decoder"] = {"type": "Sequence", "decoders": [
        replace("\u2581", " "), {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    root["post_processor"] = {
        "type": "TemplateProcessing", "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
    return root


def replace(old, new, kind="String"):
    return {"type": "Replace", "pattern": {kind: old}, "content": new}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


def split(pattern, behavior, invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def byte_level(**changes):
    return dict({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
                 "use_regex": True}, **changes)


def metaspace(scheme, cut):
    step = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": cut}
    return {"normalizer": None, "pre_tokenizer": step, "decoder": step}


def added(root, **flags):
    out = copy.deepcopy(root["added_tokens"])
    first = max(max(root["model"]["vocab"].values()), max(a["id"] for a in out)) + 1
    for i, content in enumerate(["<x>", "<xy>", "word", "\u00fcn", "  ", "NORM"]):
        out.append(dict({"id": first + i, "content": content, "single_word": False,
                         "lstrip": False, "rstrip": False, "normalized": False,
                         "special": content[0] == "<"}, **flags))
    return out


LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+"
          r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
RAW = byte_level(use_regex=False)


def variants(data, pieces):
    yield "gpt2", "bytes", {"pre_tokenizer": byte_level()}, True
    yield "prefix space", "bytes", {"pre_tokenizer": byte_level(add_prefix_space=True)}, True
    yield "llama3", "bytes", {
        "pre_tokenizer": sequence(split(LLAMA3, "Isolated"), RAW), "ignore_merges": True}, True
    yield "qwen", "bytes", {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": sequence(split(LLAMA3.replace("{1,3}", ""), "Isolated"), RAW)}, False
    digits = {"type": "Digits", "individual_digits": True}
    yield "smollm", "bytes", {"pre_tokenizer": sequence(digits, byte_level())}, True
    digits = {"type": "Digits", "individual_digits": False}
    yield "digit runs", "bytes", {"pre_tokenizer": sequence(digits, byte_level())}, True
    yield "byte level first", "bytes", {
        "pre_tokenizer": sequence(RAW, split(r"[a-e]{2}|\d", "Isolated"))}, False
    for behavior in ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]:
        for invert in [False, True]:
            yield "split %s %s" % (behavior, invert), "bytes", {"pre_tokenizer": sequence(
                split(r"[\s\w]?\d|e*", behavior, invert), split("o", behavior, invert, "String"),
                RAW)}, True
    yield "array merges", "bytes", {
        "merges": [m.split(" ") if isinstance(m, str) else m for m in data["model"]["merges"]],
        "pre_tokenizer": byte_level()}, True
    for form in ["NFC", "NFD", "NFKC", "NFKD", "Lowercase"]:
        yield form, "bytes", {"normalizer": {"type": form}, "pre_tokenizer": byte_level()}, False
    yield "byte normalizer", "bytes", {
        "normalizer": {"type": "ByteLevel"}, "pre_tokenizer": None}, False
    yield "added", "bytes", {"added_tokens": added(data), "pre_tokenizer": byte_level()}, True
    yield "added strip", "bytes", {"added_tokens": added(data, lstrip=True, rstrip=True),
                                   "pre_tokenizer": byte_level()}, True
    yield "added words", "bytes", {"added_tokens": added(data, single_word=True),
                                   "pre_tokenizer": byte_level()}, True
    yield "added normalized", "bytes", {
        "added_tokens": added(data, normalized=True, special=False),
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": byte_level()}, True
    yield "no decoder", "bytes", {"pre_tokenizer": byte_level(), "decoder": None}, True

    yield "llama2", "pieces", {}, True
    for scheme in ["first", "always", "never"]:
        for cut in [False, True]:
            yield "metaspace %s %s" % (scheme, cut), "pieces", metaspace(scheme, cut), True
    yield "gemma", "pieces", {
        "normalizer": replace(" ", "\u2581"), "added_tokens": added(pieces),
        "pre_tokenizer": split(" ", "MergedWithPrevious", kind="String")}, True
    yield "pieces added", "pieces", {
        "added_tokens": added(pieces, normalized=True, special=False)}, True
    yield "unknown", "pieces", {"byte_fallback": False}, True
    yield "unknown apart", "pieces", {"byte_fallback": False, "fuse_unk": False}, True
    yield "strip", "pieces", {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Strip", "strip_left": True, "strip_right": False},
        replace(r"\s+", "\u2581", "Regex"), {"type": "Prepend", "prepend": "\u2581"}]}}, False
    special = {name: {"id": name, "ids": ids, "tokens": ["t"] * len(ids)}
               for name, ids in [("<s>", [1]), ("end", [2, 0])]}
    yield "template", "pieces", {"post_processor": {"type": "Sequence", "processors": [
        byte_level(), {"type": "TemplateProcessing", "pair": [
            {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}},
                       {"SpecialToken": {"id": "end", "type_id": 0}}],
            "special_tokens": special}]}}, False


def texts():
    fixed = ["", " ", "the quick brown fox", "don't I'LL we've 1234567 3.14", "a\n\n  b\t\tc \n",
             "<s>the</s> <x> <xy>word words  word NORM norm", "\u00fcn \u00fcnd <x>\n <x>",
             "caf\u00e9 cafe\u0301 \ufb01 \u2160 \uac01 \u1100\u1161\u11a8 a\u0323\u0301 a\u0301\u0323",
             "\u5b57\u6f22 \U0001f468\u200d\U0001f469 \U0001f1e9\U0001f1ea \u2764\ufe0f x",
             "\u2581the \u2581\u2581a\u2581", "<0x41> <unk>", "\u0130STANBUL \u03a3\u03a3\u03c2",
             "\u00a0\u3000\u2028\u180e\u200bz \r\n  end  "]
    rng = random.Random(7)
    parts = TEXT.split() + [" ", "  ", "\n", "\t", "<x>", "<xy>", "word", "NORM", "\u00e9", "e\u0301",
                            "\u5b57", "\U0001f600", "12", "7", "'s", "\u2581", "\u00a0", "</s>"]
    for _ in range(5):
        fixed.append("".join(rng.choice(parts) + rng.choice(["", " ", ""]) for _ in range(10)))
    return fixed


def build(base, patch):
    root = copy.deepcopy(base)
    for key, value in patch.items():
        target = root["model"] if key in root["model"] else root
        target[key] = value
    return root


def dump(value):
    return json.dumps(value, separators=(",", ":"))


def main():
    bases = {"bytes": train_bytes(), "pieces": train_pieces()}
    out = []
    for name, base, patch, offsets in variants(bases["bytes"], bases["pieces"]):
        tok = Tokenizer.from_str(json.dumps(build(bases[base], patch)))
        cases = []
        for text in texts():
            enc = tok.encode(text)
            at = [0]
            for c in text:
                at.append(at[-1] + len(c.encode()))
            case = [text, enc.ids, tok.decode(enc.ids, skip_special_tokens=False),
                    tok.decode(enc.ids, skip_special_tokens=True)]
            if case[3] == case[2]:
                case[3] = None
            if offsets:
                case.append([at[i] for span in enc.offsets for i in span])
            cases.append(case)
        out.append({"name": name, "base": base, "patch": patch, "cases": cases})
    print("{\n\"bases\": " + dump(bases) + ",\n\"variants\": [")
    print(",\n".join(dump(v) for v in out))
    print("]\n}")


main()
