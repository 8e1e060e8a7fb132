"""Methods whose numbers go wrong, through every stage: the report says how, where and why, and the others go on."""

import re
import sys

import pytest

from tests.pipeline import test_faults
from tests.pipeline.test_faults import Untracked

LATE = 24  # of 45 steps (15 epochs of 3 batches), the first whose `progress` is above a half
FAULTY = '''
"""{name}: a method that breaks on purpose."""

import torch
from torch import nn

from .. import Method
from ..modalities import image


class Faulty(Method):
    columns = ("image",)

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.dim, 2, bias=False)

    def forward(self, batch):
        late, x = self.progress > 0.5, image.unit(batch["image"])
        {input}
        h = self.encoder(x)
        {features}
        loss = (self.head(h) - 1).square().mean()
        {loss}
        return loss, {{}}

    @torch.no_grad()
    def after_step(self):
        {after}
'''
SAYS = {  # entry: its status in the report
    "nan_in_a_batch": f"diverged (step {LATE}: the loss is nan)",
    "infinite_loss": f"diverged (step {LATE}: the loss is inf)",
    "exploding_gradient": r"diverged \(step \d+: the loss is (nan|inf)\)",
    "dead_encoder": "diverged (step 20: the loss has not moved for 20 steps)",
    "broken_at_the_end": "diverged (features are not finite)",
    "constant_features": r"collapsed \(effective rank .* is below 1.5 and spread .* is below .*\)",
    "rotation": "ok",
    "untrained": "ok",
}
BREAKS = {
    "nan_in_a_batch": {"input": "x = torch.cat([x[:1] * (float('nan') if late else 1), x[1:]])"},
    "infinite_loss": {"loss": "loss = loss * (float('inf') if late else 1)"},
    "exploding_gradient": {"loss": "loss = (self.head(h) ** 4).mean()"},
    "dead_encoder": {"features": "h = torch.relu(h - 1e6)"},
    "broken_at_the_end": {"after": "self.progress == 1 and [w.fill_(float('nan')) for w in self.encoder.parameters()]"},
    "constant_features": {
        "loss": "loss = x.mean() + h.sum()",  # which goes on moving
        "after": "[w.zero_() for w in self.encoder.parameters()]",
    },
}
EVERYTHING = """
import sys
from stages import evaluate, plan, prepare, pretrain, report

for stage, *arguments in [
    ("plan",), ("prepare", "image"),
    *((stage, "image", entry) for entry in sys.argv[1:] for stage in ("pretrain", "evaluate")),
    ("report",),
]:
    sys.argv[1:] = arguments
    globals()[stage].main()
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Untracked:
    """All stages have run."""

    def broken(params: dict) -> None:
        params["benchmark"]["image"]["methods"] = list(SAYS)
        params["methods"] |= {name: {} for name in BREAKS}
        params["training"]["laptop"]["override"]["exploding_gradient"] = {"optimizer": "sgd", "lr": 100.0}

    project = test_faults.prepare(tmp_path_factory.mktemp("broken") / "copy")
    project.change(broken)
    for name, parts in BREAKS.items():
        source = FAULTY.format(name=name, **{"input": "", "features": "", "loss": "", "after": "pass"} | parts)
        (project.folder / f"ssl_methods/pretext/{name}.py").write_text(source)
    project.run(sys.executable, "-c", EVERYTHING, *SAYS)
    return project


@pytest.mark.parametrize("entry", SAYS)
def test_the_report_says_how_where_and_why_a_run_failed(entry, project):
    said = SAYS[entry] if "\\" in SAYS[entry] else re.escape(SAYS[entry])
    rows = {"README.md": rf"^\| \[{entry}\].* \| {said} \|$", "index.html": f">{said}</td>"}
    for name, row in rows.items():
        text = (project.folder / "reports" / name).read_text(encoding="utf-8")
        assert re.search(row, text, re.MULTILINE), name
