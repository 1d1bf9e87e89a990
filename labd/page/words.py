"""What the page says, in English and Korean. A test holds that neither lacks a word of the other."""

from collections.abc import Mapping
from typing import Literal

Language = Literal["en", "ko"]
LANGUAGES: tuple[Language, ...] = ("en", "ko")

_TABLE: Mapping[str, tuple[str, str]] = {
    # states and kinds
    "pending": ("pending", "대기"),
    "running": ("running", "실행 중"),
    "done": ("done", "완료"),
    "failed": ("failed", "실패"),
    "cancelled": ("cancelled", "취소됨"),
    "research": ("research", "연구"),
    "command": ("command", "명령"),
    "prompts": ("prompts", "프롬프트"),
    "all": ("all", "전체"),
    # the strip
    "title": ("labd, a research lab", "labd 연구실"),
    "daemon_up": ("the daemon runs", "데몬 실행 중"),
    "daemon_down": (
        "No daemon runs: nothing is started. `labd up` starts it.",
        "데몬이 꺼져 있어 아무것도 시작되지 않습니다. `labd up`으로 켜십시오.",
    ),
    "daemon_silent": (
        "the daemon has said nothing for {age}",
        "데몬이 {age} 동안 응답이 없습니다",
    ),
    "look_failed": ("The spool can't be read: {why}", "스풀을 읽을 수 없습니다: {why}"),
    "reading": ("{count} tasks are still being read", "작업 {count}개를 읽는 중"),
    "paused": (
        "Dispatching is paused: what runs goes on.",
        "새 작업 시작이 일시 중지됨. 실행 중인 작업은 계속됩니다.",
    ),
    "held": ("Nothing new is started: {why}", "새 작업을 시작하지 않음: {why}"),
    "read_only": ("read-only", "읽기 전용"),
    "seen": ("data from", "데이터 시각"),
    "old": (
        "no answer from the page; data is {age} old",
        "페이지가 응답하지 않음; {age} 전 데이터",
    ),
    "dashboard": ("Ray dashboard", "Ray 대시보드"),
    "sign_out": ("Sign out", "로그아웃"),
    "other_language": ("한국어", "English"),
    "now": ("Running now", "지금 실행 중"),
    "nothing_runs": ("Nothing runs.", "실행 중인 작업이 없습니다."),
    "left": ("about {age} left in this stage", "이 단계의 남은 시간 약 {age}"),
    "elapsed": ("for", "경과"),
    "ago": ("{age} ago", "{age} 전"),
    "pause": ("Pause dispatching", "시작 일시 중지"),
    "resume": ("Resume dispatching", "시작 재개"),
    # the table
    "tasks": ("Tasks", "작업"),
    "find": ("Find", "찾기"),
    "find_hint": ("id, title, template, model, reason", "이름, 제목, 템플릿, 모델, 이유"),
    "state": ("State", "상태"),
    "kind": ("Kind", "종류"),
    "label": ("Label", "라벨"),
    "owner": ("Owner", "소유자"),
    "task": ("Task", "작업"),
    "what": ("What", "내용"),
    "changed": ("Changed", "변경"),
    "took": ("Took", "소요"),
    "why": ("Why, how far", "이유, 진행"),
    "matching": ("{count} of {all} tasks match", "전체 {all}개 중 {count}개"),
    "first_rows": ("the first {rows} are shown", "처음 {rows}개만 표시"),
    "no_tasks": ("No task matches.", "해당하는 작업이 없습니다."),
    "empty_lab": (
        "No tasks yet: drop a file into spool/pending/, or submit one below.",
        "아직 작업이 없습니다. spool/pending/에 파일을 넣거나 아래에서 제출하십시오.",
    ),
    # one task
    "selected": ("Selected task", "선택한 작업"),
    "choose": ("Choose a task in the table.", "표에서 작업을 선택하십시오."),
    "gone": ("{task} is not in the spool any more.", "{task} 작업이 더 이상 스풀에 없습니다."),
    "cancel": ("Cancel", "취소"),
    "cancel_sure": (
        "Cancel {task}? What it runs is ended.",
        "{task} 작업을 취소할까요? 실행 중인 것이 종료됩니다.",
    ),
    "retry": ("Retry", "재시도"),
    "raise": ("Raise priority", "우선순위 올리기"),
    "priority": ("Priority", "우선순위"),
    "attempt": ("Attempt", "시도"),
    "dropped": ("Dropped", "제출"),
    "models": ("Models", "모델"),
    "tokens": ("Tokens", "토큰"),
    "timeline": ("Timeline", "진행 단계"),
    "overview": ("Overview", "개요"),
    "log": ("Log", "로그"),
    "trials": ("Trials", "시도 목록"),
    "figures": ("Figures", "그림"),
    "paper": ("Paper", "논문"),
    "review": ("Review", "심사"),
    "events": ("Events", "기록"),
    "no_log": ("No log yet.", "아직 로그가 없습니다."),
    "no_trials": ("No trials on record.", "기록된 시도가 없습니다."),
    "no_figures": ("No figures.", "그림이 없습니다."),
    "no_paper": ("No paper.", "논문이 없습니다."),
    "no_review": ("No review.", "심사 결과가 없습니다."),
    "log_end": ("the end of a log of {size}", "전체 {size} 로그의 끝부분"),
    "download": ("Download", "내려받기"),
    "paper_frame": ("The paper of {task}", "{task}의 논문"),
    "too_long": (
        "It is too long to be shown here; download it.",
        "너무 길어 여기에 표시할 수 없습니다. 내려받으십시오.",
    ),
    "tree": ("Tree of trials of {task}: {count} trials", "{task}의 시도 {count}개"),
    "choose_trial": (
        "Choose a trial to see what it changed.",
        "시도를 선택하면 변경 내용이 보입니다.",
    ),
    "diff": ("What {trial} changed", "{trial}의 변경 내용"),
    "no_diff": ("No diff on record.", "기록된 변경 내용이 없습니다."),
    "idea": ("Idea", "아이디어"),
    "move": ("Move", "방식"),
    "value": ("Value", "값"),
    "lines": ("Lines", "줄"),
    "parent": ("From", "부모"),
    "params": ("Parameters", "매개변수"),
    "best": ("best", "최고"),
    "baseline": ("baseline", "기준"),
    "no_value": ("no value", "값 없음"),
    "score": ("Score", "점수"),
    "mean": ("mean", "평균"),
    "range": ("range", "범위"),
    "reviewer": ("Reviewer {number}", "심사자 {number}"),
    # the lab
    "lab": ("The lab", "연구실"),
    "nodes": ("Nodes", "노드"),
    "no_nodes": ("No node has been seen yet.", "아직 확인된 노드가 없습니다."),
    "elsewhere": ("elsewhere", "외부"),
    "cpu": ("CPU", "CPU"),
    "memory": ("Memory", "메모리"),
    "disk": ("Disk", "디스크"),
    "temperature": ("Temperature {celsius} °C", "온도 {celsius} °C"),
    "barred": ("No new tasks: {why}", "새 작업 없음: {why}"),
    "load_high": ("High load: {why}", "높은 부하: {why}"),
    "gpu": ("GPU {index}", "GPU {index}"),
    "vram": ("GPU {index} memory", "GPU {index} 메모리"),
    "history": ("the last {age}", "최근 {age}"),
    "loaded": ("loaded", "적재됨"),
    "model": ("Model", "모델"),
    "endpoint": ("Endpoint", "엔드포인트"),
    "in_flight": ("In flight", "처리 중"),
    "tokens_per_s": ("Tokens/s", "토큰/초"),
    "no_models": ("No models loaded.", "적재된 모델이 없습니다."),
    "distributions": ("Distributions", "분포"),
    "states": ("Tasks by state", "상태별 작업"),
    "durations": ("How long tasks took", "작업 소요 시간"),
    "by_template": ("Outcomes by template", "템플릿별 결과"),
    "by_model": ("Outcomes by model", "모델별 결과"),
    "nothing_ended": ("No task has ended yet.", "아직 끝난 작업이 없습니다."),
    "daemon_log": ("Daemon's log", "데몬 로그"),
    "level": ("At least", "최소 수준"),
    # campaigns
    "campaigns": ("Campaigns", "캠페인"),
    "no_campaigns": (
        "No campaigns: a file in config/campaigns/ says what the lab does by itself.",
        "캠페인이 없습니다. config/campaigns/의 파일로 연구실이 스스로 할 일을 정합니다.",
    ),
    "load": ("Load of the machines", "노드 부하"),
    "level_normal": ("normal load", "보통 부하"),
    "level_high": ("high load", "높은 부하"),
    "level_critical": ("critical load", "심각한 부하"),
    "plan_invalid": (
        "Not valid: it does nothing until it is mended.",
        "올바르지 않음: 고칠 때까지 아무것도 하지 않습니다.",
    ),
    "plan_off": ("not enabled", "꺼져 있음"),
    "plan_on": ("enabled", "켜져 있음"),
    "plan_adds": ("keeps the queue filled now", "지금 대기열을 채우는 중"),
    "plan_next": ("Next", "다음"),
    "plan_last": ("Last", "지난번"),
    "plan_open": ("Still to come", "남은 작업"),
    "plan_came": ("{done} of {tasks} tasks are in the queue", "작업 {tasks}개 중 {done}개 제출됨"),
    "plan_tasks": ("tasks: {count}", "작업 {count}개"),
    "in_age": ("in {age}", "{age} 후"),
    "arms": ("Shares of what is added", "추가 작업의 몫"),
    "arm": ("Template and model", "템플릿과 모델"),
    "arm_share": ("Share", "몫"),
    "arm_payoff": ("Pays", "성과"),
    "arm_success": ("Done", "완료율"),
    "arm_takes": ("Takes", "소요"),
    "arm_ended": ("Ended", "끝남"),
    "arm_added": ("Added", "추가됨"),
    "start_now": ("Start now", "지금 시작"),
    "start_step": ("Start {step} now", "{step} 지금 시작"),
    "start_sure": (
        "Start {name} now? Tasks submitted: {tasks}, whatever its limits.",
        "{name}을(를) 지금 시작할까요? 제한과 관계없이 작업 {tasks}개를 제출합니다.",
    ),
    "did_start": (
        "Started {name}. Tasks submitted: {tasks}.",
        "{name} 시작함. 제출한 작업: {tasks}개.",
    ),
    "decisions": ("Last decisions", "최근 결정"),
    "event_campaign_fired": ("fired", "실행됨"),
    "event_campaign_added": ("added a task", "작업 추가"),
    "event_campaign_skipped": ("skipped", "건너뜀"),
    "event_campaign_rest_dropped": ("dropped the rest", "나머지 버림"),
    "event_campaign_clock": ("went by this clock", "현재 시계를 따름"),
    "event_campaign_wound_down": ("wound down", "마무리함"),
    "event_load_changed": ("load changed", "부하 변화"),
    # reports
    "reports": ("Reports", "보고서"),
    "no_reports": (
        "No reports yet: `labd report --keep` writes one, and so does a campaign with `report: true`.",
        "아직 보고서가 없습니다. `labd report --keep`이나 `report: true`인 캠페인이 작성합니다.",
    ),
    "report_lab": ("the whole lab", "연구실 전체"),
    # submitting
    "submit_title": ("Submit a task", "작업 제출"),
    "form": ("Form", "양식"),
    "yaml": ("YAML", "YAML"),
    "name": ("Name", "이름"),
    "task_title": ("Title", "제목"),
    "template": ("Template", "템플릿"),
    "run": ("Command", "명령"),
    "seed": ("Seed", "시드"),
    "max_runs": ("Trials (empty: the template's own)", "시도 수 (비우면 템플릿 값)"),
    "num_gpus": ("GPUs", "GPU 수"),
    "num_cpus": ("CPUs", "CPU 수"),
    "timeout": ("Time limit, such as 4h", "시간 제한 (예: 4h)"),
    "labels": ("Labels, separated by spaces", "라벨 (공백으로 구분)"),
    "task_yaml": ("Task file", "작업 파일"),
    "check": ("Check", "검사"),
    "submit": ("Submit", "제출"),
    "form_note": (
        "Fields left empty keep their defaults. Everything else can be said in YAML.",
        "비워 둔 칸은 기본값을 씁니다. 나머지는 모두 YAML로 쓸 수 있습니다.",
    ),
    "fine": ("Nothing is wrong with it.", "문제가 없습니다."),
    "submitted": ("Submitted: {task}", "제출됨: {task}"),
    "at_line": ("line {line}, column {column}", "{line}행 {column}열"),
    "did_cancel": ("{task} was cancelled.", "{task} 작업을 취소했습니다."),
    "did_retry": ("{task} waits again.", "{task} 작업이 다시 대기합니다."),
    "did_raise": ("{task} has priority {priority}.", "{task}의 우선순위가 {priority}입니다."),
    "did_pause": ("Paused: what runs goes on.", "일시 중지함. 실행 중인 작업은 계속됩니다."),
    "did_resume": ("Resumed.", "재개했습니다."),
    # signing in
    "sign_in": ("Sign in", "로그인"),
    "user": ("Name", "이름"),
    "password": ("Password", "비밀번호"),
    "wrong": ("That name and password do not go together.", "이름과 비밀번호가 맞지 않습니다."),
    "too_many": (
        "Too many attempts; try again in a minute.",
        "시도가 너무 많습니다. 1분 뒤에 다시 하십시오.",
    ),
}


class Words:
    """The texts of one language."""

    def __init__(self, language: Language) -> None:
        self.language: Language = language
        self._column = LANGUAGES.index(language)

    def __call__(self, key: str, **facts: object) -> str:
        """Give a text, its places in braces filled in."""
        text = _TABLE[key][self._column]
        return text.format(**facts) if facts else text

    def known(self, key: str) -> str:
        """Give the word for a key, or the key itself where it is none of ours."""
        return self(key) if key in _TABLE else key


def chosen(setting: str, accepted: str) -> Language:
    """Give the language: the setting's, or what an ``Accept-Language`` header asks for first of those that there are."""
    if setting in LANGUAGES:
        return "ko" if setting == "ko" else "en"
    for part in accepted.lower().split(","):
        asked = part.partition(";")[0].strip().partition("-")[0]
        if asked == "ko":
            return "ko"
        if asked == "en":
            return "en"
    return "en"
