"""Measures the released files (not the training checkpoint) and compares them with Hugging Face transformers.

    python evaluate.py --out ../../models/tiny

Everything runs in f32 with greedy decoding. The held-out problems and stories are written next to the model.
"""
import argparse
import json
import math
import os
import random

import torch
import torch.nn.functional as F
from safetensors import safe_open
from tokenizers import Tokenizer

import data
from export import all_tensors
from model import Config, Model, fp8_expand, masks
from stories import story

HELDOUT_SEED = 20_000_003
EOS_ID = 1


# ---- held-out material -------------------------------------------------------------------------

def heldout_problems(count=500):
    rng = random.Random(HELDOUT_SEED)
    seen, out = set(), []
    while len(out) < count:
        a, b, op = data.problem(rng, heldout=True)
        if (a, b, op) not in seen:
            seen.add((a, b, op))
            out.append({"prompt": data.phrase(rng, a, b, op), "answer": str(data.answer(a, b, op))})
    return out


def heldout_stories(size=20_000):
    """Stories separated by empty lines (no story contains one)."""
    rng = random.Random(HELDOUT_SEED + 1)
    out = []
    while sum(len(s) + 2 for s in out) < size:
        out.append(story(rng))
    return out


# ---- the released files --------------------------------------------------------------------------

def read_dequantized(folder):
    """-> {name: f32 tensor}, FP8 weights multiplied by their scales"""
    with open(os.path.join(folder, "model.safetensors.index.json"), encoding="utf-8") as f:
        weight_map = json.load(f)["weight_map"]
    files = {name: safe_open(os.path.join(folder, name), "pt") for name in set(weight_map.values())}
    raw = {name: files[file].get_tensor(name) for name, file in weight_map.items()}
    out = {}
    for name, t in raw.items():
        if name.endswith("_scale_inv"):
            continue
        scale = raw.get(name + "_scale_inv")
        out[name] = t.float() if scale is None else fp8_expand(t, scale)
    return out


def load(folder):
    model = Model(Config())
    tensors = read_dequantized(folder)
    with torch.no_grad():
        for name, parameter, _ in all_tensors(model):
            parameter.copy_(tensors.pop(name))
    assert not tensors, list(tensors)[:3]
    return model.eval()


# ---- decoding ----------------------------------------------------------------------------------

def causal(t):
    return torch.full((t, t), float("-inf")).triu(1)[None, None]


@torch.no_grad()
def greedy(model, ids, max_new):
    """ids [batch, time], all of one length -> list of new ids, each up to and with EOS"""
    cache = {}
    batch, t = ids.shape
    positions = torch.arange(t).expand(batch, t)
    logits = model.logits(model.trunk(ids, positions, causal(t), cache)[:, -1])
    new = []
    done = torch.zeros(batch, dtype=torch.bool)
    for _ in range(max_new):
        token = logits.argmax(-1)
        new.append(token)
        done |= token == EOS_ID
        if done.all():
            break
        hidden = model.trunk(token[:, None], torch.full((batch, 1), t), None, cache)
        logits = model.logits(hidden[:, -1])
        t += 1
    rows = torch.stack(new, 1).tolist()
    return [row[: row.index(EOS_ID) + 1] if EOS_ID in row else row for row in rows]


def greedy_many(model, prompts, max_new):
    """Prompts of different lengths, grouped by length so that no padding is needed."""
    groups = {}
    for i, p in enumerate(prompts):
        groups.setdefault(len(p), []).append(i)
    out = [None] * len(prompts)
    for members in groups.values():
        for i, new in zip(members, greedy(model, torch.tensor([prompts[i] for i in members]), max_new)):
            out[i] = new
    return out


def chat_prompt(question):
    return f"{data.BOS}{data.USER}{question}{data.ASSISTANT}<think>\n"


