"""The whole of a study: from a template to a reviewed paper, with good, weak and bad models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labd.journal import Journal
from labd.llm.model import Message, Options
from labd.research.experiment import Tools
from labd.research.groundwork import Brief
from labd.research.publishing import Published
from labd.research.record import Verdict
from labd.research.researcher import Given, Plan, run_study
from labd.template import load_template
from tests.boxes import make_sandbox
from tests.chats import Spoken

GOOD_EDIT = """I widen the layer and regularise it.

model.py
```python
<<<<<<< SEARCH
        self.dropout = params["dropout"]
        self.smoothing = params["label_smoothing"]
        self.shift = params["shift_probability"]
        hidden = params["hidden_units"]
=======
        self.dropout = 0.2
        self.smoothing = 0.1
        self.shift = 0.3
        hidden = 256
>>>>>>> REPLACE
<<<<<<< SEARCH
        self.rate = params["learning_rate"]
=======
        self.rate = 0.003
>>>>>>> REPLACE
```
"""


def study(
    root: Path, chat: Spoken, *, template: str = "digits", roots: Sequence[Path] = (), **over: Any
) -> Published:
    results = root / "results" / "task"
    results.mkdir(parents=True, exist_ok=True)
    brief_over = {
        name: over.pop(name) for name in ("num_trials", "deadline", "seed") if name in over
    }
    brief = Brief(
        task_id="task",
        template=load_template(template, roots=list(roots)),
        task_text=f"template: {template}\nresearcher: llm\n",
        task_sha256="0" * 64,
        num_confirm_seeds=10,
        parallel=2,
        **{"num_trials": 4, **brief_over},
    )
    models = dict.fromkeys(("ideas", "code", "write", "review"), "spoken")
    plan = Plan(brief, **{"models": models, "num_ctx": 8192, "num_ideas": 2, **over})
    with Journal(results / "journal.jsonl") as journal:
        return run_study(plan, Tools(sandbox=make_sandbox()), journal, results, Given(chat))


def test_a_true_improvement_is_found_measured_and_reported(tmp_path: Path) -> None:
    def speaks(messages: Sequence[Message], options: Options) -> str:
        text = messages[-1].content
        return GOOD_EDIT if "SEARCH" in "".join(m.content for m in messages) else "no"

    done = study(tmp_path, Spoken(speaks), num_trials=4)
    claim = done.study.claim
    print(
        done.study.notes,
        [t.status for t in done.study.trials],
        [t.refused for t in done.study.trials],
    )
    assert claim.verdict is Verdict.IMPROVED
    assert claim.difference_low is not None
    assert claim.difference_low > 0
