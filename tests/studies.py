"""Studies for tests: complete and valid by default, one argument to change one thing."""

from typing import Any

from labd.research.evidence import values_of
from labd.research.record import Claim, Run, TrialStatus, Verdict
from labd.research.stats import compare, no_candidate
from labd.research.study import Ablation, Control, Idea, ModelUse, Role, Study, Trial
from labd.template import Metric
from tests.records import make_provenance, make_run

TASK_TEXT = "kind: research\ntemplate: digits\nresearcher: llm\nmodel: tiny\nseed: 7\n"
METRIC = Metric(name="accuracy", better="higher", description="share of digits named correctly")
HUNK = "@@ -10,2 +10,2 @@\n-hidden = 64\n+hidden = 128\n"
REFERENCES: list[dict[str, Any]] = [
    {
        "key": "lecun1998gradient",
        "title": "Gradient-Based Learning Applied to Document Recognition",
        "authors": ["LeCun, Yann", "Léon Bottou", "Yoshua Bengio", "Patrick Haffner"],
        "year": 1998,
        "venue": "Proceedings of the IEEE",
        "doi": "10.1109/5.726791",
        "url": "https://doi.org/10.1109/5.726791",
        "abstract": "Multilayer networks trained with back-propagation.",
    },
    {
        "key": "kim2020손글씨",
        "title": "손글씨 숫자 인식 {{ best_mean }} <script>",
        "authors": ["김철수"],
        "year": 2020,
    },
    {"key": "bare", "title": "A work of which little is known"},
]


def make_arm(name: str, level: float, count: int = 10, **over: Any) -> list[Run]:
    """Give runs on the test split whose values go a little up and down around a level."""
    fields = {"split": "test", "params": {}} | over
    return [
        make_run(
            f"confirm-{name}-{i:03}",
            level + (i % 5 - 2) * 0.001,
            seed=2001 + i,
            curves={"train_loss": [2 - i / 50, 1.0, 0.5]},
            **fields,
        )
        for i in range(count)
    ]


def make_trial(number: int, value: float | None, **over: Any) -> Trial:
    """Give a trial; without a value its run crashed."""
    name = f"trial-{number:03}"
    status = "ok" if value is not None else "crashed"
    fields: dict[str, Any] = {
        "name": name,
        "idea": "idea-1",
        "parent": None,
        "move": "draft",
        "plan": "Use a wider layer.",
        "status": status,
        "run": make_run(name, value, params={}, seed=1000),
        "commit": f"{number:02x}" * 20,
        "code_sha256": f"{number:02x}" * 32,
        "files_changed": ["model.py"],
        "lines_added": 3 + number,
        "lines_removed": number,
        "model": "tiny",
    }
    return Trial(**fields | over)


def make_trials() -> list[Trial]:
    refused = "the edit changes nothing"
    return [
        make_trial(1, 0.941),
        make_trial(2, None),
        make_trial(3, 0.962, parent="trial-002", move="debug"),
        make_trial(4, None, run=None, status="refused", refused=refused, idea="idea-2"),
        make_trial(5, 0.951, idea="idea-2"),
        make_trial(6, 0.972, parent="trial-003", move="improve"),
    ]


def make_idea(number: int, **over: Any) -> Idea:
    fields: dict[str, Any] = {
        "name": f"idea-{number}",
        "title": ["A wider hidden layer", "Dropout with L2", "Reaches 99.9 % at once"][number - 1],
        "hypothesis": "A wider layer fits the digits better.",
        "experiment": "Change the number of hidden units in model.py.",
        "expected_effect": "Accuracy rises by 5 %.",
        "risk": "It may overfit.",
        "interest": 6,
        "feasibility": 9,
        "originality": 3,
    }
    return Idea(**fields | over)


def judged(one: list[Run], two: list[Run], comparisons: int = 6) -> Claim:
    """Compare two arms as a task does."""
    return compare(
        values_of(one), values_of(two), better="higher", planned=10, comparisons=comparisons
    )


