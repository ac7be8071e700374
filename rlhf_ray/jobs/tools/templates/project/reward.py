"""The reward: what to change for a task of your own."""

KIND = ("kind", "warm", "lovely", "bright", "gentle")
HARSH = ("cold", "grim", "rude", "dull", "bitter")


def kindness(prompts: list[str], completions: list[str], **columns: list) -> list[int]:
    """Return one number for each completion, higher is better; None where there is nothing to judge.

    `columns` has the other columns of the data, a list for each.
    """
    return [sum(word in text for word in KIND) - sum(word in text for word in HARSH) for text in completions]
