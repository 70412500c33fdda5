"""LangChain's own tests of chat models, over ChatOpenAI and ChatQwen: pytest of the client's environment runs them."""

import os

from langchain_openai import ChatOpenAI
from langchain_qwq import ChatQwen
from langchain_tests.integration_tests import ChatModelIntegrationTests

SERVER = {"base_url": os.environ["EDGEQWEN_URL"], "api_key": "EMPTY", "temperature": 0, "max_retries": 0}


class TestChatOpenAI(ChatModelIntegrationTests):
    chat_model_class = ChatOpenAI
    chat_model_params = {**SERVER, "model": "Qwen3-0.6B", "stream_usage": True}  # noqa: RUF012
    supports_json_mode = True
    supports_image_inputs = False
    model_override_value = os.environ["EDGEQWEN_MODEL"]


class TestChatQwen(TestChatOpenAI):
    chat_model_class = ChatQwen
    # With thoughts before it, ChatQwen's output_version v1 takes a streamed call for a part of them: both have index 0.
    chat_model_params = {**SERVER, "model": "Qwen3-0.6B", "enable_thinking": False}  # noqa: RUF012
