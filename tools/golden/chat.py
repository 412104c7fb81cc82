"""Makes testdata/chat/transformers.json: what transformers itself does with our chat templates, with JSON and with logits.

    python chat.py                    # needs transformers, jinja2 and torch
    python chat.py --published DIR    # testdata/chat/published.json, from the templates DIR/*.jinja

The second writes no template and no text, only their SHA-256: the templates are DeepSeek's, and whoever has a checkpoint
has them. DIR holds the `chat_template` of checkpoints' tokenizer_config.json, byte for byte, a file each.
"""
import argparse
import hashlib
import json
import pathlib
import random

import jinja2
import torch
import transformers
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.utils.chat_template_utils import render_jinja_template

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "crates/engine/src/chat/templates"
SPECIAL = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}


def call(name, arguments):
    return {"id": name, "type": "function", "function": {"name": name, "arguments": arguments}}


TALK = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": "  1 < 2 & 'x' \"y\"?\n"},
    {"role": "assistant", "content": "<think>\na</think> b </think>\n\nYes. 😀"},
    {"role": "user", "content": "{{ bos_token }} é\n\n"},
]
TWO_SYSTEMS = [{"role": "system", "content": "A"}, {"role": "system", "content": "B"}, {"role": "user", "content": "C"}]
CALLS = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [call("weather", '{"city": "Ulm"}'), call("time", "{}")]},
    {"role": "tool", "tool_call_id": "weather", "content": "sun"},
    {"role": "tool", "tool_call_id": "time", "content": "noon"},
]
ANSWERED = CALLS + [{"role": "assistant", "content": "Sun at noon."}, {"role": "user", "content": "Thanks"}]
SECOND_CALL = CALLS + [
    {"role": "assistant", "content": None, "tool_calls": [call("time", '{"zone": "{{ 1 }} {% x %}"}')]},
    {"role": "tool", "tool_call_id": "time", "content": "noon"},
    {"role": "assistant", "content": "Sun at noon."},
]
WORDS_AND_CALL = [
    {"role": "system", "content": ""},
    {"role": "user", "content": ""},
    {"role": "assistant", "content": "Let me see.", "tool_calls": [call("weather", '{"city":"Köln","n":[1, 2.50]}')]},
    {"role": "tool", "tool_call_id": "weather", "content": ""},
]
EMPTY = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}, {"role": "user", "content": "\n"}]
UNICODE = [
    {"role": "user", "content": "Привет, 世界 \u2028 👩‍👩‍👧 e\u0301 \u00a0 <｜User｜> \\u0041 \\n {# no #}\r\n\ttab"},
    {"role": "assistant", "content": "</think>\u3000ﷺ</think>", "reasoning_content": "hm"},
    {"role": "user", "content": "fn main() { println!(\"{{}} {%d} %}\", 1); } // }}"},
]
PARTS = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
    {"role": "user", "content": [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]},
]
PREFIX = [
    {"role": "user", "content": "List three."},
    {"role": "assistant", "content": "1. one \n2.", "prefix": True},
]
TOOLS = [{"type": "function", "function": {
    "name": "weather", "description": "<b>Weather</b> & 'more' é 世界", "parameters": {
        "type": "object", "required": ["city"], "properties": {
            "z": {"type": "number", "minimum": 1.0, "maximum": 1e16, "default": -2.5e-07, "enum": [0.1, 100, None, True]},
            "city": {"type": "string", "pattern": "a\\b\t\u0001\u007f\u2028"}, "empty": [{}, []]}}}}]
DOCUMENTS = [{"title": "T", "text": "a { b"}]
CONVERSATIONS = [TALK, TWO_SYSTEMS, EMPTY, UNICODE, PARTS, PREFIX]
WITH_CALLS = [CALLS, ANSWERED, SECOND_CALL, WORDS_AND_CALL]

INLINE = {
    "json": "{{ tools | tojson }}\n{{ tools | tojson(indent=2) }}\n{{ tools | tojson(ensure_ascii=true, sort_keys=true) }}"
            "{{ tools | tojson(separators=(',', ':')) }}{{ tools | tojson(separators=(';', '='), indent='\\t') }}"
            "{{ documents | tojson(indent=0) }}{{ messages | tojson }}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}\n  {% generation %}\n{% set x = 1 %}{{ m.content }}"
                  "\n  {% endgeneration %}\n{% else %}{% continue %}{% endif %}{{ x }};{% endfor %}",
    "documents": "{% for d in documents %}[{{ d.title }}: {{ d['text'] }}]{% endfor %}{{ bos_token }}{{ thinking }}",
    "python": "{{ true }} {{ none }} {{ 1.0 }} {{ 'a,b,,c'.split(',') | length }} {{ 'a</t>b</t>c'.split('</t>', 1)[1] }}"
              " {{ ' x '.strip() }}{{ 'xxa'.lstrip('x') }} {{ 'ab'.startswith('a') }} {{ 'AbC'.lower().upper() }}"
              " {{ {'k': 1}.items() | list | length }} {{ {'k': 1}.get('z', 7) }} {{ 'abc'[::-1] }} {{ messages[1:] | length }}"
              " {{ 'b' in 'abc' }} {{ 5 // 2 }} {{ 2 ** 3 }} {{ ['b', 'a'] | sort | join('-') }}",
    "blocks": "{% for m in messages %}\n  {% if loop.first %}\n    {{ m.role }}\n  {% else %}\n{{ m.role }}\n  {%- endif %}\n"
              "{% if loop.index0 > 1 %}{% break %}{% endif %}\n{% endfor %}\n\nend\n\n",
    "macro": "{% macro tag(x, y='-') %}<{{ x }}{{ y }}>{% endmacro %}{% set ns = namespace(n=0) %}"
             "{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ tag(m['role'], ns.n) }}{% endfor %}{{ tag('z') }}{{ undefined_one }}",
}


