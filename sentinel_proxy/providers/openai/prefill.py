"""
How servers of the OpenAI family are asked to go on with the assistant's own unfinished words.

The API has no word for it, so each vendor has its own. Without it most servers end the
assistant's turn and begin another one: a new answer, not the rest of the old. Sources:
api-docs.deepseek.com/guides/chat_prefix_completion (below /beta), docs.mistral.ai (prefix),
platform.moonshot.ai (partial mode), help.aliyun.com (partial mode), docs.vllm.ai
(`continue_final_message`, which excludes `add_generation_prompt`). llama.cpp and LM Studio
need nothing.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple


class Prefill(NamedTuple):
    """What a server wants to be told, beside the message itself."""

    message: Mapping[str, Any] = {}  # added to the last message
    request: Mapping[str, Any] = {}  # added to the request

    def added_to(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Return *payload*, which ends with the assistant's words, with what the server wants."""
        *before, last = payload["messages"]
        return {**payload, **self.request, "messages": [*before, {**last, **self.message}]}


PLAIN: Final = Prefill()
_PREFIX: Final = Prefill(message={"prefix": True})
_PARTIAL: Final = Prefill(message={"partial": True})

BY_HOST: Final = {
    "api.deepseek.com": _PREFIX,
    "api.mistral.ai": _PREFIX,
    "api.moonshot.ai": _PARTIAL,
    "api.moonshot.cn": _PARTIAL,
    "dashscope.aliyuncs.com": _PARTIAL,
    "dashscope-intl.aliyuncs.com": _PARTIAL,
}
BY_OWNER: Final = {
    "vllm": Prefill(request={"continue_final_message": True, "add_generation_prompt": False}),
}
"""By `owned_by` in a server's list of models: those that stand anywhere, so that no host tells."""
