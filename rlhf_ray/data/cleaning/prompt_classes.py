"""What prompts ask for, by rules: InstructGPT's use cases (Ouyang et al. 2022, table 1), in Chinese and English."""

import re

_LONG = 200
"""Characters from which on a prompt with a question brings the text to answer from."""
_RULES = (
    (
        "summarization",
        r"\b(?:summari[sz]e|summary|tl;?dr|in (?:one|a few|two|three) sentences?|condense|main points?|key takeaways)\b"
        r"|总结|概括|摘要|归纳|概述|提炼|中心思想|主要内容",
    ),
    (
        "rewrite",
        r"\b(?:rewrite|rephrase|paraphrase|reword|proofread|translate|correct (?:the|this|my)|edit (?:the|this|my)"
        r"|convert (?:the|this)|make (?:it|this) (?:more|sound|shorter|longer)|fix the grammar|simplify)\b"
        r"|改写|润色|翻译|重写|改成|修改|纠正|校对|换一种说法|译成|译为|续改|缩写|扩写",
    ),
    (
        "extraction",
        r"\b(?:extract|pull out|find all|identify (?:the|all)"
        r"|list (?:all )?the (?:names|dates|places|entities|keywords))\b"
        r"|提取|抽取|找出|列出文中|摘出|识别出|关键词",
    ),
    (
        "classification",
        r"\b(?:classify|categori[sz]e|which category|sentiment|label (?:the|each|this)|is (?:it|this) (?:a |an )?"
        r"(?:positive|negative|spam)|rate (?:the|this)|positive or negative|true or false)\b"
        r"|分类|归类|情感倾向|判断.{0,12}(?:是否|属于|情感|正面|负面|类别)|属于哪|哪一类|打标签|正面还是负面|褒义还是贬义",
    ),
    (
        "brainstorming",
        r"\b(?:brainstorm|ideas? for|suggest(?:ions)?"
        r"|give me (?:some|a list|\d+|five|ten|three)|list (?:of )?(?:\d+|some|five|ten|three)"
        r"|what are some|come up with|ways to|recommend)\b"
        r"|头脑风暴|点子|创意|建议|推荐|列举|列出|想法|有哪些(?:方法|办法|方式)|给我\S{0,6}[几些个条]|起\S{0,4}名字",
    ),
    (
        "closed_qa",
        r"\b(?:based on the (?:text|passage|following|article|context)|according to the (?:text|passage|article)"
        r"|answer the question|use the following|given the (?:text|passage|context|following))\b"
        r"|根据(?:上|下|以上|以下|文|这段|材料|给定)|阅读(?:下|以下|材料)|依据(?:材料|上文|以下)|文中",
    ),
    (
        "chat",
        r"\A(?:hi|hello|hey|good (?:morning|evening)|thanks?|thank you)\b|\b(?:how are you|who are you"
        r"|let's (?:chat|talk)|i feel|i'm (?:sad|lonely|tired|happy)|the following is a conversation)\b"
        r"|\A(?:你好|您好|嗨|哈喽|早上好|晚上好|谢谢)|陪我聊|聊聊天|你是谁|我(?:很|好|觉得好)(?:难过|孤独|开心|累|伤心)|心情不好",
    ),
    (
        "generation",
        r"\b(?:write|compose|draft|create|generate|tell me a (?:story|joke)|continue the|imagine|design|make up|poem"
        r"|essay|story|letter|email|code|program|function)\b"
        r"|写(?:一|个|首|篇|段|封|出|作)|帮我写|请写|创作|作文|编(?:一|个|写)|生成|续写|起草|撰写|设计|故事|诗|代码|讲(?:一个|个)",
    ),
)
_COMPILED = tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in _RULES)
_QUESTION = re.compile(
    r"[?？]|\A\s*(?:what|who|when|where|why|how|which|whose|is|are|do|does|did|can|could|should|will|would|explain"
    r"|describe|define)\b|什么|为什么|为何|怎么|怎样|如何|哪[里个些]|谁|几[个点时]|多少|是否|吗|解释|介绍|说明",
    re.IGNORECASE,
)


def use_case(prompt: str) -> str:
    """Tell the use case of a prompt: the first rule that its first or last words keep, else whether it asks."""
    # What is wanted stands at either end; the text between is material.
    looked_at = prompt if len(prompt) <= 2 * _LONG else f"{prompt[:_LONG]}\n{prompt[-_LONG:]}"
    for name, pattern in _COMPILED:
        if pattern.search(looked_at):
            return name
    if _QUESTION.search(looked_at):
        return "closed_qa" if len(prompt) > 2 * _LONG else "open_qa"
    return "other"
