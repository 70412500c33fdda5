"""Run Qwen models on small devices: `load` a model, then `stream` or `chat`."""
