"""A frozen model shared out over processes: the same losses and gradients, in half the room, and a whole adapter."""

import pytest
from test_world import together

from bnft.errors import UserError
from bnft.sharding import shard
from bnft.world import World

COMPARE = """
from torch.distributed.tensor import DTensor
from bnft.models import find_model
from bnft.reply_loss import reply_log_likelihoods
from bnft.settings import RunConfig
from bnft.sharding import even_out, is_sharded, shard
from bnft.strategies import PeftStrategy
from peft import get_peft_model_state_dict
config = RunConfig().replace("model.load_in_4bit", FOUR_BIT).replace("train.gradient_checkpointing", CHECKPOINTING)
model = PeftStrategy().prepare(find_model("smoke", announce=lambda text: None), config).model
if CHECKPOINTING != "none":
    model.gradient_checkpointing_enable({"use_reentrant": False})
torch.manual_seed(1)
for name, parameter in model.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(parameter, std=0.02)
rows = torch.randint(0, 500, (2, 40))
def step(part):
    model.train()
    model.zero_grad()
    loss = -reply_log_likelihoods(model, part, part).sum() / 78
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return loss.detach(), gradients
alone, expected = step(rows)
before = get_peft_model_state_dict(model)
shard(model, world)
assert is_sharded(model)
parts = {name: p for name, p in model.named_parameters() if isinstance(p, DTensor)}
assert len(parts) == 14, list(parts)
for name, part in parts.items():
    assert not part.requires_grad
    assert part.to_local().numel() * part.to_local().element_size() * 2 == part.numel() * part.element_size()
for turn in range(2):
    loss, gradients = step(rows[world.rank : world.rank + 1])
    sum_over([loss, *gradients.values()], world)
    assert (loss - alone).abs() < 1e-5, (loss, alone)
    assert gradients.keys() == expected.keys() and len(gradients) == 28
    for name in expected:
        assert (gradients[name] - expected[name]).abs().max() < 1e-5 * max(1, expected[name].abs().max()), name
rows_of_one = [[dict(input_ids=row, labels=row)] for row in rows.tolist()] if world.leads else []
model.zero_grad()
for [row] in even_out(rows_of_one, world):
    ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
    (-reply_log_likelihoods(model, ids, labels).sum() / 78).backward()
gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
sum_over([*gradients.values()], world)
for name in expected:
    assert (gradients[name] - expected[name]).abs().max() < 1e-5 * max(1, expected[name].abs().max()), name
with torch.no_grad():
    model.eval()
    whole = -reply_log_likelihoods(model, rows, rows).sum() / 78
assert (whole - alone).abs() < 1e-5
after = get_peft_model_state_dict(model)
assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
assert not any(isinstance(value, DTensor) for value in after.values())
print("agreed", len(after))
"""


@pytest.mark.parametrize(
    ("four_bit", "checkpointing"),
    [pytest.param(False, "none", marks=pytest.mark.slow), (True, "torch")],
    ids=["16 bit", "4 bit, recomputed"],
)
def test_two_processes_with_half_of_each_layer_compute_what_one_does(four_bit, checkpointing):
    done = together(f"FOUR_BIT, CHECKPOINTING = {four_bit}, {checkpointing!r}\n{COMPARE.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "agreed 28\n"


def test_alone_there_is_nobody_to_share_with(tiny_model):
    with pytest.raises(UserError, match="this is the only one"):
        shard(tiny_model, World())
