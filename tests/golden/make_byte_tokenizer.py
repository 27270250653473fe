"""A byte-level tokenizer whose ids can be read off the text: make_byte_tokenizer.py DIRECTORY

The id of a byte is the byte; "ab" merges to 256; 257 <s> (BOS, added in front), 258 </s> (EOS),
259 <|im_start|>, 260 <|im_end|>.
"""

import json
import sys


def alphabet():
    extra = 0x100
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or byte >= 0xAE:
            yield chr(byte)
        else:
            yield chr(extra)
            extra += 1


vocab = {c: byte for byte, c in enumerate(alphabet())}
vocab["ab"] = 256
added = [
    {"id": 257 + i, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
     "normalized": False, "special": True}
    for i, content in enumerate(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
]
byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
sequence = [{"Sequence": {"id": s, "type_id": i}} for i, s in enumerate("AB")]
bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
tokenizer = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
    "normalizer": None, "pre_tokenizer": byte_level,
    "post_processor": {
        "type": "TemplateProcessing", "single": [bos, sequence[0]], "pair": [bos] + sequence,
        "special_tokens": {"<s>": {"id": "<s>", "ids": [257], "tokens": ["<s>"]}},
    },
    "decoder": byte_level,
    "model": {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
        "merges": ["a b"],
    },
}
config = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
for name, value in (("tokenizer.json", tokenizer), ("tokenizer_config.json", config)):
    with open(f"{sys.argv[1]}/{name}", "w") as f:
        json.dump(value, f, indent=0)
        f.write("\n")
