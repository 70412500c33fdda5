"""The local server: HTTP and OpenAI's wire in this process, engine and scheduler in a child; deltas cross."""
