"""What do the browser pages share? Two languages, the notice, the look, and the way from an engine into a chat.

`language` is the switch between Chinese and English, `look` the frame and its server, `conversation` the turns of a
user, `chat` what happens on a chat, `votes` what thumbs leave behind for DPO.
"""

from medical_qwen.pages.chat import Chat
from medical_qwen.pages.conversation import Conversation, Turn, follow
from medical_qwen.pages.language import Text, Words
from medical_qwen.pages.look import add_page_arguments, check_page_arguments, open_page, serve
from medical_qwen.pages.votes import append_rows, export, preference_rows, vote

__all__ = [
    "Chat",
    "Conversation",
    "Text",
    "Turn",
    "Words",
    "add_page_arguments",
    "append_rows",
    "check_page_arguments",
    "export",
    "follow",
    "open_page",
    "preference_rows",
    "serve",
    "vote",
]