def given_answer(text):
    """The number after the last '=' behind </think>, as text; None if there is none."""
    if "</think>" not in text or "=" not in text.rsplit("</think>", 1)[1]:
        return None
    return text.rsplit("=", 1)[1].replace(data.EOS, "").strip()


# ---- measures ----------------------------------------------------------------------------------

@torch.no_grad()
def mtp_acceptance(model, prompts, outputs):
    """How often the MTP layer's first choice is the token that the model itself chose greedily."""
    accepted = total = 0
    for p, new in zip(prompts, outputs):
        ids = torch.tensor([p + new])
        t = ids.shape[1]
        if len(new) < 2:
            continue
        positions = torch.arange(t)[None]
        hidden = model.trunk(ids, positions, causal(t))
        draft = model.mtp(hidden[:, :-2], ids[:, 1:-1], positions[:, :-2], causal(t - 2)).argmax(-1)
        # draft[i] guesses token i+2; the guess counts where token i+1 was already generated
        first = len(p) - 1
        accepted += (draft[0, first:] == ids[0, 2 + first:]).sum().item()
        total += t - 2 - first
    return accepted / total


@torch.no_grad()
def perplexity(model, tok, texts):
    """-> (per token, bits per byte); every text starts after BOS and EOS counts"""
    nats = tokens = size = 0
    for text in texts:
        ids = torch.tensor([tok.encode(data.BOS + text + data.EOS, add_special_tokens=False).ids])
        t = ids.shape[1]
        logits = model.logits(model.trunk(ids, torch.arange(t)[None], causal(t)))
        nats += F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum").item()
        tokens += t - 1
        size += len(text.encode())
    return math.exp(nats / tokens), nats / size / math.log(2)


@torch.no_grad()
def expert_balance(model, tok):
    """Per MoE layer (the last one is the MTP's): busiest and idlest expert's load divided by the mean, on unseen text."""
    total = [torch.zeros(model.c.experts) for _ in model.moe_layers()]
    for i in range(8):
        ids, _, doc = (torch.tensor(x) for x in data.batch(tok, HELDOUT_SEED + 10 + i, 16, 256))
        mask, positions = masks(doc)
        hidden = model.trunk(ids, positions, mask)
        model.mtp(hidden, ids.roll(-1, 1), positions, mask)
        for sums, moe in zip(total, model.moe_layers()):
            sums += moe.load
    return [{"busiest": round((s.max() / s.mean()).item(), 2), "idlest": round((s.min() / s.mean()).item(), 2)} for s in total]


def long_context(model, tok, count=40):
    """Right answers where the question comes after a conversation of 700 to 1000 positions."""
    rng = random.Random(HELDOUT_SEED + 2)
    prompts, answers = [], []
    while len(prompts) < count:
        a, b, op = data.problem(rng, heldout=True)
        doc = data.chat(rng, [rng.choice([data.arithmetic_turn, data.talk_turn])(rng) for _ in range(rng.randrange(20, 40))]
                        + [(data.phrase(rng, a, b, op), "", "")])
        ids = tok.encode(doc[0][0], add_special_tokens=False).ids
        if 700 <= len(ids) <= 920:
            prompts.append(ids)
            answers.append(str(data.answer(a, b, op)))
    outputs = greedy_many(model, prompts, 160)
    texts = [tok.decode(o, skip_special_tokens=False) for o in outputs]
    return sum(given_answer(t) == a for t, a in zip(texts, answers)) / count


def transformers_names(tensors, config, layer):
    """The released names of one layer's experts -> transformers' stacked ones; the rest unchanged. Changes `tensors`."""
    at = f"model.layers.{layer}.mlp.experts."
    experts = [{name: tensors.pop(f"{at}{e}.{name}_proj.weight") for name in ("gate", "up", "down")} for e in range(config.n_routed_experts)]
    tensors[at + "gate_up_proj"] = torch.stack([torch.cat([e["gate"], e["up"]]) for e in experts])
    tensors[at + "down_proj"] = torch.stack([e["down"] for e in experts])


