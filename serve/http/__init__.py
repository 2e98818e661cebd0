"""OpenAI's image API over vLLM's own server: routes, queue, decoding, metrics, page (docs/serving.md)."""
