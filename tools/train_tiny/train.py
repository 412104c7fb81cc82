"""data -> tokenizer -> training -> export -> evaluation, in one command:

    python train.py --out ../../models/tiny

The learning rate follows the share of the budget that is used up: of `--minutes` (so that a loaded machine ends on
time) or of `--steps` (so that a run can be repeated), whichever is further. `--work` holds checkpoints; starting again
with the same folder continues from the last one.
"""
import argparse
import json
import os
import time

# glibc would give every large tensor back to the kernel and page it in again. Must be set before the process starts.
if os.environ.get("MALLOC_MMAP_MAX_") != "0":
    import sys
    os.environ.update(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_="17179869184", MALLOC_TOP_PAD_="268435456")
    # Threads that wait must sleep: spinning is ruinous where other programs want the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.execv(sys.executable, [sys.executable, *sys.argv])

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import data
import tokenizer as tokenizer_module
from model import Config, Model, masks
from optim import optimizers

MTP_WEIGHT = 0.3
RELEASED_FROM = 0.80  # from here on the forward pass uses the weights as the file will hold them
BIAS_STEP = 0.003  # e_score_correction_bias per step; 0 in the last part


def learning_rate(progress):
    if progress < 0.02:
        return progress / 0.02
    return min(1.0, max(0.0, (1 - progress) / 0.6))


def length_at(step):
    """Mostly 256 positions; one step in ten is longer."""
    return {9: 1024, 19: 512}.get(step % 20, 256)


def make_batch(tokenizer, args, step):
    length = length_at(step)
    ids, learn, doc = data.batch(tokenizer, args.seed * 1_000_003 + step, args.batch // length, length, args.arithmetic)
    return torch.tensor(ids), torch.tensor(learn), torch.tensor(doc)


def losses(model, ids, learn, doc):
    mask, positions = masks(doc)
    hidden = model.trunk(ids, positions, mask)
    want = learn[:, 1:] & (doc[:, 1:] == doc[:, :-1])
    loss = F.cross_entropy(model.logits(hidden[:, :-1][want]), ids[:, 1:][want])
    # MTP: position i sees token i+1 and predicts token i+2. The last position has no next token; roll fills it, the mask drops it.
    next_ids = ids.roll(-1, 1)
    want2 = learn[:, 2:] & (doc[:, 2:] == doc[:, :-2])
    logits2 = mtp_selected(model, hidden, next_ids, positions, mask, want2)
    return loss, F.cross_entropy(logits2, ids[:, 2:][want2])


def mtp_selected(model, hidden, next_ids, positions, mask, want):
    cos, sin = model.rope(positions)
    x = model.eh_proj(torch.cat([model.enorm(model.embedding(next_ids)), model.hnorm(hidden)], dim=-1))
    x = model.mtp_layer(x, cos, sin, mask)
    return model.head(model.mtp_norm(x[:, :-2][want]))


def train(args):
    os.makedirs(args.work, exist_ok=True)
    torch.manual_seed(args.seed)
    tokenizer_path = os.path.join(args.work, "tokenizer.json")
    if not os.path.exists(tokenizer_path):
        tokenizer_module.train(seed=args.seed).save(tokenizer_path)
    tok = Tokenizer.from_file(tokenizer_path)
    model = Model(Config())
    opts = optimizers(model)
    base_lr = [[g["lr"] for g in o.param_groups] for o in opts]
    state = dict(step=0, seconds=0.0, tokens=0)
    checkpoint = os.path.join(args.work, "checkpoint.pt")
    if os.path.exists(checkpoint):
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        for o, s in zip(opts, saved["optimizers"]):
            o.load_state_dict(s)
        state = saved["state"]
        print("continuing at", state, flush=True)

    def save():
        torch.save(dict(model=model.state_dict(), optimizers=[o.state_dict() for o in opts], state=state), checkpoint + ".new")
        os.replace(checkpoint + ".new", checkpoint)

    log = open(os.path.join(args.work, "log.jsonl"), "a")
    began, before = time.time(), state["seconds"]
    last_save, last_log = time.time(), (time.time(), state["tokens"])
    sums, count = [0.0, 0.0], 0
    load = [torch.zeros(model.c.experts) for _ in model.moe_layers()]
    while True:
        state["seconds"] = before + time.time() - began
        progress = max(state["seconds"] / (args.minutes * 60) if args.minutes else 0.0,
                       state["step"] / args.steps if args.steps else 0.0)
        if progress >= 1:
            break
        released = progress >= RELEASED_FROM
        model.set_released(released)
        for o, rates in zip(opts, base_lr):
            for g, rate in zip(o.param_groups, rates):
                g["lr"] = rate * learning_rate(progress)
        ids, learn, doc = make_batch(tok, args, state["step"])
        loss, loss2 = losses(model, ids, learn, doc)
        (loss + MTP_WEIGHT * loss2).backward()
        for o in opts:
            o.step()
        model.zero_grad(set_to_none=True)
        # Balance without an auxiliary loss: lift the experts that got less than the mean.
        for i, moe in enumerate(model.moe_layers()):
            got = moe.load.float()
            load[i] += got
            if progress < 0.9:
                moe.bias += BIAS_STEP * min(1.0, 2 * learning_rate(progress)) * torch.sign(got.mean() - got)
        state["step"] += 1
        state["tokens"] += ids.numel()
        sums[0] += loss.item()
        sums[1] += loss2.item()
        count += 1
        if state["step"] % 25 == 0:
            now = time.time()
            row = dict(step=state["step"], minutes=round(state["seconds"] / 60, 2), progress=round(progress, 4), released=released,
                       loss=round(sums[0] / count, 4), mtp=round(sums[1] / count, 4), tokens=state["tokens"],
                       tokens_per_s=round((state["tokens"] - last_log[1]) / (now - last_log[0])),
                       # 1.0 is perfect balance
                       busiest=[round((l.max() / l.mean()).item(), 2) for l in load], idlest=[round((l.min() / l.mean()).item(), 2) for l in load])
            print(json.dumps(row), file=log, flush=True)
            print(row, flush=True)
            last_log, sums, count = (now, state["tokens"]), [0.0, 0.0], 0
            load = [torch.zeros(model.c.experts) for _ in load]
        if time.time() - last_save > args.save_every:
            save()
            last_save = time.time()
    save()
    return model, tok, state


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="folder for the released model; without it: training only")
    parser.add_argument("--work", default="work", help="folder for checkpoints and the log")
    parser.add_argument("--minutes", type=float, default=55)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--hard", type=float, default=0.0, help="share of the arithmetic that is near subtractions")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4096, help="positions in one step")
    parser.add_argument("--arithmetic", type=float, default=0.62, help="share of arithmetic documents in the short rows")
    parser.add_argument("--save-every", type=float, default=150)
    args = parser.parse_args()
    if not args.minutes and not args.steps:
        parser.error("give --minutes or --steps")
    data.hard_share = args.hard
    train(args)
    if args.out:
        import evaluate
        import export
        export.export(args.work, args.out)
        evaluate.evaluate(args.out, os.path.join(os.path.dirname(os.path.abspath(__file__)), "results.json"))


if __name__ == "__main__":
    main()