def reference_mtp(config, tensors):
    """The MTP layer put together from transformers' own parts. -> f(main model, hidden before the final norm, next ids)"""
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer, DeepseekV3RMSNorm

    n = config.num_hidden_layers
    at = f"model.layers.{n}."
    transformers_names(tensors, config, n)
    own = {name.removeprefix(at): t for name, t in tensors.items() if name.startswith(at)}
    norms = {}
    for name in ("enorm", "hnorm", "shared_head.norm"):
        norms[name] = DeepseekV3RMSNorm(config.hidden_size, config.rms_norm_eps)
        norms[name].load_state_dict({"weight": own.pop(name + ".weight")})
    embedding, head, eh_proj = own.pop("embed_tokens.weight"), own.pop("shared_head.head.weight"), own.pop("eh_proj.weight")
    layer = DeepseekV3DecoderLayer(config, n).eval()
    layer.load_state_dict(own, strict=True)

    def run(main, hidden, next_ids):
        positions = torch.arange(next_ids.shape[1])[None]
        x = torch.cat([norms["enorm"](F.embedding(next_ids, embedding)), norms["hnorm"](hidden)], dim=-1)
        x = F.linear(x, eh_proj)
        x = layer(x, attention_mask=causal(next_ids.shape[1]), position_ids=positions, position_embeddings=main.model.rotary_emb(x, positions))
        return F.linear(norms["shared_head.norm"](x[0] if isinstance(x, tuple) else x), head)

    return run


def compare_with_transformers(model, tok, folder, questions):
    """The FP8 files read by transformers itself (dequantised, f32): equal greedy tokens, and the logits' relative difference."""
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    fp8 = FineGrainedFP8Config(dequantize=True)
    reference = AutoModelForCausalLM.from_pretrained(folder, quantization_config=fp8, dtype=torch.float32).eval()
    mtp = reference_mtp(reference.config, read_dequantized(folder))
    before_norm = []
    reference.model.norm.register_forward_pre_hook(lambda _, args: before_norm.append(args[0]))
    equal, logits_off, mtp_off = 0, 0.0, 0.0

    def off(a, b):
        return ((a - b).norm() / b.norm()).item()

    for question in questions:
        p = tok.encode(question, add_special_tokens=False).ids
        mine = greedy(model, torch.tensor([p]), 120)[0]
        ids = torch.tensor([p + mine])
        t = ids.shape[1]
        positions = torch.arange(t)[None]
        with torch.no_grad():
            theirs = reference.generate(torch.tensor([p]), max_new_tokens=120, do_sample=False, pad_token_id=EOS_ID)[0].tolist()
            equal += p + mine == theirs
            before_norm.clear()
            their_logits = reference(ids).logits
            hidden = model.trunk(ids, positions, causal(t))
            logits_off = max(logits_off, off(model.logits(hidden), their_logits))
            draft = model.mtp(hidden[:, :-1], ids[:, 1:], positions[:, :-1], causal(t - 1))
            mtp_off = max(mtp_off, off(draft, mtp(reference, before_norm[0][:, :-1], ids[:, 1:])))
    result = {"prompts": len(questions), "equal_greedy_outputs": equal, "relative_logit_difference": logits_off,
              "relative_mtp_logit_difference": mtp_off}
    assert equal == len(questions) and logits_off < 1e-4 and mtp_off < 1e-4, result
    return result


