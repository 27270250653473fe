"""Golden texts of the built-in chat templates, rendered by transformers.

    make_chat_templates.py TEMPLATES.json > chat_templates.jsonl

TEMPLATES.json maps each built-in's name to the Jinja text that the model named in
runtime/data/chat_template.c ships in its tokenizer_config.json. alpaca has no such original and is
tested by hand. A conversation on which the original raises gives a line with "error": true.
"""

import json
import sys

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

TOKENS = {
    "chatml": ("", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
    "mistral": ("<s>", "</s>"),
    "gemma": ("<bos>", "<eos>"),
    "phi3": ("<s>", "<|endoftext|>"),
    "zephyr": ("<s>", "</s>"),
}


def turns(*contents, system=None):
    out = [] if system is None else [{"role": "system", "content": system}]
    for i, content in enumerate(contents):
        out.append({"role": "assistant" if i % 2 else "user", "content": content})
    return out


CONVERSATIONS = [
    turns("Hello, how are you?"),
    turns("Hello, how are you?", "I'm doing great. How can I help you today?"),
    turns("What is 6 x 7?", "42", "And 7 x 8?", "56", "Thanks"),
    turns("What is 6 x 7?", "42", "And 7 x 8?", "56"),
    turns("Who are you?", "A parrot.", system="Answer as a parrot."),
    turns("Who are you?", "A parrot.", "Sure?", "Aye.", system="  Be brief.\n"),
    turns("  \t leading and trailing \n\n", "\u00a0\u3000 wide spaces \u2003\u2028", "\u001c\u0085x\u001f"),
    turns("", ""),
    turns(" ", "\n"),
    turns("{{ bos_token }} {% raw %} \"quotes\" 'single' \\n <|im_end|></s>", "{'a': 1}\n\n\n\nend"),
    turns("Gr\u00fc\u00dfe \u4f60\u597d \U0001f600", "\u00e9\u0301 \u200b zero width\u200b"),
    [{"role": "assistant", "content": "I speak first."}, {"role": "user", "content": "Oh."}],
    [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}],
]


def main():
    templates = json.load(open(sys.argv[1]))
    for name, (bos, eos) in TOKENS.items():
        tok = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.BPE()), bos_token=bos or None, eos_token=eos
        )
        for messages in CONVERSATIONS:
            for add in (False, True):
                row = {
                    "template": name, "messages": messages, "add_generation_prompt": add,
                    "bos": bos, "eos": eos,
                }
                try:
                    row["text"] = tok.apply_chat_template(
                        messages, chat_template=templates[name], tokenize=False,
                        add_generation_prompt=add,
                    )
                except Exception:
                    row["error"] = True
                print(json.dumps(row, ensure_ascii=False))


main()
