"""Makes testdata/chat/transformers.json: what transformers itself does with our chat templates, with JSON and with logits.

    python chat.py            # needs transformers, jinja2 and torch
"""
import json
import pathlib
import random

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
TOOLS = [{"type": "function", "function": {
    "name": "weather", "description": "<b>Weather</b> & 'more' é 世界", "parameters": {
        "type": "object", "required": ["city"], "properties": {
            "z": {"type": "number", "minimum": 1.0, "maximum": 1e16, "default": -2.5e-07, "enum": [0.1, 100, None, True]},
            "city": {"type": "string", "pattern": "a\\b\t\u0001\u007f\u2028"}, "empty": [{}, []]}}}}]

INLINE = {
    "json": "{{ tools | tojson }}\n{{ tools | tojson(indent=2) }}",
    "python": "{{ true }} {{ none }} {{ 1.0 }} {{ 'a,b,,c'.split(',') | length }} {{ 'a</t>b</t>c'.split('</t>', 1)[1] }}"
              " {{ ' x '.strip() }}{{ 'xxa'.lstrip('x') }} {{ 'ab'.startswith('a') }} {{ 'AbC'.lower().upper() }}"
              " {{ {'k': 1}.items() | list | length }} {{ {'k': 1}.get('z', 7) }} {{ 'abc'[::-1] }} {{ messages[1:] | length }}"
              " {{ 'b' in 'abc' }} {{ 5 // 2 }} {{ 2 ** 3 }} {{ ['b', 'a'] | sort | join('-') }}",
    "blocks": "{% for m in messages %}\n  {% if loop.first %}\n    {{ m.role }}\n  {% else %}\n{{ m.role }}\n  {%- endif %}\n"
              "{% if loop.index0 > 1 %}{% break %}{% endif %}\n{% endfor %}\n\nend\n\n",
    "macro": "{% macro tag(x, y='-') %}<{{ x }}{{ y }}>{% endmacro %}{% set ns = namespace(n=0) %}"
             "{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ tag(m['role'], ns.n) }}{% endfor %}{{ tag('z') }}{{ undefined_one }}",
}


def chats():
    sources = {path.name: path.read_text() for path in sorted(TEMPLATES.glob("*.jinja"))}
    cases = []
    for name in sources:
        for messages in [TALK, TWO_SYSTEMS] + ([CALLS, ANSWERED] if name in ("v3.jinja", "v31.jinja") else []):
            for variables in [{}] + ([{"thinking": True}] if name == "v31.jinja" else []):
                for prompt in (True, False):
                    cases.append((name, sources[name], messages, None, variables, prompt))
    cases.append(("v31.jinja", sources["v31.jinja"], CALLS, TOOLS, {}, True))
    cases += [(name, source, TALK, TOOLS, {}, True) for name, source in INLINE.items()]
    for name, source, messages, tools, variables, prompt in cases:
        rendered, _ = render_jinja_template(
            conversations=[messages], tools=tools, chat_template=source, add_generation_prompt=prompt,
            **SPECIAL, **variables)
        yield {"name": name, "source": None if name in sources else source, "messages": messages, "tools": tools,
               "variables": variables, "add_generation_prompt": prompt, "text": rendered[0]}


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


if __name__ == "__main__":
    golden = {"chats": list(chats()), "filters": list(filters())}
    lines = [f'"transformers": "{transformers.__version__}"']
    for key in ("chats", "filters"):
        cases = ",\n".join(json.dumps(case, ensure_ascii=False) for case in golden[key])
        lines.append(f'"{key}": [\n{cases}\n]')
    (ROOT / "testdata/chat/transformers.json").write_text("{" + ",\n".join(lines) + "}\n")
    print(len(golden["chats"]), "conversations,", len(golden["filters"]), "filters")