def compare_tokenizers(folder, tok):
    """transformers' tokenizer gives the same ids and its chat template the text that the model was trained on."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    question = [{"role": "user", "content": "What is 27 + 58?"}]
    rendered = theirs.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    text = "Once upon a time, 27 + 158 = 185! 你好 é\n\n"
    return {"class": type(theirs).__name__,
            "same_ids": theirs.encode(text, add_special_tokens=False) == tok.encode(text, add_special_tokens=False).ids,
            "bos_added": theirs.encode(text)[0] == 0,
            "template_as_trained": rendered == chat_prompt("What is 27 + 58?")}


# ---- all of it -----------------------------------------------------------------------------------

def evaluate(folder, report):
    problems, tales = heldout_problems(), heldout_stories()
    with open(os.path.join(folder, "heldout.json"), "w", encoding="utf-8") as f:
        f.write("[\n" + ",\n".join(json.dumps(p, ensure_ascii=False) for p in problems) + "\n]\n")
    with open(os.path.join(folder, "heldout_stories.txt"), "w", encoding="utf-8") as f:
        f.write("\n\n".join(tales) + "\n")
    tok = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    model = load(folder)
    result = {}

    def show(key, value):
        result[key] = value
        print(key, "=", json.dumps(value, ensure_ascii=False), flush=True)

    def solve(items):
        prompts = [tok.encode(chat_prompt(p["prompt"]), add_special_tokens=False).ids for p in items]
        outputs = greedy_many(model, prompts, 200)
        texts = [tok.decode(o, skip_special_tokens=False) for o in outputs]
        wrong = [(p["prompt"], t) for p, t in zip(items, texts) if given_answer(t) != p["answer"]]
        return prompts, outputs, texts, wrong

    _, _, texts, _ = solve([{"prompt": "What is 27 + 58?", "answer": "85"}])
    show("example", chat_prompt("What is 27 + 58?") + texts[0])
    prompts, outputs, _, wrong = solve(problems)
    show("arithmetic_accuracy_500", 1 - len(wrong) / len(problems))
    for w in wrong[:10]:
        print("  wrong:", *w, sep="\n  ")
    show("mtp_acceptance_arithmetic", round(mtp_acceptance(model, prompts, outputs), 4))
    openings = [tok.encode(data.BOS + " ".join(s.split()[:8]), add_special_tokens=False).ids for s in tales[:40]]
    continued = greedy_many(model, openings, 120)
    show("mtp_acceptance_stories", round(mtp_acceptance(model, openings, continued), 4))
    show("story", tok.decode(openings[0] + continued[0]))
    per_token, bits = perplexity(model, tok, tales)
    show("story_perplexity_per_token", round(per_token, 4))
    show("story_bits_per_byte", round(bits, 4))
    rng = random.Random(HELDOUT_SEED + 3)
    uniform = []
    while len(uniform) < 500:
        a, b, op = rng.randrange(1000), rng.randrange(1000), rng.choice("+-")
        if data.is_heldout(a, b, op):
            uniform.append({"prompt": data.phrase(rng, a, b, op), "answer": str(data.answer(a, b, op))})
    show("arithmetic_accuracy_uniform_0_999", 1 - len(solve(uniform)[3]) / len(uniform))
    show("arithmetic_accuracy_at_700_to_1000_positions", long_context(model, tok))
    show("expert_balance", expert_balance(model, tok))
    questions = [chat_prompt(q) for q in ("What is 27 + 58?", "Hello", "How much is 81 minus 127?", "Calculate 999 plus 1.", "Who are you?")]
    questions += [data.BOS + "Once upon a time there was a", data.BOS + "Lily was a clever"]
    show("transformers", compare_with_transformers(model, tok, folder, questions))
    show("transformers_tokenizer", compare_tokenizers(folder, tok))
    sizes = {name: os.path.getsize(os.path.join(folder, name)) for name in sorted(os.listdir(folder))}
    show("bytes", sizes | {"all": sum(sizes.values())})
    with open(report, "w", encoding="utf-8") as f:
        json.dump(result, f, indent=2, ensure_ascii=False)
        f.write("\n")


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default=os.path.join(here, "../../models/tiny"))
    parser.add_argument("--report", default=os.path.join(here, "results.json"))
    args = parser.parse_args()
    evaluate(args.out, args.report)
