"""Lists the column names of well-known data sets, in lower case.

The data sets are Alpaca, Dolly, OpenOrca, Magpie, NuminaMath, MetaMath, GSM8K, SQuAD, ShareGPT, UltraChat, LIMA,
UltraFeedback, hh-rlhf and those for KTO. The formats of OpenAI, Anthropic and Gemini are included.
"""

TURN_COLUMNS = ("messages", "conversations", "conversation", "dialog", "dialogue", "turns", "chat", "items", "contents")
TEXT_TURN_COLUMNS = ("conversations", "conversation", "dialog", "dialogue", "turns", "data")
PAIRS = (
    ("instruction", "output"), ("instruction", "response"), ("instruction", "completion"), ("instruction", "answer"),
    ("prompt", "completion"), ("prompt", "response"), ("prompt", "output"), ("prompt", "answer"),
    ("question", "answer"), ("question", "answers"), ("question", "response"), ("question", "solution"),
    ("query", "response"), ("query", "answer"), ("problem", "solution"), ("problem", "answer"),
    ("input", "output"), ("input", "response"), ("input", "target"), ("inputs", "targets"), ("user", "assistant"),
    ("human", "assistant"), ("human", "gpt"), ("human", "bot"), ("user", "bot"),
)  # fmt: skip
# If a record has both pairs, the first is used. Next to an instruction, a prompt is instruction and input joined by a
# template, and an input is the context. Next to a solution, an answer is the last line of the solution.
PREFERRED = ((("instruction", None), ("prompt", None)), (("instruction", None), ("input", None)),
             (("problem", "solution"), ("problem", "answer")))  # fmt: skip
PREFERENCES = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"),
               ("chosen_response", "rejected_response"))  # fmt: skip
PROMPTS = ("prompt", "question", "query", "instruction", "problem", "input")
OPTIONAL = {
    "context": ("context",),
    "system": ("system", "system_prompt", "system_message", "system_instruction", "systeminstruction"),
    "history": ("history",),
    "reasoning": ("reasoning_content", "reasoning", "thinking"),
    "tools": ("tools", "functions"),
}
LABELS = ("label", "kto_tag", "kto_label", "desirable", "is_desirable", "is_chosen", "preferred")
TEXT_COLUMNS = ("text", "content")
TREE_COLUMNS = ("parent_id", "message_tree_id")