def make_control() -> Control:
    trials = [make_run(f"control-{i:03}", 0.93 + i * 0.002) for i in range(6)]
    runs = make_arm("control", 0.958)
    base, best = make_arm("baseline", 0.953), make_arm("best", 0.9715)
    return Control(
        trials=trials,
        best_params={"lr": 0.005, "hidden": 96},
        confirm=runs,
        claim=judged(base, runs),
        against=judged(runs, best, 1),
    )


def make_study(**over: Any) -> Study:
    """Give the study of three ideas and six trials that improved on its baseline, with everything in it."""
    base, best = make_arm("baseline", 0.953), make_arm("best", 0.9715)
    ablated = make_arm("ablation-1", 0.956)
    roles: tuple[tuple[Role, int], ...] = (("ideas", 9), ("code", 20), ("write", 12))
    trials = over.get("trials", make_trials())
    statuses = [trial.status for trial in trials]
    names = [*(status.value for status in TrialStatus), "refused", "hopeless"]
    counts = {name: statuses.count(name) for name in names}
    counts |= {"ideas": 3, "trials": len(trials), "runs": 52, "calls": 41, "failed_calls": 3}
    fields: dict[str, Any] = {
        "title": "Handwritten digits",
        "template": "digits",
        "template_title": "A small network reads handwritten digits",
        "template_description": "A network with one hidden layer learns the UCI digits, 8 by 8 pixels.",
        "policy": "tree",
        "metric": METRIC,
        "baseline_run": make_run("baseline-000", 0.9512, params={}),
        "ideas": [make_idea(number) for number in (1, 2, 3)],
        "trials": trials,
        "best_trial": "trial-006",
        "confirm_baseline": base,
        "confirm_best": best,
        "claim": judged(base, best),
        "ablations": [
            Ablation(
                name="change-1",
                hunk=HUNK,
                runs=ablated,
                claim=judged(ablated, best, 1),
            )
        ],
        "control": make_control(),
        "counts": counts,
        "hours": {"runs": 0.213, "calls": 1.374},
        "run_s": {"baseline": 1.25, "best": 1.5},
        "models": [
            ModelUse(
                model="tiny:7b", digest="ab" * 32, role=role, calls=calls, failed=1,
                prompt_tokens=12_345, output_tokens=2_345, hours=0.41,
            )
            for role, calls in roles
        ],
        "references": REFERENCES,
        "provenance": make_provenance(task_file=TASK_TEXT),
    }  # fmt: skip
    return Study(**fields | over)


def studies() -> dict[str, Study]:
    """Give one study for each way in which one can end."""
    base, same, low = make_arm("baseline", 0.953), make_arm("best", 0.9535), make_arm("best", 0.93)
    bare: dict[str, Any] = {"ablations": [], "control": None}

    def ended(claim: Claim, **over: Any) -> Study:
        return make_study(claim=claim, **bare | over)

    none_better = "No trial was better than the baseline on validation."
    nothing: dict[str, Any] = {"best_trial": None, "confirm_best": []}
    return {
        "improved": make_study(),
        "no_improvement": ended(judged(base, same), confirm_best=same),
        "worse": ended(judged(base, low), confirm_best=low),
        "no_trial_better": ended(
            no_candidate(
                values_of(base), verdict=Verdict.NO_IMPROVEMENT, reason=none_better, comparisons=6
            ),
            **nothing,
        ),
        "nothing_ran": ended(
            no_candidate(
                values_of(base), verdict=Verdict.NO_IMPROVEMENT, reason=none_better, comparisons=1
            ),
            trials=[],
            ideas=[make_idea(1, source="fallback")],
            references=[],
            **nothing,
        ),
        "inconclusive": ended(
            no_candidate([], verdict=Verdict.INCONCLUSIVE, reason="No run succeeded.", comparisons=6),
            confirm_baseline=[],
            models=[],
            **nothing,
        ),
    }  # fmt: skip
