"""One vision-language model: adapter, prompts, runs, warm sessions, loading."""