def case(messages, tools=None, documents=None, variables=None, prompt=True, proceed=False):
    return {"messages": messages, "tools": tools, "documents": documents, "variables": variables or {},
            "add_generation_prompt": prompt and not proceed, "continue_final_message": proceed}


def prepared(message, none):
    """Content parts as one text, since no template of DeepSeek's takes them as they are; and `none` for no content."""
    content = message["content"]
    if isinstance(content, list):
        content = "\n".join(part["text"] for part in content)
    return {**message, "content": none if content is None else content}


def render(source, case):
    """The text, or None where transformers refuses or the template fails."""
    # R1-0528's template looks for </think> in every content, also where there is none.
    for none in (None, ""):
        try:
            rendered, _ = render_jinja_template(
                conversations=[[prepared(message, none) for message in case["messages"]]], tools=case["tools"],
                documents=case["documents"], chat_template=source,
                add_generation_prompt=case["add_generation_prompt"],
                continue_final_message=case["continue_final_message"], **SPECIAL, **case["variables"])
            return rendered[0]
        except (jinja2.TemplateError, TypeError):
            pass
        except ValueError:
            return None


def cases(conversations, thinking):
    for messages in conversations:
        for variables in [{}] + ([{"thinking": True}] if thinking else []):
            for prompt in (True, False):
                yield case(messages, variables=variables, prompt=prompt)
    for messages in (PREFIX, TALK[:3]):
        for variables in [{}] + ([{"thinking": True}] if thinking else []):
            yield case(messages, variables=variables, proceed=True)


def chats():
    for path in sorted(TEMPLATES.glob("*.jinja")):
        source, name = path.read_text(), path.name
        calls = WITH_CALLS if name in ("v3.jinja", "v31.jinja") else []
        all_cases = list(cases(CONVERSATIONS + calls, name == "v31.jinja"))
        if name == "v31.jinja":
            all_cases.append(case(CALLS, tools=TOOLS))
        for one in all_cases:
            yield {"name": name, "source": None, **one, "text": render(source, one)}
    for name, source in INLINE.items():
        one = case(TALK, tools=TOOLS, documents=DOCUMENTS, variables={"thinking": False})
        yield {"name": name, "source": source, **one, "text": render(source, one)}


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def published(directory):
    """What transformers makes of published templates: for each, by case, the SHA-256 of the text, or None."""
    all_cases = list(cases(CONVERSATIONS + WITH_CALLS, True)) + [case(CALLS, tools=TOOLS), case(TALK, tools=TOOLS)]
    templates = []
    for path in sorted(directory.glob("*.jinja")):
        source = path.read_bytes().decode()
        texts = [render(source, one) for one in all_cases]
        templates.append({"name": path.stem, "sha256": sha256(source), "texts": [text and sha256(text) for text in texts]})
    return {"cases": all_cases, "templates": templates}


def filters():
    rng = random.Random(5)
    for _ in range(60):
        size = rng.choice([3, 20, 300])
        # Distinct logits: where some tie at the edge of the nucleus, transformers keeps any of them.
        logits = [value / 8 for value in rng.sample(range(-160, 160), size)]
        temperature, top_k, top_p = rng.choice([0.3, 0.6, 1.0, 1.7]), rng.choice([0, 1, 5, 32, 1000]), rng.choice([1.0, 0.95, 0.5])
        scores = torch.tensor([logits], dtype=torch.float64)
        if temperature != 1.0:
            scores = TemperatureLogitsWarper(temperature)(None, scores)
        if top_k:
            scores = TopKLogitsWarper(top_k)(None, scores)
        if top_p < 1:
            scores = TopPLogitsWarper(top_p)(None, scores)
        kept = [index for index, score in enumerate(scores[0].tolist()) if score > -torch.inf]
        yield {"logits": logits, "temperature": temperature, "top_k": top_k, "top_p": top_p, "kept": kept,
               "probabilities": scores.softmax(-1)[0][kept].tolist()}


def write(name, golden):
    lines = [f'"transformers": "{transformers.__version__}"']
    for key, values in golden.items():
        rows = ",\n".join(json.dumps(value, ensure_ascii=False) for value in values)
        lines.append(f'"{key}": [\n{rows}\n]')
    (ROOT / "testdata/chat" / name).write_text("{" + ",\n".join(lines) + "}\n")
    print(name, {key: len(values) for key, values in golden.items()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=pathlib.Path, metavar="DIR")
    arguments = parser.parse_args()
    if arguments.published:
        write("published.json", published(arguments.published))
    else:
        write("transformers.json", {"chats": list(chats()), "filters": list(filters())})
