"""What the pages say, in Chinese and English."""

from typing import Literal

Language = Literal["zh", "en"]

LANGUAGES: dict[Language, str] = {"zh": "中文", "en": "English"}

TEXTS: dict[str, tuple[str, str]] = {
    "title_label": ("排序标注", "Ranking"),
    "title_compare": ("盲评 A/B", "Blind A/B"),
    "title_clips": ("片段比较", "Clips"),
    "tab_label": ("Label 标注", "Label"),
    "tab_compare": ("Compare 对比", "Compare"),
    "tab_clips": ("Clips 片段", "Clips"),
    "tab_dataset": ("Dataset 数据集", "Dataset"),
    "tab_results": ("Results 结果", "Results"),
    "language": ("界面语言", "Language"),
    "name": ("标注者姓名", "Annotator's name"),
    "start": ("开始", "Start"),
    "who": ("标注者：{name}", "Annotator: {name}"),
    "leave": ("换人", "Change"),
    "progress": ("全部进度 {done} / {total}", "All annotators {done} / {total}"),
    "mine": ("我已标注", "Mine"),
    "today": ("今日", "Today"),
    "median": ("每条中位用时", "Median time"),
    "lent": ("{lent} 条正在被标注", "{lent} are being judged now"),
    "seconds": ("{seconds:.0f} 秒", "{seconds:.0f} s"),
    "help": ("快捷键", "Keys"),
    "keys_label": (
        "`1`…`9`：按从好到差的顺序依次点名句子（再按一次取消）\n\n"
        "`Ctrl`+`Enter`：存储并取下一条\n\n`S`：跳过　`Z`：撤销上一条（含跳过）　`N`：随机 prompt\n\n"
        "`Q`：质量　`F`：标记（再按一次到下一个句子；方向键移动，空格选中）\n\n"
        "`R`：写理由　`Esc`：离开理由框",
        "`1`…`9`: name the answers from best to worst (again takes it back)\n\n"
        "`Ctrl`+`Enter`: save and go on\n\n`S`: skip, `Z`: undo the last one or a skip, `N`: random prompt\n\n"
        "`Q`: quality, `F`: flags (again goes to the next answer; arrows move, the space bar chooses)\n\n"
        "`R`: write a reason, `Esc`: leave it",
    ),
    "keys_compare": (
        "`←`：左边更好　`→`：右边更好　`↓`：一样好\n\n"
        "`S`：跳过　`Z`：撤销上一条（含跳过）　`N`：随机 prompt\n\n`R`：写理由　`Esc`：离开理由框",
        "`←`: left is better, `→`: right is better, `↓`: equally good\n\n"
        "`S`: skip, `Z`: undo the last one or a skip, `N`: random prompt\n\n`R`: write a reason, `Esc`: leave it",
    ),
    "keys_clips": (
        "`←`：左边更好　`→`：右边更好　`↓`：一样好\n\n`S`：无法判断　`Z`：撤销上一条",
        "`←`: left is better, `→`: right is better, `↓`: equally good\n\n`S`: cannot tell, `Z`: undo the last one",
    ),
    "cannot_tell": ("无法判断", "Cannot tell"),
    "no_clips": (
        "暂时没有要比较的片段：智能体正在学习，新的片段会自动出现。",
        "There are no clips to compare now: the agent is learning, and new ones appear by themselves.",
    ),
    "too_late": ("这两段已被别人比较过，换了一对。", "Somebody else judged these clips meanwhile; here are others."),
    "random": ("随机 prompt", "Random prompt"),
    "own": ("自己输入 prompt", "A prompt of your own"),
    "own_button": ("生成回答", "Answer it"),
    "writing": ("请稍候，正在取下一条……", "One moment: the next one is on its way…"),
    "unanswered": (
        "还没有回应。若服务仍在运行，可以再按一次。",
        "No answer yet. If the server still runs, you may press again.",
    ),
    "nothing_yet": ("点击“随机 prompt”开始标注。", "Press “Random prompt” to begin."),
    "nothing_left": (
        "没有可标注的 prompt 了：都已标注、跳过，或正在被别人标注。",
        "No prompt is left for you: all are judged, skipped, or with somebody else.",
    ),
    "prompt": ("Prompt（{name}）", "Prompt ({name})"),
    "empty_prompt": ("（无 prompt）", "(no prompt)"),
    "answer": ("句子 {letter}", "Answer {letter}"),
    "next_best": ("下一个最好", "Next best"),
    "ranked": ("第 {rank} 名", "Rank {rank}"),
    "rank": ("排名", "Rank"),
    "overall": ("总体质量 1–7", "Overall quality 1–7"),
    "rank_word": ("排名", "Rank"),
    "overall_word": ("质量", "Quality"),
    "flags": ("标记", "Flags"),
    "harmful": ("有害", "harmful"),
    "private": ("隐私数据", "private data"),
    "off_task": ("偏离任务", "off task"),
    "ties": ("允许并列", "Ties allowed"),
    "conflict": (
        "第 {rank} 名已被句子 {holder} 占用；请改排名，或勾选“允许并列”。",
        "Rank {rank} is held by answer {holder}; choose another, or allow ties.",
    ),
    "tie": ("与句子 {holder} 并列第 {rank} 名。", "Tied with answer {holder} at rank {rank}."),
    "order": ("将保存的顺序：", "To be saved:"),
    "reason": ("理由（可不填）", "Reason (optional)"),
    "save": ("存储当前排序", "Save this ranking"),
    "incomplete": ("请完成排序后再存储！", "Complete the ranking before saving!"),
    "saved": ("已存储。", "Saved."),
    "all_tied": ("全部并列：会存储，但不进入训练数据。", "All are tied: it is stored, but trains nothing."),
    "skip": ("跳过", "Skip"),
    "skipped": ("已跳过。", "Skipped."),
    "undo": ("撤销上一条", "Undo the last"),
    "undone": ("已撤销，可修改后重新存储。", "Taken back; change it and save again."),
    "first_this": ("请先完成或跳过（S）当前这一条。", "Finish this one first, or skip it (S)."),
    "show_all": ("显示全文", "Show all"),
    "show_less": ("收起", "Show less"),
    "nothing_to_undo": ("没有可撤销的操作。", "There is nothing to undo."),
    "lease_lost": (
        "这条 prompt 已超时并分给了别人；您仍可存储。",
        "The time for this prompt ran out and somebody else has it; you can still save.",
    ),
    "failed": ("出错了，输入仍在：{error}", "This failed, what you entered is kept: {error}"),
    "left": ("左边", "Left"),
    "right": ("右边", "Right"),
    "left_better": ("左边更好", "Left is better"),
    "right_better": ("右边更好", "Right is better"),
    "equal": ("一样好", "Equally good"),
    "annotator": ("标注者", "Annotator"),
    "class": ("类别", "Class"),
    "everyone": ("全部", "All"),
    "contains": ("包含文字", "Contains"),
    "flagged": ("仅有标记的", "Flagged only"),
    "found": ("共 {count} 条。", "{count} labels."),
    "page": ("页", "Page"),
    "time": ("时间", "Time"),
    "order_column": ("顺序", "Order"),
    "choose_row": (
        "选中一行可查看、修改或删除；表格可左右滚动。",
        "Choose a row to see, correct or delete it; the table scrolls sideways.",
    ),
    "correct": ("保存修改", "Save the correction"),
    "corrected": ("已修改。", "Corrected."),
    "delete": ("删除这条标注", "Delete this label"),
    "sure": ("确认删除", "Yes, delete it"),
    "deleted": ("已删除，该 prompt 将重新标注。", "Deleted; its prompt is to be judged again."),
    "agreement": ("标注者一致性", "Agreement between annotators"),
    "no_agreement": (
        "还没有被多人标注的 prompt，无法计算一致性。",
        "No prompt has been judged by several annotators yet.",
    ),
    "pairwise": ("两两一致率", "Pairs that agree"),
    "shared": ("多人标注的 prompt", "Prompts in common"),
    "download": ("下载", "Download"),
    "no_labels": ("还没有标注。", "There are no labels yet."),
    "left_out_ties": (
        "TSV 不能表示并列：{count} 条带并列的排序只在 JSONL 和 Parquet 中。",
        "TSV cannot hold ties: {count} rankings with ties are in JSONL and Parquet alone.",
    ),
    "left_out_all": (
        "{count} 条全部并列，不含偏好，不导出。",
        "{count} prefer nothing (all tied) and are not exported.",
    ),
    "win_rate": ("B 的胜率（并列算一半）", "Win rate of B (an equal one counts half)"),
    "interval": ("95 % 置信区间", "95 % interval"),
    "b_wins": ("B 胜", "B wins"),
    "a_wins": ("A 胜", "A wins"),
    "ties_column": ("一样好", "equal"),
    "reasons": ("理由", "Reasons"),
    "choice": ("选择", "Choice"),
    "sides": ("A：{a}　B：{b}", "A: {a}, B: {b}"),
}
"""Each text in both languages, by name."""


def text(name: str, language: Language, /, **values: object) -> str:
    """Return a text of the interface."""
    return TEXTS[name][language == "en"].format(**values) if values else TEXTS[name][language == "en"]
